"""Made-up VMs and a host, for what shows or judges them."""

from __future__ import annotations

from gmemd.audit.model import PolicyRead, RegionAudit, VmAudit
from gmemd.drift.model import Cause, GuestNodeDrift, VmDrift
from gmemd.export.snapshot import RegionStatus, VmState, VmStatus
from gmemd.host.model import Cpuset, Host, HostNode
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec

MIB = 1 << 20
GIB = 1 << 30


def host() -> Host:
    node = HostNode(
        id=0,
        cpus=frozenset({0}),
        distances={0: 10},
        total_bytes=8 * GIB,
        free_bytes=4 * GIB,
        placeable_bytes=8 * GIB,
        placeable_available_bytes=6 * GIB,
        placeable_free_bytes=4 * GIB,
        movable_bytes=0,
        movable_available_bytes=0,
    )
    return Host((node,), {}, Cpuset(frozenset({0}), frozenset({0})), frozenset({0}), "7.2.0")


def spec(name: str = "vm", **region: object) -> VmSpec:
    given = {"size_bytes": 8 * MIB, "host_nodes": frozenset({0}), "policy": PolicyMode.BIND}
    return VmSpec(
        vm=name,
        guest_nodes=(GuestNode(id=0, regions=(RegionSpec.model_validate(given | region),)),),
    )


def region_plan(guest_node: int = 0, *, size_bytes: int = 8 * MIB, nodes: int = 0) -> RegionPlan:
    return RegionPlan(
        vm="vm",
        guest_node=guest_node,
        index=0,
        size_bytes=size_bytes,
        backend=Backend.MEMFD,
        page_size=4096,
        policy=PolicyMode.BIND,
        host_nodes=frozenset({nodes}),
        strategy=Strategy.INODE_POLICY,
        reason="kept by the inode",
        prefault=True,
        demand={nodes: size_bytes},
    )


def guest_node_drift(
    guest_node: int, by_node: dict[int, int], allowed: set[int], *, unknown_bytes: int = 0
) -> GuestNodeDrift:
    placed = sum(size for node, size in by_node.items() if node in allowed)
    misplaced = sum(by_node.values()) - placed
    seen = placed + misplaced
    return GuestNodeDrift(
        guest_node=guest_node,
        size_bytes=seen + unknown_bytes,
        resident_bytes=seen + unknown_bytes,
        placed_bytes=placed,
        misplaced_bytes=misplaced,
        unknown_bytes=unknown_bytes,
        by_node=by_node,
        allowed=frozenset(allowed),
        drift_ratio=misplaced / seen if seen else None,
        drift_lower_ratio=0.0,
        drift_upper_ratio=1.0,
        tolerance_ratio=0.01,
        share_error_ratio=None,
        policy_match=True,
        drifting=bool(misplaced),
        cause=Cause.SPILLED if misplaced else None,
        detail="the node was full" if misplaced else "",
        remedy="free memory there" if misplaced else "",
        unknown_reason="private to the guest" if unknown_bytes else "",
    )


def audited_status(*drifts: GuestNodeDrift, state: VmState = VmState.READY) -> VmStatus:
    """A VM whose guest nodes are as the drifts say; by default two, well placed on node 0."""
    nodes = drifts or tuple(guest_node_drift(node, {0: 8 * MIB}, {0}) for node in (0, 1))
    plans = [region_plan(node.guest_node, nodes=min(node.allowed)) for node in nodes]
    audit = VmAudit(
        vm="vm",
        started_timestamp=1.0,
        duration_seconds=0.5,
        cpu_seconds=0.25,
        regions=tuple(
            RegionAudit(
                guest_node=node.guest_node,
                index=0,
                size_bytes=node.size_bytes,
                page_size=4096,
                resident_bytes=node.resident_bytes,
                by_node=node.by_node,
                unknown_bytes=node.unknown_bytes,
                policy=PolicyRead("bind", node.allowed),
            )
            for node in nodes
        ),
        counters={0: 16 * MIB},
        counters_cgroup="/sys/fs/cgroup/gmemd",
    )
    return VmStatus(
        vm="vm",
        source=Source.CREATE,
        state=state,
        since=1.0,
        regions=tuple(RegionStatus(plan, Strategy.INODE_POLICY, "kept by it") for plan in plans),
        drift=VmDrift("vm", tuple(nodes)),
        audit=audit,
    )
