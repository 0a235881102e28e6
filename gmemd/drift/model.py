"""Drift per guest node, with its cause and remedy. Sizes in bytes, ratios from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cause(StrEnum):
    """Why memory is not where the spec wants it."""

    RESIDENT_BEFORE_POLICY = "resident before the policy"
    SPILLED = "spilled"
    POLICY_CHANGED = "policy changed"
    NODE_OFFLINE = "node offline"
    MOVABLE_ONLY = "movable-only"
    CPUSET = "cpuset"
    NO_INODE_POLICY = "kernel without inode policies"
    MOVED = "moved by balancing"
    SHARES = "shares off"
    NO_POLICY = "no policy set"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GuestNodeDrift:
    """A guest node's memory, declared against actual.

    placed + misplaced + unknown = resident. ``drift_ratio`` is misplaced/(placed+misplaced), None
    where nothing was seen. ``share_error_ratio`` is the largest share's distance from its weight
    (interleave modes only). ``policy_match`` is None where the policy can't be read.
    ``drifting`` is the verdict: any kind of drift beyond the tolerance.
    """

    guest_node: int
    size_bytes: int
    resident_bytes: int
    placed_bytes: int
    misplaced_bytes: int
    unknown_bytes: int
    by_node: Mapping[int, int]
    allowed: frozenset[int]
    drift_ratio: float | None
    drift_lower_ratio: float | None
    drift_upper_ratio: float | None
    tolerance_ratio: float
    share_error_ratio: float | None
    policy_match: bool | None
    drifting: bool
    cause: Cause | None = None
    detail: str = ""
    remedy: str = ""
    unknown_reason: str = ""


@dataclass(frozen=True, slots=True)
class VmDrift:
    """All of a VM's guest nodes."""

    vm: str
    guest_nodes: tuple[GuestNodeDrift, ...]

    @property
    def drifting(self) -> bool:
        """Whether any guest node drifts beyond its tolerance."""
        return any(node.drifting for node in self.guest_nodes)
