"""The pieces of a VMM's address space, and the guest_memfds it holds, that may be guest memory."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.host.vms.descriptors import GUEST_MEMFD, VCPU
from gmemd.host.vms.filesystems import read_mounts
from gmemd.host.vms.model import Piece, PieceKind
from gmemd.kernel.memfd import PAGE_SIZE
from gmemd.kernel.procfs.maps import parse_maps
from gmemd.kernel.procfs.text import ProcfsError, below, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gmemd.host.vms.descriptors import Descriptors
    from gmemd.host.vms.filesystems import Filesystems
    from gmemd.kernel.procfs.maps import MapsEntry

LEAST_BYTES = 1 << 20
"""Guest memory comes in pieces of a MiB at least; what is smaller is the VMM's own."""

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_NO_FILE = (0, 0, 0)


def read_pieces(
    pid: int, descriptors: Descriptors, filesystems: Filesystems, root: Path
) -> tuple[Piece, ...]:
    """Everything of a MiB or more that is readable, writable and not executable, by address.

    guest_memfds come after the mappings, by descriptor. Raises ProcfsError and OSError where the
    process is gone or may not be looked into.
    """
    path = below(root, f"proc/{pid}/maps")
    entries = parse_maps("\n".join(_large_lines(read_text(path))), path)
    mounts = None
    pieces = []
    for entry in entries:
        if not _may_be_memory(entry):
            continue
        known = filesystems
        if entry.inode and not known.in_memory(entry.device):
            if mounts is None:
                mounts = read_mounts(root / f"proc/{pid}/mountinfo")
            known = replace(known, mounted={**known.mounted, **mounts})
        fds = descriptors.files(entry.inode, entry.name) if entry.inode else ()
        pieces.append(_piece(pid, entry, fds, known, root))
    return (*pieces, *_guest_memfds(pid, entries, descriptors, root))


def maps_a_vcpu(pid: int, root: Path) -> bool:
    """Whether the process has a vCPU's run area mapped, so that it runs a KVM VM."""
    return "kvm-vcpu" in (text := read_text(below(root, f"proc/{pid}/maps"))) and any(
        VCPU.match(line.split(maxsplit=5)[-1]) for line in text.split("\n") if "kvm-vcpu" in line
    )


def large_mappings(pid: int, root: Path, least_bytes: int) -> tuple[str, ...]:
    """The lines of /proc/PID/maps of what may be guest memory, from a size on.

    Two looks that give the same lines saw the same memory at the same addresses. Raises
    ProcfsError.
    """
    lines = _large_lines(read_text(below(root, f"proc/{pid}/maps")), least_bytes)
    return tuple(line for line in lines if " rw-" in line and not line.endswith("]"))


def _large_lines(text: str, least_bytes: int = LEAST_BYTES) -> Iterator[str]:
    """Leave out the hundreds of small mappings before anything else is made of the lines."""
    for line in text.split("\n"):
        dash, space = line.find("-"), line.find(" ")
        if not 0 < dash < space:
            continue
        try:
            size_bytes = int(line[dash + 1 : space], 16) - int(line[:dash], 16)
        except ValueError:
            raise ProcfsError("maps", f"{line[:60]!r} is no mapping") from None
        if size_bytes >= least_bytes:
            yield line


def _may_be_memory(entry: MapsEntry) -> bool:
    """Leave out code, guard areas, heap and stack, and what guest_memfds are looked at for."""
    if not entry.permissions.startswith("rw-") or GUEST_MEMFD.match(entry.name):
        return False
    return entry.inode != 0 or not entry.name or entry.name.startswith("[anon")


def _piece(
    pid: int, entry: MapsEntry, fds: tuple[int, ...], filesystems: Filesystems, root: Path
) -> Piece:
    if not entry.inode:
        return Piece(PieceKind.ANONYMOUS, entry.size_bytes, PAGE_SIZE, address=entry.start)
    file = filesystems.kind(entry.device)
    inode = (*entry.device, entry.inode)
    allocated = None
    if fds and entry.shared and filesystems.in_memory(entry.device):
        allocated = _allocated_bytes(pid, fds[0], inode, root)
    return Piece(
        kind=file if entry.shared else PieceKind.ANONYMOUS,
        size_bytes=entry.size_bytes,
        page_size=filesystems.page_size(entry.device),
        address=entry.start,
        shared=entry.shared,
        file=file,
        offset=entry.offset,
        inode=inode,
        path=entry.name,
        fds=fds,
        allocated_bytes=allocated,
    )


def _allocated_bytes(pid: int, fd: int, inode: tuple[int, int, int], root: Path) -> int | None:
    """What the file behind a descriptor has allocated, if it is still that file."""
    try:
        found = os.stat(f"{root}/proc/{pid}/fd/{fd}")  # noqa: PTH116  the link isn't to be resolved
    except OSError:
        return None
    if (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino) != inode:
        return None
    return found.st_blocks * _BLOCK_BYTES


def _guest_memfds(
    pid: int, entries: tuple[MapsEntry, ...], descriptors: Descriptors, root: Path
) -> Iterator[Piece]:
    """Each guest_memfd once, whatever number of descriptors and mappings it has."""
    if descriptors.links is None:
        yield from _mapped_guest_memfds(entries, descriptors)
        return
    found: dict[tuple[int, int, int], Piece] = {}
    for fd in descriptors.matching(GUEST_MEMFD):
        try:
            seen = os.stat(f"{root}/proc/{pid}/fd/{fd}")  # noqa: PTH116  as above
        except FileNotFoundError:
            continue
        inode = (os.major(seen.st_dev), os.minor(seen.st_dev), seen.st_ino)
        before = found.get(inode)
        fds = (*before.fds, fd) if before is not None else (fd,)
        found[inode] = _guest_memfd(inode, seen.st_size, fds)
    yield from found.values()


def _mapped_guest_memfds(
    entries: tuple[MapsEntry, ...], descriptors: Descriptors
) -> Iterator[Piece]:
    """Tell guest_memfds by their mappings alone, where the descriptors' links can't be read."""
    ends: dict[tuple[int, int, int], int] = {}
    for entry in entries:
        if GUEST_MEMFD.match(entry.name):
            inode = (*entry.device, entry.inode)
            ends[inode] = max(ends.get(inode, 0), entry.offset + entry.size_bytes)
    for inode, end in ends.items():
        fds = tuple(sorted(fd for fd, number in descriptors.inodes.items() if number == inode[2]))
        if fds:
            yield _guest_memfd(inode, end, fds)


def _guest_memfd(inode: tuple[int, int, int], size_bytes: int, fds: tuple[int, ...]) -> Piece:
    return Piece(
        PieceKind.GUEST_MEMFD,
        size_bytes,
        PAGE_SIZE,
        shared=True,
        file=PieceKind.GUEST_MEMFD,
        inode=inode if inode != _NO_FILE else None,
        path="[kvm-gmem]",
        fds=fds,
    )
