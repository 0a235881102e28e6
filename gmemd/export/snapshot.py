"""What the daemon publishes: one frozen snapshot, and its JSON as the API and `--json` give it.

A snapshot is replaced whole; readers keep the reference they took. Sizes in bytes, times in
seconds since the epoch. In the JSON, field names are those of the VM spec, ``by_node`` is keyed by
host node as a string, and what isn't known is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from gmemd.export.where import by_node_to_json, where_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.audit.model import PolicyRead, RegionAudit, Sample, VmAudit
    from gmemd.drift.model import GuestNodeDrift, VmDrift
    from gmemd.host.model import Host, HostNode
    from gmemd.plan.model import RegionPlan, Strategy
    from gmemd.spec.model import Source

JSON_VERSION = 1


class VmState(StrEnum):
    """The states of a VM, in the order of its life."""

    WAITING = "waiting"
    PROVISIONING = "provisioning"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A region as planned and as it came out.

    ``strategy_achieved`` is None until the region exists; ``policy_outcome`` is the word for what
    the kernel made of the policy (empty where none was set).
    """

    plan: RegionPlan
    strategy_achieved: Strategy | None = None
    reason: str = ""
    policy_outcome: str = ""

    @property
    def strategy(self) -> Strategy:
        """The strategy in force: what was achieved, else what is planned."""
        return self.strategy_achieved or self.plan.strategy


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Memory of a running VMM that may be its guest's, and is none of what was declared.

    ``audit`` is None where it wasn't looked at.
    """

    size_bytes: int
    page_size: int
    backend: str
    why: str
    audit: RegionAudit | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """What is known of a VM that was found running, beyond its memory.

    ``program`` is its VMM's; ``kvm`` is None where it can't be seen whether it uses KVM.
    ``declared_by`` tells what places its memory, and is empty where nothing does. ``unknown`` is
    one word for why memory of it was not looked at (gmemd.audit.observed.Unknown), empty if all
    was.
    """

    pid: int
    program: str
    kvm: bool | None
    unit: str
    cgroup: str
    started_timestamp: float
    declared_by: str = ""
    unknown: str = ""
    unmatched: tuple[Unmatched, ...] = ()

    @property
    def unmatched_bytes(self) -> int:
        """How much memory there is that matches nothing declared."""
        return sum(piece.size_bytes for piece in self.unmatched)


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """The process that has a VM's memory; ``alive`` is False where it is kept for the next one."""

    pid: int
    since: float
    program: str = ""
    unit: str = ""
    alive: bool = True


@dataclass(frozen=True, slots=True)
class VmStatus:
    """One VM: its state since when and why, its regions, and the latest audit with its drift.

    ``source`` is None where only an unreadable spec is known of it; ``progress_ratio`` goes from 0
    to 1 while provisioning. ``spec_error`` says that the newest version of its file is broken (an
    older one may be in force). ``running`` is there for VMs that were found running, ``holder``
    while a process has memory that gmemd made or took in. ``inline``: its spec came with a call.
    """

    vm: str
    source: Source | None
    state: VmState
    since: float
    message: str = ""
    hint: str = ""
    uuid: str = ""
    spec_error: bool = False
    progress_ratio: float | None = None
    regions: tuple[RegionStatus, ...] = ()
    drift: VmDrift | None = None
    audit: VmAudit | None = None
    tolerance: float = 0.01
    warnings: tuple[str, ...] = ()
    running: Running | None = None
    holder: HolderStatus | None = None
    inline: bool = False

    @property
    def guest_nodes(self) -> tuple[int, ...]:
        """Numbers of the guest nodes that are planned or were audited, ascending."""
        seen = {region.plan.guest_node for region in self.regions}
        if self.drift is not None:
            seen.update(node.guest_node for node in self.drift.guest_nodes)
        return tuple(sorted(seen))

    @property
    def drifting(self) -> bool:
        """Whether the latest audit found drift beyond the tolerance."""
        return self.drift is not None and self.drift.drifting

    def regions_of(self, guest_node: int) -> tuple[RegionStatus, ...]:
        """The regions of one guest node, by index."""
        mine = [region for region in self.regions if region.plan.guest_node == guest_node]
        return tuple(sorted(mine, key=lambda region: region.plan.index))

    def drift_of(self, guest_node: int) -> GuestNodeDrift | None:
        """The drift of one guest node, or None before its first audit."""
        nodes = self.drift.guest_nodes if self.drift is not None else ()
        return next((node for node in nodes if node.guest_node == guest_node), None)

    def size_bytes_of(self, guest_node: int) -> int:
        """The size of one guest node."""
        regions = self.regions_of(guest_node)
        drift = self.drift_of(guest_node)
        if not regions and drift is not None:
            return drift.size_bytes
        return sum(region.plan.size_bytes for region in regions)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the daemon knows at one moment.

    ``version`` is gmemd's own. ``committed`` maps host nodes to placeable bytes promised to
    regions but not yet resident. ``unseen_processes`` may hold VMs and can't be looked into; None
    where nobody looked for running VMs. ``hidden_processes`` tells of those that can't even be
    known of, and is empty where there are none.
    """

    version: str
    taken_timestamp: float
    host: Host | None = None
    vms: tuple[VmStatus, ...] = ()
    committed: Mapping[int, int] = field(default_factory=dict)
    audit_interval_seconds: float = 60.0
    reload_successful: bool = True
    reload_success_timestamp: float = 0.0
    reload_message: str = ""
    unseen_processes: int | None = None
    hidden_processes: str = ""

    def vm(self, name: str) -> VmStatus | None:
        """The VM of that name, or None."""
        return next((vm for vm in self.vms if vm.vm == name), None)


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
        "audit": _audit_to_json(vm.audit) if vm.audit is not None else None,
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
    }


def _audit_of(vm: VmStatus, plan: RegionPlan) -> RegionAudit | None:
    regions = vm.audit.regions if vm.audit is not None else ()
    wanted = (plan.guest_node, plan.index)
    return next((seen for seen in regions if (seen.guest_node, seen.index) == wanted), None)


def _policy_to_json(policy: PolicyRead | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {"mode": policy.mode, "host_nodes": sorted(policy.nodes)}


def _sample_to_json(sample: Sample | None) -> dict[str, int] | None:
    if sample is None:
        return None
    return {"population": sample.population, "drawn": sample.drawn}


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


def _audit_to_json(audit: VmAudit) -> dict[str, Any]:
    counted = audit.counters
    return {
        "started_timestamp": audit.started_timestamp,
        "duration_seconds": audit.duration_seconds,
        "cpu_seconds": audit.cpu_seconds,
        "exact": all(region.exact for region in audit.regions),
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
