"""Drift per guest node, with its cause and remedy. Sizes in bytes, ratios from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cause(StrEnum):
    """Why memory is not where the spec, or its VMM's command line, wants it."""

    RESIDENT_BEFORE_POLICY = "resident before the policy"
    SPILLED = "spilled"
    POLICY_CHANGED = "policy changed"
    NODE_OFFLINE = "node offline"
    MOVABLE_ONLY = "movable-only"
    CPUSET = "cpuset"
    NO_INODE_POLICY = "kernel without inode policies"
    MOVED = "moved"
    SHARES = "shares off"
    NO_POLICY = "no policy set"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause, what was seen of it, and a way out."""

    cause: Cause
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class GuestNodeDrift:
    """A guest node's memory, declared against actual.

    placed + misplaced + unknown = resident. ``drift_ratio`` is misplaced/(placed+misplaced), None
    where nothing was seen or nothing ``declared``: no host node is asked for. Its bounds count the
    unknown either way. ``share_error_ratio`` is the largest share's distance from its weight
    (interleave modes only). ``policy_match`` is None where the policy can't be read, or none was
    asked for. ``drifting`` is the verdict: any kind of drift beyond the tolerance.

    ``sampled`` says that pages of it were drawn rather than all looked at: bytes and ratio are
    estimates, the bounds of the ratio and of each host node's bytes (``by_node_lower``,
    ``by_node_upper``) a 95 % interval's, also for host nodes where nothing was found;
    ``share_error_ratio`` is the least that the sample allows, and the verdict goes by lower bounds.
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
    by_node_lower: Mapping[int, int] = field(default_factory=dict)
    by_node_upper: Mapping[int, int] = field(default_factory=dict)
    sampled: bool = False
    declared: bool = True


@dataclass(frozen=True, slots=True)
class VmDrift:
    """All of a VM's guest nodes."""

    vm: str
    guest_nodes: tuple[GuestNodeDrift, ...]

    @property
    def drifting(self) -> bool:
        """Whether any guest node drifts beyond its tolerance."""
        return any(node.drifting for node in self.guest_nodes)
