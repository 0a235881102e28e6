"""The snapshot's JSON, as the API and `--json` give it.

Field names are those of the VM spec, ``by_node`` is keyed by host node as a string, and what isn't
known is null. Sizes in bytes, times in seconds since the epoch.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from gmemd.export.snapshot import VmStatus
from gmemd.export.where import by_node_to_json, where_to_json

if TYPE_CHECKING:
    from gmemd.audit.model import PolicyRead, RegionAudit, Sample, VmAudit
    from gmemd.drift.model import GuestNodeDrift
    from gmemd.export.snapshot import HolderStatus, RegionStatus, Running, Snapshot, Unmatched
    from gmemd.host.model import HostNode
    from gmemd.plan.model import RegionPlan

JSON_VERSION = 1


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Everything, as `gmemd status --json` prints it."""
    nodes = snapshot.host.nodes if snapshot.host is not None else ()
    return {
        "version": JSON_VERSION,
        "gmemd_version": snapshot.version,
        "taken_timestamp": snapshot.taken_timestamp,
        "reload_successful": snapshot.reload_successful,
        "reload_message": snapshot.reload_message,
        "audit_interval_seconds": snapshot.audit_interval_seconds,
        "unseen_processes": snapshot.unseen_processes,
        "hidden_processes": snapshot.hidden_processes or None,
        "host_nodes": [
            _host_node_to_json(node, snapshot.committed.get(node.id, 0)) for node in nodes
        ],
        "vms": [vm_to_json(vm) for vm in snapshot.vms],
    }


def vm_to_json(vm: VmStatus) -> dict[str, Any]:
    """One VM, as `gmemd status VM --json` prints it."""
    return {
        "version": JSON_VERSION,
        "vm": vm.vm,
        "source": str(vm.source) if vm.source is not None else None,
        "uuid": vm.uuid or None,
        "state": str(vm.state),
        "since": vm.since,
        "message": vm.message,
        "hint": vm.hint,
        "warnings": list(vm.warnings),
        "spec_error": vm.spec_error,
        "progress_ratio": vm.progress_ratio,
        "drift_tolerance": vm.tolerance,
        "drifting": vm.drifting if vm.drift is not None else None,
        "guest_nodes": [_guest_node_to_json(vm, node) for node in vm.guest_nodes],
        "audit": _audit_to_json(vm, vm.audit) if vm.audit is not None else None,
        "running": _running_to_json(vm.running) if vm.running is not None else None,
        "holder": _holder_to_json(vm.holder) if vm.holder is not None else None,
        "inline": vm.inline,
        "public": False,
    }


def public_to_json(vm: VmStatus) -> dict[str, Any]:
    """The part of a VM that everybody may see: that there is one, and in which state."""
    shown = VmStatus(vm=vm.vm, source=vm.source, state=vm.state, since=vm.since, tolerance=0.0)
    return vm_to_json(shown) | {"public": True}


def _holder_to_json(holder: HolderStatus) -> dict[str, Any]:
    return {
        "pid": holder.pid,
        "since": holder.since,
        "program": holder.program or None,
        "unit": holder.unit or None,
        "alive": holder.alive,
    }


def _running_to_json(running: Running) -> dict[str, Any]:
    return {
        "pid": running.pid,
        "program": running.program,
        "kvm": running.kvm,
        "unit": running.unit or None,
        "cgroup": running.cgroup,
        "started_timestamp": running.started_timestamp,
        "declared_by": running.declared_by or None,
        "unknown": running.unknown or None,
        "unmatched": [_unmatched_to_json(piece) for piece in running.unmatched],
    }


def _unmatched_to_json(piece: Unmatched) -> dict[str, Any]:
    seen = piece.audit
    return {
        "size": piece.size_bytes,
        "backend": piece.backend,
        "page_size": piece.page_size,
        "why": piece.why,
        "resident": seen.resident_bytes if seen is not None else None,
        "unknown": seen.unknown_bytes if seen is not None else None,
        "by_node": by_node_to_json(seen.by_node) if seen is not None else None,
        "sampled": seen is not None and seen.sample is not None,
    }


def _host_node_to_json(node: HostNode, committed_bytes: int) -> dict[str, Any]:
    return {
        "id": node.id,
        "memory": node.total_bytes,
        "placeable": node.placeable_bytes,
        "placeable_available": node.placeable_available_bytes,
        "committed": committed_bytes,
        "movable_only": node.movable_only,
    }


