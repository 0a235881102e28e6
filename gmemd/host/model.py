"""The host as gmemd sees it: frozen values that plan, drift and the command line read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


PANIC_ALWAYS = 2
"""vm.panic_on_oom: with 1 the kernel still kills where a policy, cpuset or cgroup limits memory."""


@dataclass(frozen=True, slots=True)
class HugepagePool:
    """One hugepage size's pool on one node; all counts in huge pages."""

    page_size: int
    total: int
    free: int
    surplus: int


@dataclass(frozen=True, slots=True)
class HostNode:
    """A NUMA node of the hypervisor, by its sysfs number. All sizes in bytes.

    ``placeable_*`` speak of memory that unmovable pages (guest_memfd) can have: the DMA32 and
    Normal zones. ``movable_*`` speak of ZONE_MOVABLE, which memfd pages can have as well.
    """

    id: int
    cpus: frozenset[int]
    distances: Mapping[int, int]
    total_bytes: int
    free_bytes: int
    placeable_bytes: int
    placeable_available_bytes: int
    placeable_free_bytes: int
    movable_bytes: int
    movable_available_bytes: int
    hugepages: Mapping[int, HugepagePool] = field(default_factory=dict)
    interleave_weight: int = 1

    @property
    def has_memory(self) -> bool:
        """Whether the node has any memory at all."""
        return self.total_bytes > 0

    @property
    def movable_only(self) -> bool:
        """Whether the node has memory, but none that guest_memfd can have."""
        return self.has_memory and self.placeable_bytes == 0


@dataclass(frozen=True, slots=True)
class Feature:
    """A kernel feature as probed: supported, not supported, or (None) not found out.

    ``detail`` says what was seen; ``remedy`` what to do about it, where it isn't supported.
    ``forbidden``: gmemd may not use it here, whatever the kernel could do.
    """

    name: str
    supported: bool | None
    detail: str = ""
    remedy: str = ""
    forbidden: bool = False


@dataclass(frozen=True, slots=True)
class Cpuset:
    """gmemd's own effective cpuset: host nodes and CPUs it may use."""

    mems: frozenset[int]
    cpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine: nodes (online ones, ascending, numbering may have holes), features, cpuset.

    ``panic_on_oom`` is the kernel's setting of that name (0, 1 or 2).
    ``hugepages_reserved`` counts, per page size in bytes, the huge pages that are free in their
    pools but promised to mappings; the kernel keeps no count of them per node.
    """

    nodes: tuple[HostNode, ...]
    features: Mapping[str, Feature]
    cpuset: Cpuset
    possible_nodes: frozenset[int]
    kernel_release: str
    page_size: int = 4096
    hugepages_reserved: Mapping[int, int] = field(default_factory=dict)
    panic_on_oom: int = 0

    @property
    def oom_panics(self) -> bool:
        """Whether the kernel panics where one node or one cgroup is full, and kills nobody."""
        return self.panic_on_oom == PANIC_ALWAYS

    def node(self, node_id: int) -> HostNode | None:
        """Return the node of that number, or None where it is not online."""
        return next((node for node in self.nodes if node.id == node_id), None)

    def supports(self, feature: str) -> bool:
        """Whether the feature was probed and found; unknown features count as absent."""
        found = self.features.get(feature)
        return found is not None and found.supported is True
