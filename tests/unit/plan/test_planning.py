from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.plan import ledger as ledgers
from gmemd.plan.admission import Reserve
from gmemd.plan.ledger import commitments
from gmemd.plan.model import Strategy
from gmemd.plan.outlook import outlook
from gmemd.plan.planning import can_spill, plan_all, plan_vm
from tests.unit.plan.specs import GIB, MIB, region, vm

if TYPE_CHECKING:
    from gmemd.host.model import Host


def test_a_plan_has_every_region_in_the_specs_order(two_sockets: Host) -> None:
    plan = plan_vm(
        vm(
            (region(GIB, {0}), region(GIB, {0, 1}, "interleave", backend="memfd")),
            region(GIB, {1}, prefault=False),
        ),
        two_sockets,
    )
    assert [(part.guest_node, part.index) for part in plan.regions] == [(0, 0), (0, 1), (1, 0)]
    assert {part.vm for part in plan.regions} == {"vm"}
    assert all(part.strategy is Strategy.INODE_POLICY for part in plan.regions)
    assert [part.prefault for part in plan.regions] == [True, True, False]


def test_what_can_spill_leaves_its_room_to_what_cannot(two_sockets: Host) -> None:
    specs = [
        vm(region(40 * GIB, {1}, "preferred"), name="a"),
        vm(region(40 * GIB, {1}), name="b"),
    ]
    plans = plan_all(specs, two_sockets)
    assert [plan.spec.vm for plan in plans] == ["a", "b"]
    assert all(plan.admitted for plan in plans)
    assert plans[1].regions[0].demand == {1: 40 * GIB}
    assert plans[0].regions[0].demand[0] > 0
    assert [can_spill(spec) for spec in specs] == [True, False]


def test_what_is_observed_takes_nothing_and_names_nodes_that_are_there(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(500 * GIB, {0}), source="observe"), two_sockets)
    assert (plan.admitted, plan.regions, plan.warnings) == (True, (), ())
    (warning,) = plan_vm(vm(region(GIB, {7}), source="observe"), two_sockets).warnings
    assert "host node 7 is not there" in warning


@pytest.mark.parametrize("source", ["register", "adopt"])
def test_memory_that_a_vmm_brings_is_waited_for_and_takes_nothing(
    two_sockets: Host, source: str
) -> None:
    plan = plan_vm(vm(region(500 * GIB, {0}), source=source), two_sockets)
    assert plan.admitted
    assert plan.regions == ()
    assert plan.warnings == ()


def test_all_that_stands_against_a_vm_is_told_at_once(two_sockets: Host) -> None:
    plan = plan_vm(
        vm(region(GIB, {7}), region(500 * GIB, {0}), region(GIB, None, "local")), two_sockets
    )
    assert [refusal.reason for refusal in plan.refusals] == [
        "no-such-node",
        "no-node-named",
        "not-enough-memory",
    ]
    assert len(plan.regions) == 3


def test_what_is_not_placed_still_has_to_fit_somewhere(before_inode_policy: Host) -> None:
    lazy = vm(region(14 * GIB, {0}, prefault=False))
    plan = plan_vm(lazy, before_inode_policy)
    assert plan.admitted
    assert plan.regions[0].strategy is Strategy.UNMANAGED
    assert any("set prefault: true" in warning for warning in plan.warnings)


def test_memory_of_no_node_is_held_against_the_whole_host(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(GIB, None, "default", prefault=False)), two_sockets)
    assert plan.admitted
    assert plan.regions[0].demand == {}
    assert "no host_nodes" in plan.warnings[0]
    assert not plan_vm(vm(region(500 * GIB, None, "default", prefault=False)), two_sockets).admitted


def test_commitments_are_what_was_promised_and_is_not_there_yet(two_sockets: Host) -> None:
    plan = plan_vm(
        vm(region(4 * GIB, {1}), region(8 * MIB, {1}, backend="memfd", page_size=2 * MIB)),
        two_sockets,
    )
    promised = commitments(plan.regions, {("vm", 0, 0): {1: GIB}, ("vm", 1, 0): {1: 2 * MIB}})
    assert promised.committed == {1: 3 * GIB}
    assert promised.hugepages_committed == {(1, 2 * MIB): 3}
    spilled = commitments(plan.regions, {("vm", 0, 0): {0: 4 * GIB}})
    assert spilled.committed == {1: 4 * GIB}


def test_the_outlook_adds_up(two_sockets: Host) -> None:
    specs = [
        vm(region(4 * GIB, {1}), region(8 * MIB, {1}, backend="memfd", page_size=2 * MIB)),
        vm(region(500 * GIB, {1}), name="refused"),
    ]
    reserve = Reserve(0, GIB)
    plans = plan_all(specs, two_sockets, committed={1: GIB}, reserve=reserve)
    _, node = outlook(plans, two_sockets, committed={1: GIB}, reserve=reserve)
    assert node.demand_bytes == 4 * GIB
    assert node.demand_hugepages == {2 * MIB: 8 * MIB}
    assert node.left_bytes == node.available_bytes - GIB - GIB - 4 * GIB


def test_admission_costs_the_same_per_vm_however_many_there_are(
    two_sockets: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    room = ledgers.Ledger.room

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal looked
        looked += 1
        return room(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ledgers.Ledger, "room", counted)
    costs = []
    for n_vms in (50, 500):
        looked = 0
        specs = [
            vm(*(region(4 * MIB, {node}) for node in (0, 1, 0, 1)), name=str(number))
            for number in range(n_vms)
        ]
        plans = plan_all(specs, two_sockets)
        assert all(plan.admitted for plan in plans)
        costs.append(looked / n_vms)
    assert costs[0] == costs[1]
