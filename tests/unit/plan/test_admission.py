from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.plan.admission import Reserve, nearest_first, shares
from gmemd.plan.planning import plan_all, plan_vm
from tests.unit.plan.specs import GIB, MIB, region, vm

if TYPE_CHECKING:
    from gmemd.host.model import Host

NO_RESERVE = Reserve(0, 0)


def available(host: Host, node: int) -> int:
    found = host.node(node)
    assert found is not None
    return found.placeable_available_bytes


@pytest.mark.parametrize(("panic_on_oom", "times"), [(0, 1), (1, 1), (2, 2)])
def test_the_reserve_is_a_share_and_never_less_than_the_minimum(
    two_sockets: Host, panic_on_oom: int, times: int
) -> None:
    """Of a host that would panic where the OOM killer takes the helper elsewhere, twice of it."""
    host = replace(two_sockets, panic_on_oom=panic_on_oom)
    reserve = Reserve(0.02, 256 * MIB)
    assert reserve.bytes_of(100 * GIB, host) == times * 2 * GIB
    assert reserve.bytes_of(GIB, host) == times * 256 * MIB
    assert reserve.bytes_of(0, host) == 0


def test_a_bind_takes_from_its_node(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(8 * GIB, {1})), two_sockets)
    assert plan.admitted
    assert plan.warnings == ()
    assert plan.regions[0].demand == {1: 8 * GIB}


def test_a_bind_fits_to_the_page_and_not_a_page_more(two_sockets: Host) -> None:
    left = available(two_sockets, 1) - Reserve().bytes_of(64 * GIB, two_sockets) - 3 * GIB
    left -= left % 4096
    promised = {1: 3 * GIB}
    assert plan_vm(vm(region(left, {1})), two_sockets, committed=promised).admitted
    refused = plan_vm(vm(region(left + 4096, {1})), two_sockets, committed=promised)
    (refusal,) = refused.refusals
    assert refusal.reason == "not-enough-memory"
    assert refusal.host_nodes == {1}
    assert refusal.needed_bytes == left + 4096
    assert refusal.available_bytes == available(two_sockets, 1)
    assert refusal.committed_bytes == 3 * GIB
    assert refusal.reserve_bytes == Reserve().bytes_of(64 * GIB, two_sockets)


def test_a_refusal_gives_all_figures_and_a_way_out(two_sockets: Host) -> None:
    (refusal,) = plan_vm(
        vm(region(64 * GIB, {1})), two_sockets, committed={1: 2 * GIB}, reserve=Reserve(0, GIB)
    ).refusals
    assert refusal.message == (
        "guest node 0 needs 64GiB on host node 1, 6.25GiB more than it has left "
        "(node 1: 60.75GiB placeable available - 2GiB committed - 1GiB reserve = 57.75GiB)"
    )
    assert refusal.hint == (
        "give the VM less memory, name another or one more host node, or free some there"
    )


def test_what_fits_only_without_the_page_cache_is_admitted_with_a_warning(
    two_sockets: Host,
) -> None:
    plan = plan_vm(vm(region(10 * GIB, {0})), two_sockets)
    assert plan.admitted
    assert plan.warnings == (
        (
            "guest node 0: host node 0 will drop 5.27GiB of clean page cache to hold 10GiB "
            "(4.73GiB is free)"
        ),
    )


def test_a_bind_to_several_nodes_fills_the_nearest_first(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(60 * GIB, {0, 1})), two_sockets, reserve=NO_RESERVE)
    assert plan.admitted
    demand = plan.regions[0].demand
    assert sum(demand.values()) == 60 * GIB
    assert available(two_sockets, 0) - demand[0] < 4096


def test_a_bind_to_several_nodes_needs_them_together(two_sockets: Host) -> None:
    (refusal,) = plan_vm(vm(region(120 * GIB, {0, 1})), two_sockets).refusals
    assert refusal.host_nodes == {0, 1}
    assert refusal.message.startswith("guest node 0 needs 120GiB on host nodes 0-1, ")
    assert "more than they have left (node 0: " in refusal.message
    assert "; node 1: " in refusal.message


def test_regions_with_the_least_choice_are_served_first(two_sockets: Host) -> None:
    spec = vm(region(40 * GIB, {0, 1}), region(40 * GIB, {0}))
    plan = plan_vm(spec, two_sockets)
    assert plan.admitted
    assert plan.regions[1].demand == {0: 40 * GIB}
    assert [region.guest_node for region in plan.regions] == [0, 1]


def test_interleaving_takes_equal_parts(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(8 * GIB + 4096, {0, 1}, "interleave")), two_sockets)
    assert plan.regions[0].demand == {0: 4 * GIB + 4096, 1: 4 * GIB}


def test_interleaving_is_refused_by_the_node_that_lacks_its_share(two_sockets: Host) -> None:
    (refusal,) = plan_vm(vm(region(90 * GIB, {0, 1}, "interleave")), two_sockets).refusals
    assert refusal.host_nodes == {0}
    assert "needs 45GiB on host node 0 as its share" in refusal.message


def test_weighted_interleaving_goes_by_the_hosts_weights(cxl: Host) -> None:
    spec = vm(region(12 * GIB, {0, 1, 2}, "weighted-interleave", backend="memfd"))
    assert plan_vm(spec, cxl).regions[0].demand == {0: 5 * GIB, 1: 5 * GIB, 2: 2 * GIB}


