"""One region, declared against actual: the figures that a guest node's drift is summed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.drift.policy import (
    INTERLEAVING,
    TASK_RULED,
    keeps_policy,
    memory_nodes,
    policy_matches,
)
from gmemd.drift.shares import expected_weights, share_error

if TYPE_CHECKING:
    from gmemd.audit.model import PolicyRead, RegionAudit
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan


@dataclass(frozen=True, slots=True)
class RegionDrift:
    """One region's part of its guest node's drift. Sizes in bytes.

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


def allowed_nodes(plan: RegionPlan, host: Host) -> frozenset[int]:
    """Where the region's pages may be: the spec's host nodes, or anywhere if it names none."""
    if plan.host_nodes or plan.policy not in TASK_RULED:
        return plan.host_nodes
    return memory_nodes(host)


def region_drift(
    plan: RegionPlan, audit: RegionAudit, host: Host, outcome: str, *, rebound: bool
) -> RegionDrift:
    """Compare one region's pages and policy with its plan."""
    allowed = allowed_nodes(plan, host)
    placed = sum(held for node, held in audit.by_node.items() if node in allowed)
    seen = sum(audit.by_node.values())
    error = None
    if plan.policy in INTERLEAVING and seen:
        error = share_error(audit.by_node, expected_weights(plan, host), plan.page_size)
    wrong = None
    match = None
    if audit.policy is not None and keeps_policy(plan, host, outcome):
        read = (audit.policy, *audit.other_policies)
        wrong = next((policy for policy in read if not policy_matches(plan, policy, host)), None)
        match = wrong is None
    return RegionDrift(
        plan=plan,
        audit=audit,
        allowed=allowed,
        placed_bytes=placed,
        misplaced_bytes=seen - placed,
        share_error_ratio=error,
        policy_match=match,
        wrong_policy=wrong,
        outcome=outcome,
        rebound=rebound,
    )
