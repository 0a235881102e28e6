"""One region, declared against actual: the figures that a guest node's drift is summed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.drift.policy import (
    INTERLEAVING,
    TASK_RULED,
    holds_declared_policy,
    keeps_policy,
    memory_nodes,
    policy_matches,
)
from gmemd.drift.shares import expected_weights, least_share_error, share_error
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from gmemd.audit.model import PolicyRead, RegionAudit
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan


@dataclass(frozen=True, slots=True)
class RegionDrift:
    """One region's part of its guest node's drift. Sizes in bytes; of a sample, its estimates.

    ``wrong_policy`` is the first policy found that is not the plan's; ``rebound`` says that the
    policy was set again when there were pages already.
    """

    plan: RegionPlan
    audit: RegionAudit
    allowed: frozenset[int]
    placed_bytes: int
    misplaced_bytes: int
    share_error_ratio: float | None
    policy_match: bool | None
    wrong_policy: PolicyRead | None
    outcome: str
    rebound: bool

    @property
    def misplaced_by_node(self) -> dict[int, int]:
        """Bytes on host nodes outside the allowed ones."""
        return {n: b for n, b in sorted(self.audit.by_node.items()) if b and n not in self.allowed}


def is_declared(plan: RegionPlan) -> bool:
    """Whether anything is asked of where the region's pages are."""
    return bool(plan.host_nodes) or plan.policy not in TASK_RULED


def allowed_nodes(plan: RegionPlan, host: Host) -> frozenset[int]:
    """Where the region's pages may be: the host nodes asked for, or anywhere if there are none."""
    return plan.host_nodes if is_declared(plan) else memory_nodes(host)


def region_drift(
    plan: RegionPlan,
    audit: RegionAudit,
    host: Host,
    source: Source,
    outcome: str,
    *,
    rebound: bool,
) -> RegionDrift:
    """Compare one region's pages and policy with its plan."""
    allowed = allowed_nodes(plan, host)
    if not is_declared(plan):
        allowed = allowed.union(audit.by_node)
    placed = sum(held for node, held in audit.by_node.items() if node in allowed)
    seen = sum(audit.by_node.values())
    wrong = None
    match = None
    compared = (
        holds_declared_policy(plan, host)
        if source is Source.OBSERVE
        else keeps_policy(plan, host, outcome)
    )
    if audit.policy is not None and compared:
        read = (audit.policy, *audit.other_policies)
        wrong = next((held for held in read if not policy_matches(plan, held, host, source)), None)
        match = wrong is None
    return RegionDrift(
        plan=plan,
        audit=audit,
        allowed=allowed,
        placed_bytes=placed,
        misplaced_bytes=seen - placed,
        share_error_ratio=_share_error(plan, audit, host),
        policy_match=match,
        wrong_policy=wrong,
        outcome=outcome,
        rebound=rebound,
    )


def _share_error(plan: RegionPlan, audit: RegionAudit, host: Host) -> float | None:
    """How far the shares are off; of a sample, the least that it allows."""
    if plan.policy not in INTERLEAVING or not sum(audit.by_node.values()):
        return None
    weights = expected_weights(plan, host)
    if audit.sample is not None:
        return least_share_error(audit.sample, weights)
    return share_error(audit.by_node, weights, plan.page_size)