@given(pages=st.integers(1, 1 << 20), nodes=st.sets(st.integers(0, 2), min_size=1))
def test_shares_add_up_in_whole_pages(cxl: Host, pages: int, nodes: set[int]) -> None:
    for policy in ("interleave", "weighted-interleave"):
        parts = shares(region(pages * 4096, nodes, policy), cxl)
        assert sum(parts.values()) == pages * 4096
        assert all(part % 4096 == 0 for part in parts.values())


def test_a_preference_spills_with_a_warning(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(50 * GIB, {0}, "preferred")), two_sockets)
    assert plan.admitted
    assert sum(plan.regions[0].demand.values()) == 50 * GIB
    assert set(plan.regions[0].demand) == {0, 1}
    assert "to node 1 to spill" in plan.warnings[0]


def test_a_preference_is_refused_where_the_whole_host_lacks_it(two_sockets: Host) -> None:
    (refusal,) = plan_vm(vm(region(500 * GIB, {0}, "preferred")), two_sockets).refusals
    assert refusal.host_nodes == {0, 1}


def test_memfd_may_be_movable_and_guest_memfd_may_not(cxl: Host) -> None:
    assert plan_vm(vm(region(40 * GIB, {2}, backend="memfd")), cxl).admitted
    (refusal,) = plan_vm(vm(region(GIB, {2})), cxl).refusals
    assert refusal.reason == "movable-only"


def test_huge_pages_come_from_their_nodes_pool(two_sockets: Host) -> None:
    spec = vm(region(GIB, {1}, backend="memfd", page_size=2 * MIB))
    plan = plan_vm(spec, two_sockets)
    assert plan.admitted
    assert plan.regions[0].demand == {1: GIB}
    assert plan.regions[0].prefault
    (refusal,) = plan_vm(spec, two_sockets, hugepages_committed={(1, 2 * MIB): 12}).refusals
    assert refusal.reason == "not-enough-hugepages"
    assert refusal.message == (
        "guest node 0 needs 1GiB on host node 1, 24MiB more than it has left "
        "(node 1: 1GiB free 2MiB pages - 24MiB committed = 1000MiB)"
    )
    assert refusal.hint.startswith(
        "add 12 huge pages: raise "
        "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages by 12"
    )


def test_huge_pages_that_mappings_reserved_are_nobodys(cxl: Host) -> None:
    fits = vm(region(6 * GIB, {2}, backend="memfd", page_size=2 * MIB))
    assert plan_vm(fits, cxl).admitted
    (refusal,) = plan_vm(vm(region(7 * GIB, {2}, backend="memfd", page_size=2 * MIB)), cxl).refusals
    assert "the whole host has 6GiB in such pages left (1024 of the free ones are reserved" in (
        refusal.message
    )


def test_small_pages_and_huge_pages_are_told_apart(two_sockets: Host) -> None:
    spec = vm(region(GIB, {1}, backend="memfd", page_size=2 * MIB), region(GIB, {1}))
    assert plan_vm(spec, two_sockets).admitted


def test_each_vm_is_planned_beside_those_before_it_and_a_refused_one_takes_nothing(
    two_sockets: Host,
) -> None:
    specs = [
        vm(region(40 * GIB, {1}), name="a"),
        vm(region(40 * GIB, {1}), name="b"),
        vm(region(10 * GIB, {1}), name="c"),
        vm(region(10 * GIB, {1}), name="d"),
    ]
    plans = plan_all(specs, two_sockets)
    assert [plan.admitted for plan in plans] == [True, False, True, False]
    assert plans[1].refusals[0].committed_bytes == 40 * GIB


@given(
    st.lists(
        st.tuples(
            st.integers(1, 30),
            st.sets(st.integers(0, 1), min_size=1),
            st.sampled_from(["bind", "interleave", "preferred", "preferred-many"]),
            st.sampled_from(["guest_memfd", "memfd"]),
        ),
        max_size=12,
    )
)
def test_no_node_is_ever_promised_more_than_it_can_give(
    two_sockets: Host, asked: list[tuple[int, set[int], str, str]]
) -> None:
    specs = [
        vm(region(gib * GIB, nodes, policy, backend=backend), name=str(number))
        for number, (gib, nodes, policy, backend) in enumerate(asked)
    ]
    promised = {0: 0, 1: 0}
    for plan in plan_all(specs, two_sockets):
        for part in plan.regions if plan.admitted else ():
            assert sum(part.demand.values()) == part.size_bytes
            for node, size_bytes in part.demand.items():
                promised[node] += size_bytes
    for node, size_bytes in promised.items():
        assert size_bytes <= available(two_sockets, node) - Reserve().bytes_of(
            64 * GIB, two_sockets
        )


@pytest.mark.parametrize(("nodes", "order"), [({0, 2}, (0, 2)), ({1, 2}, (1, 2)), ({2}, (2,))])
def test_the_nearest_is_counted_from_a_node_with_cpus(
    cxl: Host, nodes: set[int], order: tuple[int, ...]
) -> None:
    assert nearest_first(frozenset(nodes), cxl) == order
