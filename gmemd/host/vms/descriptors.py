"""What a process has open, as far as it is about a VM: read without opening or touching any of it.

The links of /proc/PID/fd tell what each descriptor is; the directory is its owner's, so that
CAP_SYS_PTRACE alone doesn't open it. /proc/PID/fdinfo needs no more than that, and tells the inode
numbers and which descriptor is a userfaultfd.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, below, read_text

if TYPE_CHECKING:
    from pathlib import Path

VM = re.compile(r"(?:anon_inode:|/)\[?kvm-vm\]?(?: \(deleted\))?$")
VCPU = re.compile(r"(?:anon_inode:|/)\[?kvm-vcpu")
GUEST_MEMFD = re.compile(r"(?:anon_inode:|/)\[kvm-gmem\]")
USERFAULTFD = re.compile(r"(?:anon_inode:|/)\[userfaultfd\]")

_INODE = re.compile(r"^ino:\s*(\d{1,20})$", re.MULTILINE | re.ASCII)
_USERFAULTFD_INFO = re.compile(r"^API:\t", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """A process' descriptors: numbers by link and by inode number.

    ``links`` is None where they can't be read. ``inodes`` has the files among them, or all where
    there are no links to tell.
    """

    links: dict[int, str] | None
    inodes: dict[int, int]
    userfaultfd: bool

    @property
    def holds_vm(self) -> bool | None:
        """Whether one of them is a KVM VM; None where it can't be seen."""
        if self.links is None:
            return None
        return any(VM.match(link) for link in self.links.values())

    def files(self, inode: int, name: str) -> tuple[int, ...]:
        """The numbers of a file with that inode number and name (as /proc/PID/maps spells it)."""
        return tuple(
            fd
            for fd, number in sorted(self.inodes.items())
            if number == inode
            and (self.links is None or self.links[fd].replace("\n", "\\012") == name)
        )

    def matching(self, pattern: re.Pattern[str]) -> tuple[int, ...]:
        """The numbers whose link matches, ascending."""
        return tuple(sorted(fd for fd, link in (self.links or {}).items() if pattern.match(link)))


_CLOSED = frozenset({errno.ENOENT, errno.ESRCH})
"""What opening or reading a fdinfo says where the descriptor was closed, or its process ended."""


def read_links(pid: int, root: Path) -> dict[int, str]:
    """What each descriptor is. Raises PermissionError, or another OSError where it is gone."""
    directory = f"{root}/proc/{pid}/fd"
    links = {}
    for name in os.listdir(directory):  # noqa: PTH208  a Path for each costs more than the call
        try:
            links[int(name)] = os.readlink(f"{directory}/{name}")  # noqa: PTH115  as above
        except FileNotFoundError:
            continue
    return links


def read_descriptors(pid: int, root: Path) -> Descriptors:
    """Everything that can be seen. Raises PermissionError where nothing can.

    Raises ProcfsError where one that is still open can't be read now: it may be the memory's.
    """
    try:
        links = read_links(pid, root)
    except PermissionError:
        return _from_info(pid, root)
    inodes = {}
    for fd, link in links.items():
        if not link.startswith("/") or GUEST_MEMFD.match(link):
            continue
        try:
            inodes[fd] = _inode(read_text(below(root, f"proc/{pid}/fdinfo/{fd}")))
        except ProcfsError as error:
            if error.errno not in _CLOSED:
                raise
    return Descriptors(links, inodes, any(USERFAULTFD.match(link) for link in links.values()))


def _from_info(pid: int, root: Path) -> Descriptors:
    """Inodes and the userfaultfd alone."""
    directory = root / f"proc/{pid}/fdinfo"
    inodes, userfaultfd = {}, False
    for entry in os.listdir(directory):  # noqa: PTH208  only the names are wanted
        try:
            text = read_text(directory / entry)
        except ProcfsError as error:
            if isinstance(error.__cause__, PermissionError):
                raise error.__cause__ from error
            if error.errno not in _CLOSED:
                raise
            continue
        inodes[int(entry)] = _inode(text)
        userfaultfd = userfaultfd or _USERFAULTFD_INFO.search(text) is not None
    return Descriptors(None, inodes, userfaultfd)


def _inode(text: str) -> int:
    """The inode number that a fdinfo tells; 0 before Linux 5.14, where it doesn't."""
    match = _INODE.search(text)
    return int(match[1]) if match else 0
