"""What a file descriptor is that somebody sent, told without calling into its file system.

A stranger's file may be of a file system that answers when it likes (FUSE), so until a descriptor
is known to be memory it is only asked for what the kernel knows by itself: flags, seals, the name
behind /proc/self/fd, and statx without a sync.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.kernel._kernel import ffi, lib
from gmemd.kernel.errors import KernelError, invoke, system_call
from gmemd.kernel.memfd import PAGE_SIZE, memfd_devices
from gmemd.kernel.procfs.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUP_MOUNT = Path("/sys/fs/cgroup")

# Names of anonymous inodes are the kernel's alone. Since 6.19 a guest_memfd has a file's name, as
# any other has that lies at the root of a detached mount and was removed.
_ANON_GUEST_MEMFD = "anon_inode:[kvm-gmem]"
_NAMED_GUEST_MEMFD = re.compile(r"/\[kvm-gmem\](?: \(deleted\))?$")
_PIDFD = "anon_inode:[pidfd]"
_PROCS = "cgroup.procs"
_PID = re.compile(r"^Pid:\s*(-?\d+)$", re.MULTILINE)
_OF_A_THREAD = os.O_EXCL  # PIDFD_THREAD


class FileKind(StrEnum):
    """What guest memory's file is."""

    GUEST_MEMFD = "guest_memfd"
    MEMFD = "memfd"


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file that guest memory may be in. ``inode`` is its identity: (st_dev, st_ino)."""

    kind: FileKind
    size_bytes: int
    page_size: int
    inode: tuple[int, int]


class _WrongFileError(GmemdError):
    """A file descriptor isn't what it should be; ``reason`` says what it is, in one sentence."""

    exit_code = Exit.USAGE

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason


class NotMemoryError(_WrongFileError):
    """Not a guest_memfd or memfd that is open for reading and writing."""


class NotAPidfdError(_WrongFileError):
    """Not a pidfd of a process that runs and can be seen."""


class NotACgroupError(_WrongFileError):
    """Not a cgroup v2's cgroup.procs that is open for writing."""


def identify_memory(fd: int, *, guest_memfd_device: int | None) -> MemoryFile:
    """The guest_memfd or memfd that the fd is, open for reading and writing.

    ``guest_memfd_device`` is that of a guest_memfd of one's own (None: this host has none).
    Raises NotMemoryError for every other kind of file, KernelError for a closed fd.
    """
    name = _name(fd)
    flags = _flags(fd)
    if flags & os.O_PATH:
        raise NotMemoryError(f"{name} is open as a path only (O_PATH)")
    if flags & os.O_ACCMODE != os.O_RDWR:
        raise NotMemoryError(
            f"{name} is not open for reading and writing", hint="pass the descriptor it was made as"
        )
    seals = _seals(fd)
    if seals is not None:
        return _memfd(fd, name, seals)
    if name == _ANON_GUEST_MEMFD or _NAMED_GUEST_MEMFD.match(name):
        found = _identify(fd)
        if guest_memfd_device is not None and found.device == guest_memfd_device:
            return MemoryFile(
                FileKind.GUEST_MEMFD, found.size, PAGE_SIZE, (found.device, found.inode)
            )
    raise NotMemoryError(f"{name} is neither a guest_memfd nor a memfd")


def guest_memfd_device(fd: int) -> int:
    """The device (st_dev) that all guest_memfds of this host share, by one of one's own."""
    return _identify(fd).device


def pid_of_pidfd(fd: int) -> int:
    """The pid, as this process sees it, of the process that a pidfd is of.

    It may be one that has exited and waits for its parent. Raises NotAPidfdError.
    """
    name = _name(fd)
    if name != _PIDFD:
        raise NotAPidfdError(f"{name} is no pidfd")
    if _flags(fd) & _OF_A_THREAD:
        raise NotAPidfdError("the pidfd is of a thread, not of a process")
    match = _PID.search(read_text(f"/proc/self/fdinfo/{fd}"))
    pid = int(match[1]) if match else 0
    if pid < 0:
        raise NotAPidfdError("the pidfd's process has exited")
    if pid == 0:
        raise NotAPidfdError("the pidfd's process is in a PID namespace that gmemd doesn't see")
    return pid


def cgroup_of_procs(fd: int, mount: Path = CGROUP_MOUNT) -> Path:
    """The cgroup v2 directory, below ``mount``, whose cgroup.procs is open for writing as the fd.

    The name behind the fd is of the sender's namespaces, so the directory is found by its file's
    inode. Raises NotACgroupError.
    """
    name = _name(fd)
    flags = _flags(fd)
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_RDONLY:
        raise NotACgroupError(f"{name} is not open for writing")
    path = Path(name)
    if path.name != _PROCS:
        raise NotACgroupError(f"{name} is no cgroup's {_PROCS}")
    found = _identify(fd)
    if found.device != _cgroup2_device(mount):
        raise NotACgroupError(f"{name} is of no cgroup v2 below {mount}")
    for directory in _likely(path.parent, mount):
        if _is_same(directory / _PROCS, found.device, found.inode):
            return directory
    raise NotACgroupError(f"the cgroup of {name} is gone, or not below {mount}")


@dataclass(frozen=True, slots=True)
class _Identity:
    """Device and inode number; size in bytes as far as it is known without asking."""

    device: int
    inode: int
    size: int
    mode: int


def _identify(fd: int) -> _Identity:
    out = ffi.new("struct gm_identity *")
    invoke("statx", lib.gm_identify, fd, out, what=f"asking what fd {fd} is")
    return _Identity(out.device, out.inode, out.size, out.mode)


def _memfd(fd: int, name: str, seals: int) -> MemoryFile:
    """A memfd among the files that have seals, which those of a mounted tmpfs have too."""
    found = _identify(fd)
    page_size = memfd_devices().get(found.device)
    if page_size is None or not stat.S_ISREG(found.mode):
        raise NotMemoryError(f"{name} is a file of a mounted file system, not a memfd")
    if seals & fcntl.F_SEAL_WRITE:
        raise NotMemoryError(f"{name} is sealed against writing")
    return MemoryFile(FileKind.MEMFD, found.size, page_size, (found.device, found.inode))


def _flags(fd: int) -> int:
    """How the file is open: O_*."""
    with system_call("fcntl", f"asking how fd {fd} is open"):
        return fcntl.fcntl(fd, fcntl.F_GETFL)


def _seals(fd: int) -> int | None:
    """The seals of a file in memory; None of any other, which isn't asked."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def _name(fd: int) -> str:
    """What the kernel calls the file, made of nothing but names that it has in memory."""
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  not a path, always
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "a file with a very long name"
        number = errno.EBADF if error.errno == errno.ENOENT else error.errno or 0
        raise KernelError("readlink", number, f"asking what fd {fd} is") from error
    return name if name.isprintable() else ascii(name)


def _cgroup2_device(mount: Path) -> int | None:
    """The device of the cgroup v2 file system mounted there."""
    try:
        fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        kind = invoke("fstatfs", lib.gm_filesystem_type, fd, what=f"asking what {mount} is")
        return _identify(fd).device if kind == lib.GM_CGROUP2_MAGIC else None
    finally:
        os.close(fd)


def _likely(named: Path, mount: Path) -> Iterator[Path]:
    """All cgroups, the named one first. What the name means elsewhere here is nobody's business."""
    if named.is_relative_to(mount):
        yield named
    for directory, _, _ in os.walk(mount):
        yield Path(directory)


def _is_same(path: Path, device: int, inode: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)
