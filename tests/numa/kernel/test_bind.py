"""Policies on real nodes: where pages go, and every way in which mbind's success is none."""

from collections.abc import Callable

import pytest

from gmemd.kernel.bind import BindOutcome, BindResult, bind_range, keeps_inode_policy, read_policy
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import (
    RELATIVE_NODES,
    STATIC_NODES,
    MemPolicy,
    get_policy_at,
    get_task_policy,
    mbind,
    set_task_policy,
)
from gmemd.kernel.pages import cachestat, move_pages_move, query_range, scan_window

SIZE = 4 << 20
PAGES = SIZE // 4096
HALF = SIZE // 2
MIB = 1 << 20
DEFAULT = MemPolicy("default")

Place = Callable[..., dict[int, int]]


def nodes(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def close_to_equal(pages: dict[int, int], among: frozenset[int]) -> bool:
    """Whether the pages are spread over just these nodes, one page of difference allowed."""
    return set(pages) == among and max(pages.values()) - min(pages.values()) <= 1


@pytest.mark.parametrize("touch", [False, True], ids=["fallocate", "touch"])
@pytest.mark.parametrize(
    ("policy", "where"),
    [
        (MemPolicy("preferred", nodes(3)), {3: PAGES}),
        (MemPolicy("preferred-many", nodes(2)), {2: PAGES}),
        (MemPolicy("bind", nodes(1)), {1: PAGES}),
        (MemPolicy("bind", nodes(3), STATIC_NODES), {3: PAGES}),
        (MemPolicy("bind", nodes(6), RELATIVE_NODES), {2: PAGES}),
        (MemPolicy("interleave", nodes(1, 2)), {1: PAGES // 2, 2: PAGES // 2}),
        (MemPolicy("weighted-interleave", nodes(2, 3)), {2: PAGES // 2, 3: PAGES // 2}),
    ],
    ids=str,
)
def test_pages_are_where_the_policy_says(
    fd: int, place: Place, policy: MemPolicy, where: dict[int, int], *, touch: bool
) -> None:
    result = bind_range(fd, 0, SIZE, policy)
    assert result.ok
    assert result.effective_nodes == set(where)
    assert place(fd, 0, SIZE, touch=touch) == where


@pytest.mark.parametrize("policy", [DEFAULT, MemPolicy("local")], ids=str)
@pytest.mark.parametrize("task", [{1}, {2}])
def test_without_a_policy_the_task_decides(
    fd: int, place: Place, policy: MemPolicy, task: set[int]
) -> None:
    assert bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(3))).ok
    result = bind_range(fd, 0, SIZE, policy)
    assert result.ok
    assert (result.achieved, result.effective_nodes) == (policy, frozenset())
    before = get_task_policy()
    set_task_policy(MemPolicy("bind", frozenset(task)))
    try:
        where = set(place(fd, 0, SIZE))
    finally:
        set_task_policy(before)
    assert where == (task if policy == DEFAULT else where)
    assert 3 not in where


def test_this_kernel_keeps_policies_on_the_inode(fd: int) -> None:
    assert keeps_inode_policy(fd)
    assert read_policy(fd, SIZE) == DEFAULT


def test_bind_fills_the_nearest_allowed_node_first(fd: int, place: Place) -> None:
    result = bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(1, 2, 3)), home_node=3)
    assert result.ok
    assert result.home_node == 3
    assert place(fd, 0, SIZE) == {3: PAGES}
    bind_range(fd, 0, SIZE, MemPolicy("preferred-many", nodes(0, 2)), home_node=2)
    assert place(fd, 0, SIZE) == {2: PAGES}


def test_sub_ranges_have_their_own(fd: int, place: Place) -> None:
    first, second = MemPolicy("bind", nodes(2)), MemPolicy("interleave", nodes(0, 3))
    assert bind_range(fd, 0, HALF, first).ok
    assert bind_range(fd, HALF, HALF, second).ok
    assert [read_policy(fd, at) for at in (0, HALF - 1, HALF, SIZE - 1)] == [
        first,
        first,
        second,
        second,
    ]
    assert place(fd, 0, HALF) == {2: PAGES // 2}
    assert close_to_equal(place(fd, HALF, HALF), nodes(0, 3))


def test_the_no_op_trap(fd: int, place: Place) -> None:
    """A kept mapping's mbind is ignored if the policy equals its last; bind_range's never is."""
    with Mapping(fd, 0, SIZE) as kept:
        mbind(kept.address, SIZE, MemPolicy("bind", nodes(1)))
        assert bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(2))).ok
        mbind(kept.address, SIZE, MemPolicy("bind", nodes(1)))
        assert read_policy(fd, 0) == MemPolicy("bind", nodes(2))
        assert bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(1))).ok
        assert place(fd, 0, SIZE) == {1: PAGES}
        with Mapping(fd, 0, SIZE) as fresh:
            mbind(fresh.address, SIZE, DEFAULT)
        assert read_policy(fd, 0) == MemPolicy("bind", nodes(1))
        assert bind_range(fd, 0, SIZE, DEFAULT).ok
        assert read_policy(fd, 0) == DEFAULT


