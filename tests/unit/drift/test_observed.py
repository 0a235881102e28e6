"""What is said of a running VM depends on its other guest nodes, and on who asked."""

from __future__ import annotations

from gmemd.audit.model import RegionAudit, VmAudit
from gmemd.drift.compute import compute_drift
from gmemd.drift.model import Cause, GuestNodeDrift
from gmemd.plan.model import RegionPlan, Strategy, VmPlan
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec
from tests.unit.drift.cases import MIB, make_host

SIZE = 64 * MIB


def drift(
    *nodes: tuple[int, int], policy: PolicyMode = PolicyMode.BIND, path: str | None = None
) -> list[GuestNodeDrift]:
    """Guest nodes as (host node asked for, host node that has all of it)."""
    plans = tuple(
        RegionPlan(
            vm="vm",
            guest_node=number,
            index=0,
            size_bytes=SIZE,
            backend=Backend.ANONYMOUS,
            page_size=4096,
            policy=policy,
            host_nodes=frozenset({asked}),
            strategy=Strategy.UNMANAGED,
            reason="",
            prefault=False,
        )
        for number, (asked, _) in enumerate(nodes)
    )
    spec = VmSpec(
        vm="vm",
        source=Source.OBSERVE,
        path=path,
        guest_nodes=tuple(
            GuestNode(id=number, regions=(RegionSpec(size_bytes=SIZE),))
            for number in range(len(nodes))
        ),
    )
    regions = tuple(
        RegionAudit(number, 0, SIZE, 4096, SIZE, {held: SIZE})
        for number, (_, held) in enumerate(nodes)
    )
    audit = VmAudit("vm", 0.0, 0.0, 0.0, regions)
    return list(compute_drift(VmPlan(spec, plans), audit, make_host()).guest_nodes)


def test_pages_are_moved_back_where_nothing_else_is() -> None:
    astray, well = drift((0, 2), (1, 1))
    assert astray.remedy.startswith("move its pages back (migratepages")
    assert "from node 2 to node 0" in astray.remedy
    assert not well.drifting


def test_no_move_is_advised_that_takes_another_guest_node_along() -> None:
    astray, _ = drift((0, 1), (1, 1))
    assert astray.cause is Cause.MOVED
    assert "would take memory of another guest node along, which belongs on node 1" in astray.remedy
    assert "move its pages back" not in astray.remedy


def test_no_move_is_advised_that_mixes_guest_nodes() -> None:
    for node in drift((0, 1), (1, 0)):
        assert "migratepages can't tell them apart" in node.remedy
        assert "move its pages back" not in node.remedy
    first, second = drift((0, 1), (1, 3))
    assert "from node 1 to node 0" in first.remedy
    assert "another guest node's memory is on node 1" in second.remedy


def test_a_spec_is_not_called_a_command_line() -> None:
    (astray,) = drift((0, 1), path="/etc/gmemd/vms.d/vm.yaml")
    assert "its spec asks bind 0" in astray.detail
    assert "command line" not in astray.detail + astray.remedy


def test_what_a_spec_expects_without_a_policy() -> None:
    (astray,) = drift((0, 1), policy=PolicyMode.DEFAULT, path="/etc/gmemd/vms.d/vm.yaml")
    assert astray.cause is Cause.NO_POLICY
    assert "its spec expects node 0 without a policy" in astray.detail
    assert "cpuset" not in astray.detail
