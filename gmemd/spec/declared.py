"""What a running VMM was told to do with its guest's memory: frozen values, as text gave them.

A spec says what the operator wants of gmemd; this says what somebody else asked of a VMM. Sizes in
bytes; nodes are host node numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    from collections.abc import Mapping


class BackendKind(StrEnum):
    """How a VMM gets a piece of guest memory."""

    RAM = "ram"
    """Anonymous memory; if shared, a memfd or an unnamed file of the kernel's."""
    MEMFD = "memfd"
    FILE = "file"
    """A file by its path, on tmpfs, hugetlbfs or a disk."""
    ANY = "any"
    """Not told: whatever has the size."""


@dataclass(frozen=True, slots=True)
class DeclaredBackend:
    """One piece of guest memory, in the order in which it was declared.

    ``parts`` gives, in the piece's own order, guest nodes and the bytes each has of it; a guest
    node is None where the piece belongs to none. ``shared`` is None where it isn't told;
    ``page_size`` is that of huge pages where they were asked for by size, 0 where they were asked
    for in whatever size the system has, None where nothing was asked. ``path`` is a file's, or the
    directory's that it is made in.
    """

    id: str
    kind: BackendKind
    size_bytes: int
    parts: tuple[tuple[int | None, int], ...]
    policy: PolicyMode = PolicyMode.DEFAULT
    host_nodes: frozenset[int] = frozenset()
    shared: bool | None = None
    page_size: int | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A VMM's command line, as far as it is about its name and the guest's memory.

    ``vmm`` is the kind of VMM (``qemu``, ``cloud-hypervisor``, ``firecracker``, ``crosvm``), empty
    for one that isn't known. ``memory_bytes`` is the guest's memory at start, None where it isn't
    told. ``one_node`` says that such a guest has no NUMA nodes, or only one. ``problems`` are what
    couldn't be understood, in words for people; never a reason to give up the rest.
    """

    vmm: str = ""
    name: str = ""
    uuid: str = ""
    memory_bytes: int | None = None
    one_node: bool = False
    backends: tuple[DeclaredBackend, ...] = ()
    distances: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    confidential: bool = False
    problems: tuple[str, ...] = ()