@pytest.mark.parametrize("flags", [0, STATIC_NODES], ids=["plain", "static"])
def test_an_offline_node_is_dropped_and_told(fd: int, place: Place, flags: int) -> None:
    result = bind_range(fd, 0, SIZE, MemPolicy("interleave", nodes(0, 2, 5), flags))
    assert result.outcome is BindOutcome.NARROWED_OFFLINE
    assert result.dropped == {5: BindOutcome.NARROWED_OFFLINE}
    assert result.effective_nodes == {0, 2}
    assert result.detail == "node 5 is offline or without memory"
    assert close_to_equal(place(fd, 0, SIZE), result.effective_nodes)


def test_static_nodes_read_back_more_than_is_used(fd: int, place: Place) -> None:
    result = bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(2, 4), STATIC_NODES))
    assert result.achieved is not None
    assert result.achieved.nodes == {2, 4} or result.dropped
    assert result.effective_nodes == {2}
    assert place(fd, 0, SIZE) == {2: PAGES}


def test_relative_nodes_are_told_by_their_own_numbers(fd: int, place: Place) -> None:
    result = bind_range(fd, 0, SIZE, MemPolicy("interleave", nodes(2, 5), RELATIVE_NODES))
    assert result.ok
    assert result.effective_nodes == {1, 2}
    assert close_to_equal(place(fd, 0, SIZE), nodes(1, 2))


def test_masks_reach_beyond_one_word(fd: int, place: Place) -> None:
    high = nodes(64, 127, 128, 1023)
    result = bind_range(fd, 0, SIZE, MemPolicy("bind", high | {3}))
    assert result.effective_nodes == {3}
    assert set(result.dropped) == high
    assert place(fd, 0, SIZE) == {3: PAGES}
    alone = bind_range(fd, 0, SIZE, MemPolicy("bind", high))
    assert (alone.outcome, alone.achieved) == (BindOutcome.NARROWED_OFFLINE, None)
    assert read_policy(fd, 0) == MemPolicy("bind", nodes(3))


def in_cpuset_0_and_1(fd: int, policy: MemPolicy) -> Callable[[], BindResult]:
    return lambda: bind_range(fd, 0, SIZE, policy)


@pytest.mark.parametrize("flags", [0, STATIC_NODES], ids=["plain", "static"])
def test_the_callers_cpuset_narrows_and_is_told(
    fd: int,
    place: Place,
    in_cpuset: Callable[[str, Callable[[], BindResult]], BindResult],
    flags: int,
) -> None:
    bind = in_cpuset_0_and_1(fd, MemPolicy("bind", nodes(1, 2), flags))
    result = in_cpuset("0-1", bind)
    assert result.outcome is BindOutcome.NARROWED_CPUSET
    assert result.dropped == {2: BindOutcome.NARROWED_CPUSET}
    assert result.effective_nodes == {1}
    assert "AllowedMemoryNodes=" in result.remedy
    assert place(fd, 0, SIZE) == {1: PAGES}


def test_a_cpuset_without_any_of_the_nodes(
    fd: int, in_cpuset: Callable[[str, Callable[[], BindResult]], BindResult]
) -> None:
    result = in_cpuset("0-1", in_cpuset_0_and_1(fd, MemPolicy("bind", nodes(2, 3))))
    assert result.outcome is BindOutcome.NARROWED_CPUSET
    assert (result.achieved, result.effective_nodes) == (None, frozenset())
    assert "no requested node is left" in result.detail
    assert read_policy(fd, 0) == DEFAULT


