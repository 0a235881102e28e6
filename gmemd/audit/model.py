"""What an audit saw: frozen values, sizes in bytes, nodes by host node number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class PolicyRead:
    """A policy as the kernel gave it back: mode word (as in specs), nodes, flags."""

    mode: str
    nodes: frozenset[int]
    flags: int = 0


UNKNOWN_NODE = -1
"""In a cluster of a sample: pages that exist, and whose node wasn't seen."""

Cluster: TypeAlias = "tuple[tuple[int, int], ...]"
"""What pages that were drawn together are: pairs of a node and pages, ascending; no holes."""

CONFIDENCE = 0.95
"""How often the interval of a sample holds the truth, where nothing else was asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Pages drawn at random, without repetition, from all pages of a region, holes included.

    All in pages of the region's page size; ``population`` is how many the region has, and
    drawn - sum(by_node) - unknown is how many of those drawn don't exist.

    Where pages were drawn in clusters of ``cluster_pages``, ``clusters`` counts these by what they
    are. ``confidence`` is how often the intervals that are made of it are to hold the truth;
    ``margin`` is how far from the truth a share was to be at most, where that was asked for.
    """

    population: int
    drawn: int
    by_node: Mapping[int, int] = field(default_factory=dict)
    unknown: int = 0
    cluster_pages: int = 1
    clusters: Mapping[Cluster, int] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """What one piece of an address space holds, in bytes; what nothing counts are holes."""

    by_node: Mapping[int, int] = field(default_factory=dict)
    misplaced_bytes: int = 0
    unknown_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a region that follow upon each other in the guest, in cells of equal size.

    ``offset`` counts from the region's start; ``gpa`` is its guest-physical address, None where
    that isn't known. The last cell may reach beyond the stretch.
    """

    offset: int
    size_bytes: int
    cell_bytes: int
    cells: tuple[Cell, ...]
    gpa: int | None = None


@dataclass(frozen=True, slots=True)
class MisplacedRange:
    """From one misplaced page to another with nothing but such pages, and holes, between them."""

    offset: int
    size_bytes: int
    by_node: Mapping[int, int]
    gpa: int | None = None

    @property
    def misplaced_bytes(self) -> int:
        """The range without its holes."""
        return sum(self.by_node.values())


@dataclass(frozen=True, slots=True)
class Where:
    """Where in a region what is: all of it in cells, and its largest misplaced ranges by offset.

    ``more`` counts the ranges that aren't here, with ``more_bytes`` misplaced in them.
    """

    stretches: tuple[Stretch, ...]
    misplaced: tuple[MisplacedRange, ...] = ()
    more: int = 0
    more_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RegionAudit:
    """One region's pages. sum(by_node) + unknown_bytes = resident_bytes, always.

    ``sample`` is None after a look at every page; else the bytes are its estimate of them.

    ``policy`` is the inode's at the region's start, read through a fresh mapping; None where it
    can't be read; ``other_policies`` are those found further in, where they differ from it.
    ``unknown_reason`` says why bytes are unknown; ``errors`` counts what went wrong by reason.
    ``where`` is there if it was asked for, from a look of its own right after the region's.
    Since ``verified_timestamp`` (seconds since the epoch) every page was looked at, one by one or
    all at once; None where that isn't so yet, or can't be. ``rolled``: it was put together from
    looks that a rolling scan has taken, and counted, before.
    """

    guest_node: int
    index: int
    size_bytes: int
    page_size: int
    resident_bytes: int
    by_node: Mapping[int, int]
    unknown_bytes: int = 0
    unknown_reason: str = ""
    policy: PolicyRead | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    pages_seen: int = 0
    exact: bool = True
    other_policies: tuple[PolicyRead, ...] = ()
    sample: Sample | None = None
    where: Where | None = None
    verified_timestamp: float | None = None
    rolled: bool = False

    @property
    def in_sight(self) -> bool:
        """Whether the node of any page could be seen, if there are pages."""
        return bool(self.by_node) or not self.unknown_bytes


@dataclass(frozen=True, slots=True)
class VmAudit:
    """One pass over a VM. Times: seconds since the epoch, durations in seconds.

    ``counters`` are the paying cgroup's bytes per host node (all regions it pays for together).
    """

    vm: str
    started_timestamp: float
    duration_seconds: float
    cpu_seconds: float
    regions: tuple[RegionAudit, ...]
    counters: Mapping[int, int] | None = None
    counters_cgroup: str = ""