def _guest_node_to_json(vm: VmStatus, guest_node: int) -> dict[str, Any]:
    drift = vm.drift_of(guest_node)
    regions = vm.regions_of(guest_node)
    starts = accumulate((region.plan.size_bytes for region in regions), initial=0)
    return {
        "id": guest_node,
        "memory": vm.size_bytes_of(guest_node),
        "regions": [_region_to_json(vm, *pair) for pair in zip(regions, starts, strict=False)],
        "drift": _drift_to_json(drift) if drift is not None else None,
    }


def _region_to_json(vm: VmStatus, region: RegionStatus, start: int) -> dict[str, Any]:
    """A region that begins ``start`` bytes into its guest node."""
    plan = region.plan
    audited = _audit_of(vm, plan)
    where = audited.where if audited is not None else None
    return {
        "index": plan.index,
        "size": plan.size_bytes,
        "backend": str(plan.backend),
        "page_size": plan.page_size,
        "policy": str(plan.policy),
        "host_nodes": sorted(plan.host_nodes),
        "prefault": plan.prefault,
        "strategy": str(region.strategy),
        "strategy_planned": str(plan.strategy),
        "reason": region.reason or plan.reason,
        "policy_outcome": region.policy_outcome or None,
        "resident": audited.resident_bytes if audited is not None else None,
        "by_node": by_node_to_json(audited.by_node) if audited is not None else None,
        "policy_read": _policy_to_json(audited.policy) if audited is not None else None,
        "sample": _sample_to_json(audited.sample) if audited is not None else None,
        "where": where_to_json(where, start) if where is not None else None,
        "verified_timestamp": audited.verified_timestamp if audited is not None else None,
    }


def _audit_of(vm: VmStatus, plan: RegionPlan) -> RegionAudit | None:
    regions = vm.audit.regions if vm.audit is not None else ()
    wanted = (plan.guest_node, plan.index)
    return next((seen for seen in regions if (seen.guest_node, seen.index) == wanted), None)


def _policy_to_json(policy: PolicyRead | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {"mode": policy.mode, "host_nodes": sorted(policy.nodes)}


def _sample_to_json(sample: Sample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    return {
        "population": sample.population,
        "drawn": sample.drawn,
        "confidence": sample.confidence,
        "margin": sample.margin,
    }


def _drift_to_json(drift: GuestNodeDrift) -> dict[str, Any]:
    return {
        "drifting": drift.drifting,
        "resident": drift.resident_bytes,
        "placed": drift.placed_bytes,
        "misplaced": drift.misplaced_bytes,
        "unknown": drift.unknown_bytes,
        "by_node": by_node_to_json(drift.by_node),
        "by_node_lower": by_node_to_json(drift.by_node_lower),
        "by_node_upper": by_node_to_json(drift.by_node_upper),
        "sampled": drift.sampled,
        "declared": drift.declared,
        "host_nodes_allowed": sorted(drift.allowed),
        "drift_ratio": drift.drift_ratio,
        "drift_lower_ratio": drift.drift_lower_ratio,
        "drift_upper_ratio": drift.drift_upper_ratio,
        "drift_tolerance": drift.tolerance_ratio,
        "share_error_ratio": drift.share_error_ratio,
        "policy_match": drift.policy_match,
        "cause": str(drift.cause) if drift.cause is not None else None,
        "detail": drift.detail,
        "remedy": drift.remedy,
        "unknown_reason": drift.unknown_reason,
    }


def _audit_to_json(vm: VmStatus, audit: VmAudit) -> dict[str, Any]:
    counted = audit.counters
    return {
        "started_timestamp": audit.started_timestamp,
        "duration_seconds": audit.duration_seconds,
        "cpu_seconds": audit.cpu_seconds,
        "exact": all(region.exact for region in audit.regions),
        "verified_timestamp": vm.verified_timestamp_of(),
        "errors": _sum_errors(audit),
        "counters": by_node_to_json(counted) if counted is not None else None,
        "counters_cgroup": audit.counters_cgroup or None,
    }


def _sum_errors(audit: VmAudit) -> dict[str, int]:
    errors: dict[str, int] = {}
    for region in audit.regions:
        for reason, count in region.errors.items():
            errors[reason] = errors.get(reason, 0) + count
    return errors
