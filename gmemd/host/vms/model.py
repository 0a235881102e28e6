"""A running VMM as /proc shows it: frozen values. Sizes in bytes; nodes are host node numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PieceKind(StrEnum):
    """What a piece of a VMM's memory is."""

    ANONYMOUS = "anonymous"
    MEMFD = "memfd"
    FILE = "file"
    GUEST_MEMFD = "guest_memfd"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of memory of a VMM that is large enough to be its guest's.

    ``kind`` is how its pages count: a private mapping of a file is anonymous memory, and ``file``
    tells what it is a copy of. ``file`` is None for memory without a file; so are ``inode``
    (device's major, minor, and number) and ``path``, which is spelled as the kernel prints it.
    ``address`` is the VMM's, None for a guest_memfd, which is looked at through one of ``fds``.
    ``fds`` are the VMM's descriptors of the file, ascending. ``allocated_bytes`` is what the whole
    file has allocated, None where that isn't known.
    """

    kind: PieceKind
    size_bytes: int
    page_size: int
    address: int | None = None
    shared: bool = False
    file: PieceKind | None = None
    offset: int = 0
    inode: tuple[int, int, int] | None = None
    path: str = ""
    fds: tuple[int, ...] = ()
    allocated_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class VmmProcess:
    """A process that holds a KVM VM, or that is a VMM by its program.

    ``start_ticks`` (clock ticks since boot) and ``pid`` together are one process, whatever pid is
    given again. ``stack_start`` (an address, 0 where it can't be seen) is another in each program
    that the process becomes by exec. ``kvm`` is None where it can't be seen whether it holds a VM.
    ``mems`` are the host nodes that its cpuset allows. ``userfaultfd`` says that it holds one, so
    that its memory is in other hands now. ``blocked`` says why its memory can't be looked at,
    ``hint`` what to do then.
    """

    pid: int
    start_ticks: int
    started_timestamp: float
    program: str
    argv: tuple[str, ...]
    kvm: bool | None
    cgroup: str
    unit: str
    mems: frozenset[int]
    stack_start: int = 0
    pieces: tuple[Piece, ...] = ()
    userfaultfd: bool = False
    blocked: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class FoundVmms:
    """One look at all processes. ``unseen`` counts those that may hold a VM and can't be seen."""

    vmms: tuple[VmmProcess, ...]
    unseen: int = 0
