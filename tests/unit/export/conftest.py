"""A snapshot of a four-node host with a placed, a drifting, a waiting and a broken VM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gmemd.audit.model import PolicyRead, RegionAudit, VmAudit
from gmemd.drift.model import Cause, GuestNodeDrift, VmDrift
from gmemd.export.snapshot import RegionStatus, Snapshot, VmState, VmStatus
from gmemd.host.model import Cpuset, Feature, Host, HostNode, HugepagePool
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode, Source

MIB = 1 << 20
HUGE = 2 * MIB


def host_node(node_id: int, *, total_bytes: int = 1024 * MIB) -> HostNode:
    return HostNode(
        id=node_id,
        cpus=frozenset({0, 1}) if node_id == 0 else frozenset(),
        distances={node: 10 if node == node_id else 20 for node in range(4)},
        total_bytes=total_bytes,
        free_bytes=total_bytes // 2,
        placeable_bytes=total_bytes,
        placeable_available_bytes=total_bytes // 2,
        placeable_free_bytes=total_bytes // 4,
        movable_bytes=0,
        movable_available_bytes=0,
        hugepages={HUGE: HugepagePool(page_size=HUGE, total=8, free=3, surplus=0)},
    )


@pytest.fixture
def host() -> Host:
    return Host(
        nodes=(host_node(0), host_node(1), host_node(2), host_node(3, total_bytes=0)),
        features={
            "guest_memfd": Feature("guest_memfd", supported=True),
            "inode_policy": Feature("inode_policy", supported=False),
            "cachestat": Feature("cachestat", supported=None),
        },
        cpuset=Cpuset(frozenset({0, 1, 2}), frozenset({0, 1})),
        possible_nodes=frozenset(range(4)),
        kernel_release="7.2.0",
    )


def region_plan(vm: str, guest_node: int, nodes: set[int], policy: PolicyMode) -> RegionPlan:
    return RegionPlan(
        vm=vm,
        guest_node=guest_node,
        index=0,
        size_bytes=256 * MIB,
        backend=Backend.GUEST_MEMFD,
        page_size=4096,
        policy=policy,
        host_nodes=frozenset(nodes),
        strategy=Strategy.INODE_POLICY,
        reason="the kernel keeps the policy on the inode",
        prefault=True,
    )


def node_drift(guest_node: int, by_node: dict[int, int], allowed: set[int]) -> GuestNodeDrift:
    resident = sum(by_node.values())
    misplaced = sum(size for node, size in by_node.items() if node not in allowed)
    ratio = misplaced / resident if resident else None
    return GuestNodeDrift(
        guest_node=guest_node,
        size_bytes=256 * MIB,
        resident_bytes=resident,
        placed_bytes=resident - misplaced,
        misplaced_bytes=misplaced,
        unknown_bytes=0,
        by_node=by_node,
        allowed=frozenset(allowed),
        drift_ratio=ratio,
        drift_lower_ratio=ratio,
        drift_upper_ratio=ratio,
        tolerance_ratio=0.01,
        share_error_ratio=None,
        policy_match=True,
        drifting=misplaced > 0,
        cause=Cause.SPILLED if misplaced else None,
        detail=f"{misplaced} bytes spilled" if misplaced else "",
        remedy="make room on host node 1" if misplaced else "",
    )


def audit_of(vm: str, by_node: dict[int, int]) -> VmAudit:
    region = RegionAudit(
        guest_node=0,
        index=0,
        size_bytes=256 * MIB,
        page_size=4096,
        resident_bytes=sum(by_node.values()),
        by_node=by_node,
        policy=PolicyRead("preferred", frozenset({1})),
        errors={"poisoned": 2},
        pages_seen=65536,
        verified_timestamp=990.0,
    )
    return VmAudit(
        vm=vm,
        started_timestamp=1000.0,
        duration_seconds=0.25,
        cpu_seconds=0.125,
        regions=(region,),
        counters={1: 256 * MIB},
        counters_cgroup="/gmemd.slice/gmemd.service",
    )


@pytest.fixture
def placed() -> VmStatus:
    by_node = {0: 256 * MIB}
    return VmStatus(
        vm="web-01",
        source=Source.CREATE,
        state=VmState.READY,
        since=900.0,
        regions=(RegionStatus(region_plan("web-01", 0, {0}, PolicyMode.BIND)),),
        drift=VmDrift("web-01", (node_drift(0, by_node, {0}),)),
        audit=audit_of("web-01", by_node),
    )


@pytest.fixture
def drifting() -> VmStatus:
    by_node = {1: 192 * MIB, 2: 64 * MIB}
    plan = region_plan("db-01", 0, {1}, PolicyMode.PREFERRED)
    return VmStatus(
        vm="db-01",
        source=Source.CREATE,
        state=VmState.DEGRADED,
        since=950.0,
        regions=(
            RegionStatus(plan, strategy_achieved=Strategy.PROXY_ALLOCATION, reason="flags=0"),
        ),
        drift=VmDrift("db-01", (node_drift(0, by_node, {1}),)),
        audit=audit_of("db-01", by_node),
    )


@pytest.fixture
def waiting() -> VmStatus:
    return VmStatus(
        vm="late",
        source=Source.REGISTER,
        state=VmState.WAITING,
        since=900.0,
        message="waiting for its VMM",
        regions=(RegionStatus(region_plan("late", 0, {0}, PolicyMode.BIND)),),
    )


@pytest.fixture
def broken() -> VmStatus:
    return VmStatus(
        vm="<broken>",
        source=None,
        state=VmState.FAILED,
        since=900.0,
        message="broken.yaml:3:1: vm: <b>bad</b>",
        spec_error=True,
    )


@pytest.fixture
def snapshot(
    host: Host, placed: VmStatus, drifting: VmStatus, waiting: VmStatus, broken: VmStatus
) -> Snapshot:
    return Snapshot(
        version="0.1.0",
        taken_timestamp=1001.0,
        host=host,
        vms=(placed, drifting, waiting, replace(broken, vm="broken")),
        committed={1: 64 * MIB},
        audit_interval_seconds=60.0,
        reload_successful=True,
        reload_success_timestamp=800.0,
    )
