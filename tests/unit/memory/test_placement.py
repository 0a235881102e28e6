from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from gmemd.host.model import Cpuset, Host, HostNode
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.placement import MOST_THREADS, cpus_beside, guard_of, task_policy, threads_for
from gmemd.memory.prefaulting import disjoint
from gmemd.plan.admission import Reserve
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode

MIB = 1 << 20
DISTANCES = {
    0: (10, 21, 31, 41),
    1: (21, 10, 41, 31),
    2: (31, 41, 10, 51),
    5: (41, 31, 51, 10),
}
NUMBERS = (0, 1, 2, 5)


def node(number: int, cpus: set[int], movable_bytes: int = 0) -> HostNode:
    placeable = 0 if movable_bytes else 1024 * MIB
    return HostNode(
        id=number,
        cpus=frozenset(cpus),
        distances=dict(zip(NUMBERS, DISTANCES[number], strict=True)),
        total_bytes=placeable + movable_bytes,
        free_bytes=0,
        placeable_bytes=placeable,
        placeable_available_bytes=0,
        placeable_free_bytes=0,
        movable_bytes=movable_bytes,
        movable_available_bytes=0,
        interleave_weight=3 if number == 1 else 1,
    )


HOST = Host(
    nodes=(node(0, {0, 1}), node(1, {2, 3}), node(2, set()), node(5, set(), 2048 * MIB)),
    features={},
    cpuset=Cpuset(frozenset(NUMBERS), frozenset(range(4))),
    possible_nodes=frozenset(range(8)),
    kernel_release="7.2",
)
RESERVE = Reserve(ratio=0.02, minimum_bytes=8 * MIB)


def plan(
    policy: PolicyMode,
    nodes: set[int],
    *,
    backend: Backend = Backend.GUEST_MEMFD,
    page_size: int = 4096,
) -> RegionPlan:
    return RegionPlan(
        vm="db-01",
        guest_node=0,
        index=0,
        size_bytes=64 * MIB,
        backend=backend,
        page_size=page_size,
        policy=policy,
        host_nodes=frozenset(nodes),
        strategy=Strategy.INODE_POLICY,
        reason="",
        prefault=True,
    )


@pytest.mark.parametrize(
    ("nodes", "cpus"),
    [({0}, {0, 1}), ({0, 1}, {0, 1, 2, 3}), ({2}, {0, 1}), ({5}, {2, 3}), ({1, 2}, {2, 3})],
)
def test_the_cpus_beside_nodes_are_theirs_or_the_nearest_ones(
    nodes: set[int], cpus: set[int]
) -> None:
    assert cpus_beside(frozenset(nodes), HOST) == cpus


def test_a_policy_on_the_inode_leaves_the_helper_its_default() -> None:
    bind = plan(PolicyMode.BIND, {2})
    assert task_policy(bind, Strategy.INODE_POLICY) == MemPolicy("default")
    assert task_policy(bind, Strategy.PROXY_ALLOCATION) == MemPolicy("bind", frozenset({2}))


@pytest.mark.parametrize("mode", [PolicyMode.DEFAULT, PolicyMode.LOCAL])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_default_and_local_are_brought_about_on_the_named_nodes(
    mode: PolicyMode, strategy: Strategy
) -> None:
    assert task_policy(plan(mode, {2}), strategy) == MemPolicy("bind", frozenset({2}))


def test_a_strict_set_is_guarded_by_its_own_nodes() -> None:
    guard = guard_of(plan(PolicyMode.BIND, {0, 2}), HOST, RESERVE)
    assert guard is not None
    assert guard.reserve_bytes == {0: 1024 * MIB * 2 // 100, 2: 1024 * MIB * 2 // 100}
    assert guard.shares == {}
    assert not guard.movable


def test_a_preference_is_guarded_by_all_nodes() -> None:
    guard = guard_of(plan(PolicyMode.PREFERRED, {0}), HOST, RESERVE)
    assert guard is not None
    assert set(guard.reserve_bytes) == set(NUMBERS)


def test_interleaving_is_guarded_by_shares() -> None:
    equal = guard_of(plan(PolicyMode.INTERLEAVE, {0, 1}), HOST, RESERVE)
    weighted = guard_of(plan(PolicyMode.WEIGHTED_INTERLEAVE, {0, 1}), HOST, RESERVE)
    assert equal is not None
    assert weighted is not None
    assert equal.shares == {0: 0.5, 1: 0.5}
    assert weighted.shares == {0: 0.25, 1: 0.75}


def test_movable_memory_is_for_memfd() -> None:
    guard = guard_of(plan(PolicyMode.BIND, {5}, backend=Backend.MEMFD), HOST, RESERVE)
    assert guard is not None
    assert guard.movable


def test_a_pool_of_huge_pages_needs_no_guard() -> None:
    huge = plan(PolicyMode.BIND, {0}, backend=Backend.MEMFD, page_size=2 * MIB)
    assert guard_of(huge, HOST, RESERVE) is None


def test_nodes_outside_the_cpuset_give_nothing() -> None:
    narrow = Host(
        nodes=HOST.nodes,
        features={},
        cpuset=Cpuset(frozenset({0}), frozenset({0, 1})),
        possible_nodes=HOST.possible_nodes,
        kernel_release="7.2",
    )
    guard = guard_of(plan(PolicyMode.BIND, {0, 2}), narrow, RESERVE)
    assert guard is not None
    assert set(guard.reserve_bytes) == {0}


def groups(*node_sets: set[int]) -> list[list[int]]:
    regions = [
        SimpleNamespace(plan=plan(PolicyMode.BIND, nodes), number=number)
        for number, nodes in enumerate(node_sets)
    ]
    return sorted([one.number for one in group] for group in disjoint(regions))  # type: ignore[arg-type, attr-defined]


def test_only_regions_without_a_node_in_common_go_at_the_same_time() -> None:
    assert groups({0}, {1}, {0}) == [[0, 2], [1]]
    assert groups({0}, {1}, {0, 1}, {2}) == [[0, 1, 2], [3]]
    assert groups({0}, set(), {2}) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("backend", "size_bytes", "n_cpus", "n_threads"),
    [
        (Backend.GUEST_MEMFD, 64 * MIB, 8, 1),
        (Backend.GUEST_MEMFD, 512 * MIB, 8, 2),
        (Backend.GUEST_MEMFD, 1 << 40, 64, MOST_THREADS),
        (Backend.GUEST_MEMFD, 1 << 40, 1, 1),
        (Backend.MEMFD, 1 << 40, 64, 1),
    ],
)
def test_threads_are_worth_their_start_and_run_in_parallel(
    backend: Backend, size_bytes: int, n_cpus: int, n_threads: int
) -> None:
    region = replace(plan(PolicyMode.BIND, {0}, backend=backend), size_bytes=size_bytes)
    assert threads_for(region, frozenset(range(n_cpus))) == n_threads
