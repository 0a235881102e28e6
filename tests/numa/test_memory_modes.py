"""Every policy mode, prefaulted: its pages are where the nodes' own counters say they should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.provisioning import (
    MIB,
    bytes_by_node,
    difference,
    huge_pages,
    huge_pages_free,
    planned,
    provisioned,
    region,
    spec,
)

WEIGHTS = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
MODES = [
    (PolicyMode.DEFAULT, {2}, {2: 96}),
    (PolicyMode.LOCAL, {3}, {3: 96}),
    (PolicyMode.PREFERRED, {3}, {3: 96}),
    (PolicyMode.PREFERRED_MANY, {3}, {3: 96}),
    (PolicyMode.BIND, {2}, {2: 96}),
    (PolicyMode.INTERLEAVE, {1, 3}, {1: 48, 3: 48}),
    (PolicyMode.INTERLEAVE, {0, 1, 2, 3}, {0: 24, 1: 24, 2: 24, 3: 24}),
    (PolicyMode.WEIGHTED_INTERLEAVE, {1, 2}, {1: 72, 2: 24}),
]


@pytest.fixture
def _weights() -> None:
    """Node 1 three times as heavy as the others, given back as it was."""
    (WEIGHTS / "node1").write_text("3")
    yield  # type: ignore[misc]
    (WEIGHTS / "node1").write_text("1")


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize(("mode", "nodes", "expected"), MODES)
def test_pages_are_where_the_policy_says(
    backend: Backend, mode: PolicyMode, nodes: set[int], expected: dict[int, int]
) -> None:
    plan = planned(spec(region(96, nodes, mode, backend)))
    assert plan.admitted, plan.refusals
    before = bytes_by_node()
    with provisioned(plan) as regions:
        found = difference(bytes_by_node(), before)
        assert regions[0].strategy is plan.regions[0].strategy
    assert {node: found.get(node, 0) for node in expected} == pytest.approx(expected, abs=1)
    assert sum(found.values()) == pytest.approx(96, abs=2)


def test_after_its_release_nothing_is_left() -> None:
    before = bytes_by_node()
    with provisioned(planned(spec(region(64, {0}), region(64, {2})))):
        assert sum(difference(bytes_by_node(), before).values()) == pytest.approx(128, abs=2)
    assert sum(difference(bytes_by_node(), before).values()) == pytest.approx(0, abs=2)


def test_interleaved_regions_have_their_shares_each() -> None:
    """One task for both would put all of one on each node."""
    both = spec(
        region(64, {0, 1}, PolicyMode.INTERLEAVE), region(64, {0, 1}, PolicyMode.INTERLEAVE)
    )
    with provisioned(planned(both)) as regions:
        for one in regions:
            before = bytes_by_node()
            one.close()
            freed = difference(before, bytes_by_node())
            assert freed == pytest.approx({0: 32, 1: 32}, abs=1)


def test_guest_nodes_of_different_host_nodes_at_the_same_time() -> None:
    before = bytes_by_node()
    four = spec(*(region(64, {node}) for node in range(4)))
    with provisioned(planned(four)) as regions:
        found = difference(bytes_by_node(), before)
        assert {one.strategy for one in regions} == {Strategy.INODE_POLICY}
    assert found == pytest.approx(dict.fromkeys(range(4), 64), abs=2)


@pytest.mark.parametrize("mode", [PolicyMode.BIND, PolicyMode.INTERLEAVE])
def test_a_planned_policy_that_the_kernel_drops_is_brought_about_by_the_helper(
    mode: PolicyMode,
) -> None:
    """Here the plan wants a policy on hugetlb's inode, which no kernel keeps."""
    wanted = planned(spec(region(64, {2, 3}, mode, Backend.MEMFD)))
    (small,) = wanted.regions
    hopeful = replace(small, page_size=2 * MIB, strategy=Strategy.INODE_POLICY)
    with huge_pages(2, 40), huge_pages(3, 40):
        before = huge_pages_free()
        with provisioned(replace(wanted, regions=(hopeful,))) as regions:
            taken = difference(before, huge_pages_free())
            assert regions[0].strategy is Strategy.PROXY_ALLOCATION
            assert "hugetlb" in regions[0].reason
    assert sum(taken.values()) == 64
    if mode is PolicyMode.INTERLEAVE:
        assert taken == {2: 32, 3: 32}
