"""Plan and audit in, drift out: per guest node, with its cause and a remedy. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.drift.bounds import drift_bounds, node_bounds
from gmemd.drift.cause import diagnose
from gmemd.drift.model import Diagnosis, GuestNodeDrift, VmDrift
from gmemd.drift.observed import BY_COMMAND_LINE, BY_SPEC, Around, diagnose_observed
from gmemd.drift.policy import memory_nodes
from gmemd.drift.region import RegionDrift, is_declared, region_drift
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gmemd.audit.model import VmAudit
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan, VmPlan
    from gmemd.spec.model import VmSpec

# A share is measured on pages that arrived by round-robin: below this it says nothing.
LEAST_SHARE_TOLERANCE = 0.01


def compute_drift(
    vm_plan: VmPlan,
    audit: VmAudit,
    host: Host,
    *,
    achieved: Mapping[tuple[int, int], str] | None = None,
    rebound: Collection[tuple[int, int]] = (),
) -> VmDrift:
    """Compare a VM's pages and policies with its plan.

    ``achieved`` gives, by (guest node, region index), the outcome word of the region's bind;
    ``rebound`` names the regions whose policy was set again when they had pages already.
    Regions that the audit doesn't hold are left out; a guest node without any counts as empty.
    """
    spec = vm_plan.spec
    outcomes = achieved or {}
    plans = {(plan.guest_node, plan.index): plan for plan in vm_plan.regions}
    regions = [
        region_drift(plan, found, host, spec.source, outcomes.get(key, ""), rebound=key in rebound)
        for found in audit.regions
        if (plan := plans.get(key := (found.guest_node, found.index)))
    ]
    return VmDrift(
        vm=spec.vm,
        guest_nodes=tuple(
            _guest_node(
                node.id,
                [plan for plan in vm_plan.regions if plan.guest_node == node.id],
                [region for region in regions if region.plan.guest_node == node.id],
                everywhere=regions,
                host=host,
                spec=spec,
            )
            for node in spec.guest_nodes
        ),
    )


def _guest_node(
    guest_node: int,
    plans: Sequence[RegionPlan],
    regions: Sequence[RegionDrift],
    *,
    everywhere: Sequence[RegionDrift],
    host: Host,
    spec: VmSpec,
) -> GuestNodeDrift:
    tolerance = spec.drift_tolerance
    placed = sum(region.placed_bytes for region in regions)
    misplaced = sum(region.misplaced_bytes for region in regions)
    unknown = sum(region.audit.unknown_bytes for region in regions)
    declared = any(map(is_declared, plans)) or not plans
    sampled = any(region.audit.sample is not None for region in regions)
    ratio, lower, upper = _ratios(regions, sampled=sampled) if declared else (None, None, None)
    errors = [r.share_error_ratio for r in regions if r.share_error_ratio is not None]
    share_error = max(errors, default=None)
    match = _all_match(region.policy_match for region in regions)
    by_node = _sum_by_node(regions)
    nodes = memory_nodes(host).union(by_node) if sampled else by_node
    by_node_lower, by_node_upper = node_bounds(regions, nodes)
    surest = lower if sampled else ratio
    drifting = (
        (surest is not None and surest > tolerance)
        or (share_error is not None and share_error > max(tolerance, LEAST_SHARE_TOLERANCE))
        or match is False
    )
    found = _diagnose_worst(regions, everywhere, host, spec) if drifting else None
    return GuestNodeDrift(
        guest_node=guest_node,
        size_bytes=sum(plan.size_bytes for plan in plans),
        resident_bytes=sum(region.audit.resident_bytes for region in regions),
        placed_bytes=placed,
        misplaced_bytes=misplaced,
        unknown_bytes=unknown,
        by_node=by_node,
        allowed=frozenset[int]().union(*(region.allowed for region in regions)),
        drift_ratio=ratio,
        drift_lower_ratio=lower,
        drift_upper_ratio=upper,
        tolerance_ratio=tolerance,
        share_error_ratio=share_error,
        policy_match=match,
        drifting=drifting,
        cause=found.cause if found else None,
        detail=found.detail if found else "",
        remedy=found.remedy if found else "",
        unknown_reason="; ".join(_unknown_reasons(regions)),
        by_node_lower=by_node_lower,
        by_node_upper=by_node_upper,
        sampled=sampled,
        declared=declared,
    )


def _ratios(
    regions: Sequence[RegionDrift], *, sampled: bool
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Drift ratio and the interval that samples and unknown leave it; None if nothing was seen."""
    misplaced = sum(region.misplaced_bytes for region in regions)
    unknown = sum(region.audit.unknown_bytes for region in regions)
    seen = misplaced + sum(region.placed_bytes for region in regions)
    if not seen:
        return None, None, None
    ratio = misplaced / seen
    bounds = drift_bounds(regions) if sampled else None
    if bounds is None:
        resident = seen + unknown
        return ratio, misplaced / resident, (misplaced + unknown) / resident
    return ratio, min(bounds.lower, ratio), max(bounds.upper, ratio)


def _all_match(matches: Iterable[bool | None]) -> bool | None:
    """True if all that can be read match, False if any doesn't, None if none can be read."""
    known = [match for match in matches if match is not None]
    return all(known) if known else None


def _sum_by_node(regions: Sequence[RegionDrift]) -> dict[int, int]:
    """Bytes per host node over all regions, ascending by node."""
    nodes = sorted({node for region in regions for node in region.audit.by_node})
    return {node: sum(region.audit.by_node.get(node, 0) for region in regions) for node in nodes}


def _unknown_reasons(regions: Sequence[RegionDrift]) -> list[str]:
    """Why bytes are unknown, each reason once, in the regions' order."""
    reasons = (region.audit.unknown_reason for region in regions if region.audit.unknown_bytes)
    return list(dict.fromkeys(reason for reason in reasons if reason))


def _diagnose_worst(
    regions: Sequence[RegionDrift],
    everywhere: Sequence[RegionDrift],
    host: Host,
    spec: VmSpec,
) -> Diagnosis:
    """Diagnose the region that drifts most: a wrong policy first, then bytes, then shares."""
    worst = max(
        regions,
        key=lambda region: (
            region.policy_match is False,
            region.misplaced_bytes,
            region.share_error_ratio or 0.0,
        ),
    )
    if spec.source is Source.OBSERVE:
        asked_by = BY_COMMAND_LINE if spec.path is None else BY_SPEC
        others = [region for region in everywhere if region is not worst]
        found = diagnose_observed(worst, Around(host, asked_by, _held(others), _astray(others)))
    else:
        found = diagnose(worst, host, spec.source)
    if len(regions) == 1:
        return found
    return Diagnosis(found.cause, f"region {worst.plan.index}: {found.detail}", found.remedy)


def _held(regions: Iterable[RegionDrift]) -> frozenset[int]:
    """Host nodes where regions have pages that were asked to be there."""
    return frozenset(
        node
        for region in regions
        for node, held in region.audit.by_node.items()
        if held and node in region.plan.host_nodes
    )


def _astray(regions: Iterable[RegionDrift]) -> frozenset[int]:
    """Host nodes where regions have pages that were asked to be elsewhere."""
    return frozenset(node for region in regions for node in region.misplaced_by_node)