def test_offline_and_cpuset_are_told_apart_in_one_result(
    fd: int, in_cpuset: Callable[[str, Callable[[], BindResult]], BindResult]
) -> None:
    result = in_cpuset("0-1", in_cpuset_0_and_1(fd, MemPolicy("bind", nodes(1, 2, 5))))
    assert result.dropped == {2: BindOutcome.NARROWED_CPUSET, 5: BindOutcome.NARROWED_OFFLINE}
    assert result.outcome is BindOutcome.NARROWED_OFFLINE
    assert "node 2 is outside this process' cpuset" in result.detail


def test_relative_nodes_follow_the_cpuset(
    fd: int,
    place: Place,
    in_cpuset: Callable[[str, Callable[[], BindResult]], BindResult],
) -> None:
    policy = MemPolicy("bind", nodes(1), RELATIVE_NODES)
    result = in_cpuset("2-3", in_cpuset_0_and_1(fd, policy))
    assert result.ok
    assert result.effective_nodes == {3}
    assert place(fd, 0, SIZE) == {3: PAGES}


def test_the_allocating_tasks_cpuset_wins_and_the_scan_shows_it(
    fd: int, in_cpuset: Callable[[str, Callable[[], None]], None]
) -> None:
    assert bind_range(fd, 0, SIZE, MemPolicy("bind", nodes(2))).ok
    in_cpuset("0-1", lambda: allocate(fd, 0, SIZE))
    with Mapping(fd, 0, SIZE, protection="read") as window:
        scan = scan_window(window, 0, SIZE)
    assert scan.resident_pages == PAGES
    assert set(scan.by_node) <= {0, 1}


def test_pages_of_guest_memfd_stay_whatever_a_move_says(guest_memfd: int, place: Place) -> None:
    bind_range(guest_memfd, 0, SIZE, MemPolicy("bind", nodes(2)))
    assert place(guest_memfd, 0, SIZE) == {2: PAGES}
    with Mapping(guest_memfd, 0, SIZE, protection="read") as window:
        window.populate_read(0, SIZE)
        addresses = range(window.address, window.address + SIZE, 4096)
        moved = move_pages_move(0, addresses, [3] * PAGES)
        assert 3 not in moved
        assert set(query_range(window.address, PAGES)) == {2}


def test_pages_of_memfd_move(memfd: int, place: Place) -> None:
    bind_range(memfd, 0, SIZE, MemPolicy("bind", nodes(2)))
    assert place(memfd, 0, SIZE) == {2: PAGES}
    with Mapping(memfd, 0, SIZE, protection="read") as window:
        window.populate_read(0, SIZE)
        addresses = range(window.address, window.address + SIZE, 4096)
        assert set(move_pages_move(0, addresses, [3] * PAGES)) == {3}
        assert set(query_range(window.address, PAGES)) == {3}


def test_what_preferred_spills_is_counted_to_the_page(
    make_guest_memfd: Callable[[int], int],
) -> None:
    size = 1200 * MIB
    fd = make_guest_memfd(size)
    result = bind_range(fd, 0, size, MemPolicy("preferred", nodes(3)))
    assert (result.outcome, result.effective_nodes) == (BindOutcome.APPLIED, {3})
    allocate(fd, 0, size)
    before = cachestat(fd, 0, size)
    with Mapping(fd, 0, size, protection="read") as window:
        scan = scan_window(window, 0, size)
        counted = set(query_range(window.address, size // 4096))
    assert scan.resident_pages == sum(scan.by_node.values()) == size // 4096
    assert set(scan.by_node) == counted > {3}
    assert scan.by_node[3] < 1024 * MIB // 4096
    assert cachestat(fd, 0, size) == before
    punch_hole(fd, 0, size)


def test_hugetlb_keeps_no_policy() -> None:
    size = 2 * MIB
    fd = create_memfd("huge", size, page_size=size)
    result = bind_range(fd, 0, size, MemPolicy("bind", nodes(1)))
    assert result.outcome is BindOutcome.HUGETLB
    with Mapping(fd, 0, size, noreserve=True) as one, Mapping(fd, 0, size, noreserve=True) as other:
        mbind(one.address, size, MemPolicy("bind", nodes(1)))
        assert get_policy_at(one.address) == MemPolicy("bind", nodes(1))
        assert get_policy_at(other.address) == DEFAULT
