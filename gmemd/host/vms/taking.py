"""Descriptors of a running VMM, taken by pidfd_getfd: no path is opened, and the VMM isn't asked.

A guest_memfd that is held pins the memory of its guest: what is taken is closed again.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.host.vms.descriptors import GUEST_MEMFD, read_descriptors
from gmemd.host.vms.finding import still_runs
from gmemd.kernel.descriptor import duplicate, inode_of, status_of
from gmemd.kernel.errors import KernelError
from gmemd.kernel.process import pidfd_getfd, pidfd_open
from gmemd.kernel.procfs.text import ProcfsError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from gmemd.host.vms.model import VmmProcess

__all__ = ["Inode", "VmmGoneError", "duplicate", "open_vmm", "take_by_inode", "taken"]

Inode = tuple[int, int, int]
"""A file's identity as /proc tells it: its device's major and minor number, and its inode's."""


class VmmGoneError(GmemdError):
    """The VMM has ended, became another program, or has another file by now."""

    exit_code = Exit.UNSEEN


def open_vmm(vmm: VmmProcess) -> int:
    """A pidfd of a VMM that was found, close-on-exec; the caller's. Raises VmmGoneError."""
    pidfd = pidfd_open(vmm.pid)
    if still_runs(vmm):
        return pidfd
    os.close(pidfd)
    raise VmmGoneError(f"pid {vmm.pid} has ended, or is another program by now")


@contextmanager
def taken(
    vmm: VmmProcess, pidfd: int, wanted: Iterable[tuple[int, Inode | None]]
) -> Iterator[Sequence[int]]:
    """Descriptors of the VMM, by its numbers, for as long as the block lasts.

    ``wanted`` are a number and the inode that has to be behind it still (None: whatever is). Raises
    VmmGoneError, KernelError (EPERM without ptrace access).
    """
    with ExitStack() as stack:
        fds = []
        for number, inode in wanted:
            fd = pidfd_getfd(pidfd, number)
            stack.callback(os.close, fd)
            found = status_of(fd)
            if inode not in (None, (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)):
                raise VmmGoneError(f"fd {number} of pid {vmm.pid} is another file by now")
            fds.append(fd)
        yield fds


def take_by_inode(
    pidfd: int, pid: int, wanted: Collection[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """Descriptors of a process' files by inode, (st_dev, st_ino), as far as it has them open.

    They are the caller's. Raises VmmGoneError and KernelError (EPERM without ptrace access).
    """
    try:
        open_files = read_descriptors(pid, Path("/"))
    except (OSError, ProcfsError) as error:
        raise VmmGoneError(f"what pid {pid} has open can't be read: {error}") from error
    numbers = {number for _, number in wanted}
    likely = {fd for fd, number in open_files.inodes.items() if number in numbers}
    found: dict[tuple[int, int], int] = {}
    with ExitStack() as undo:
        for number in sorted(likely.union(open_files.matching(GUEST_MEMFD))):
            try:
                fd = pidfd_getfd(pidfd, number)
            except KernelError:
                if found:
                    continue
                raise
            with ExitStack() as unwanted:
                unwanted.callback(os.close, fd)
                inode = inode_of(fd)
                if inode in wanted and inode not in found:
                    found[inode] = fd
                    undo.push(unwanted.pop_all())
        undo.pop_all()
    return found
