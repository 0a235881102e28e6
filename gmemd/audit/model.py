"""What an audit saw: frozen values, sizes in bytes, nodes by host node number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class PolicyRead:
    """A policy as the kernel gave it back: mode word (as in specs), nodes, flags."""

    mode: str
    nodes: frozenset[int]
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Pages drawn at random, without repetition, from all pages of a region, holes included.

    All in pages of the region's page size; ``population`` is how many the region has, and
    drawn - sum(by_node) - unknown is how many of those drawn don't exist.
    """

    population: int
    drawn: int
    by_node: Mapping[int, int] = field(default_factory=dict)
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class RegionAudit:
    """One region's pages. sum(by_node) + unknown_bytes = resident_bytes, always.

    ``sample`` is None after a look at every page; else the bytes are its estimate of them.

    ``policy`` is the inode's at the region's start, read through a fresh mapping; None where it
    can't be read; ``other_policies`` are those found further in, where they differ from it.
    ``unknown_reason`` says why bytes are unknown; ``errors`` counts what went wrong by reason.
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
