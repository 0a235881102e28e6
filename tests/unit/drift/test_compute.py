"""The figures of drift: sums, ratios, intervals, and what counts as drifting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.audit.model import PolicyRead, VmAudit
from gmemd.drift.compute import compute_drift
from gmemd.drift.interval import wilson
from gmemd.drift.model import Cause
from gmemd.plan.model import Strategy, VmPlan
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec
from tests.unit.drift.cases import GIB, MIB, PAGE, Case, drift_of, host_node, make_host

BIND_1 = PolicyRead("bind", frozenset({1}))
OBSERVED: dict[str, Any] = {
    "source": Source.OBSERVE,
    "strategy": Strategy.UNMANAGED,
    "backend": Backend.ANONYMOUS,
    "outcome": "",
}


def test_preferred_overflow_is_counted_to_the_byte() -> None:
    read = PolicyRead("preferred", frozenset({1}))
    case = Case(
        policy=PolicyMode.PREFERRED,
        read=read,
        by_node={1: 912 * MIB, 0: PAGE, 3: 111 * MIB},
    )
    node = drift_of(case)
    assert node.placed_bytes == 912 * MIB
    assert node.misplaced_bytes == 111 * MIB + PAGE
    assert node.drift_ratio == (111 * MIB + PAGE) / (1023 * MIB + PAGE)
    assert node.policy_match is True
    assert node.cause is Cause.SPILLED


@pytest.mark.parametrize("policy", [PolicyMode.DEFAULT, PolicyMode.LOCAL])
def test_default_and_local_without_host_nodes_expect_nothing(policy: PolicyMode) -> None:
    case = Case(
        policy=policy,
        host_nodes=frozenset(),
        read=PolicyRead(str(policy), frozenset()),
        by_node={0: MIB, 3: MIB},
    )
    node = drift_of(case)
    assert node.misplaced_bytes == 0
    assert node.allowed == frozenset(range(4))
    assert not node.drifting


@pytest.mark.parametrize("policy", [PolicyMode.DEFAULT, PolicyMode.LOCAL])
def test_default_and_local_with_host_nodes_expect_these(policy: PolicyMode) -> None:
    case = Case(policy=policy, read=PolicyRead(str(policy), frozenset()), by_node={0: MIB, 1: MIB})
    node = drift_of(case)
    assert (node.placed_bytes, node.misplaced_bytes) == (MIB, MIB)
    assert node.policy_match is True
    assert node.drifting


def test_default_expects_the_default_policy() -> None:
    case = Case(
        policy=PolicyMode.DEFAULT,
        strategy=Strategy.UNMANAGED,
        read=BIND_1,
        by_node={1: MIB},
    )
    assert drift_of(case).policy_match is False
    assert drift_of(case).cause is Cause.POLICY_CHANGED
    assert drift_of(case, host=make_host(inode_policy=False)).policy_match is None


@pytest.mark.parametrize(
    ("policy", "host_nodes", "read"),
    [
        (PolicyMode.PREFERRED, {1}, PolicyRead("preferred-many", frozenset({1}))),
        (PolicyMode.PREFERRED_MANY, {1}, PolicyRead("preferred", frozenset({1}))),
        (PolicyMode.PREFERRED_MANY, {1, 2}, PolicyRead("preferred-many", frozenset({1, 2}))),
        (PolicyMode.LOCAL, set(), PolicyRead("preferred", frozenset())),
        (PolicyMode.BIND, {1}, PolicyRead("bind", frozenset({1}), flags=1 << 15)),
        (
            PolicyMode.WEIGHTED_INTERLEAVE,
            {0, 1},
            PolicyRead("weighted-interleave", frozenset({0, 1})),
        ),
    ],
)
def test_policies_that_are_the_same(
    policy: PolicyMode, host_nodes: set[int], read: PolicyRead
) -> None:
    case = Case(policy=policy, host_nodes=frozenset(host_nodes), read=read)
    assert drift_of(case).policy_match


@pytest.mark.parametrize(
    ("policy", "read"),
    [
        (PolicyMode.BIND, PolicyRead("bind", frozenset({1, 2}))),
        (PolicyMode.BIND, PolicyRead("bind", frozenset({2}))),
        (PolicyMode.BIND, PolicyRead("preferred", frozenset({1}))),
        (PolicyMode.INTERLEAVE, PolicyRead("weighted-interleave", frozenset({1}))),
        (PolicyMode.PREFERRED, PolicyRead("local", frozenset())),
        (PolicyMode.BIND, PolicyRead("mode-9", frozenset({1}))),
    ],
)
def test_policies_that_differ(policy: PolicyMode, read: PolicyRead) -> None:
    node = drift_of(Case(policy=policy, read=read))
    assert node.policy_match is False
    assert node.drifting
    assert node.drift_ratio is None


@pytest.mark.parametrize("outcome", ["not-kept", "hugetlb", "unmappable"])
def test_a_policy_that_is_not_kept_is_not_compared(outcome: str) -> None:
    case = Case(outcome=outcome, read=PolicyRead("default", frozenset()), by_node={1: MIB})
    node = drift_of(case)
    assert node.policy_match is None
    assert not node.drifting


def test_nothing_seen_has_no_ratio() -> None:
    node = drift_of(Case(unknown=64 * MIB))
    assert node.unknown_bytes == node.resident_bytes == 64 * MIB
    assert (node.drift_ratio, node.drift_lower_ratio, node.drift_upper_ratio) == (None, None, None)
    assert node.unknown_reason == "poisoned"
    assert not node.drifting


def test_the_interval_is_one_value_when_all_was_seen() -> None:
    node = drift_of(Case(by_node={1: 3 * MIB, 2: MIB}))
    assert node.drift_lower_ratio == node.drift_ratio == node.drift_upper_ratio == 0.25


def test_the_interval_is_what_the_unknown_could_make_of_it() -> None:
    node = drift_of(Case(by_node={1: 3 * MIB, 2: MIB}, unknown=4 * MIB))
    assert node.drift_ratio == 0.25
    assert (node.drift_lower_ratio, node.drift_upper_ratio) == (0.125, 0.625)


def test_regions_of_one_guest_node_each_have_their_own_nodes() -> None:
    node = drift_of(
        Case(read=BIND_1, by_node={1: 2 * MIB}),
        Case(
            host_nodes=frozenset({2}),
            read=PolicyRead("bind", frozenset({2})),
            by_node={1: MIB, 2: MIB},
        ),
    )
    assert node.size_bytes == 2 * GIB
    assert node.by_node == {1: 3 * MIB, 2: MIB}
    assert node.allowed == frozenset({1, 2})
    assert (node.placed_bytes, node.misplaced_bytes) == (3 * MIB, MIB)


def test_a_guest_node_that_was_not_audited_is_empty() -> None:
    spec = VmSpec(vm="a", guest_nodes=(GuestNode(id=3, regions=(RegionSpec(size_bytes=GIB),)),))
    plan = VmPlan(spec=spec, regions=())
    (node,) = compute_drift(plan, VmAudit("a", 0, 0, 0, ()), make_host()).guest_nodes
    assert (node.guest_node, node.resident_bytes, node.drifting) == (3, 0, False)


def interleaved(
    by_node: dict[int, int],
    *,
    policy: PolicyMode = PolicyMode.INTERLEAVE,
    nodes: tuple[int, ...] = (0, 1),
    tolerance: float = 0.01,
) -> Case:
    host_nodes = frozenset(nodes)
    return Case(
        policy=policy,
        host_nodes=host_nodes,
        read=PolicyRead(str(policy), host_nodes),
        by_node=by_node,
        tolerance=tolerance,
    )


def test_shares_by_the_hosts_weights_restricted_to_the_nodes() -> None:
    nodes = (
        host_node(0, weight=3),
        host_node(1, weight=1),
        host_node(2, weight=100),
        host_node(3),
    )
    host = make_host(nodes=nodes)
    weighted = PolicyMode.WEIGHTED_INTERLEAVE
    by_weight = interleaved({0: 300 * MIB, 1: 100 * MIB}, policy=weighted)
    assert drift_of(by_weight, host=host).share_error_ratio == 0.0
    equal = interleaved({0: 200 * MIB, 1: 200 * MIB}, policy=weighted)
    node = drift_of(equal, host=host)
    assert node.share_error_ratio == 0.25
    assert node.cause is Cause.SHARES
    assert "the host's weights" in node.detail


def test_shares_of_a_few_pages_are_rounding() -> None:
    node = drift_of(interleaved({0: 3 * PAGE, 1: PAGE}))
    assert node.share_error_ratio == 0.0
    assert not node.drifting


def test_shares_are_never_held_closer_than_a_percent() -> None:
    case = interleaved({0: 509 * MIB, 1: 491 * MIB}, tolerance=0.0)
    node = drift_of(case)
    assert node.share_error_ratio == pytest.approx(0.009)
    assert not node.drifting
    assert drift_of(interleaved({0: 511 * MIB, 1: 489 * MIB}, tolerance=0.0)).drifting


def test_an_interleave_node_without_a_page_shows() -> None:
    node = drift_of(interleaved({0: 100 * MIB, 1: 100 * MIB}, nodes=(0, 1, 2)))
    assert node.share_error_ratio == pytest.approx(1 / 3)
    assert node.drifting


def test_modes_without_shares_have_no_share_error() -> None:
    assert drift_of(Case(by_node={1: MIB})).share_error_ratio is None
    assert drift_of(interleaved({})).share_error_ratio is None


def test_what_names_no_host_nodes_declares_nothing() -> None:
    nothing = Case(
        policy=PolicyMode.DEFAULT, host_nodes=frozenset(), by_node={0: MIB, 3: MIB, 9: MIB}
    )
    node = drift_of(nothing)
    assert not node.declared
    assert (node.placed_bytes, node.misplaced_bytes) == (3 * MIB, 0)
    assert (node.drift_ratio, node.drift_lower_ratio, node.drift_upper_ratio) == (None, None, None)
    assert not node.drifting
    asking = Case(by_node={1: MIB, 2: MIB})
    both = drift_of(nothing, asking)
    assert both.declared
    assert (both.misplaced_bytes, both.drift_ratio) == (MIB, 1 / 5)
    assert drift_of(replace(nothing, host_nodes=frozenset({0}))).drift_ratio == 2 / 3


@pytest.mark.parametrize("policy", [PolicyMode.DEFAULT, PolicyMode.LOCAL])
@pytest.mark.parametrize("nodes", [frozenset(), frozenset({0, 1})])
def test_an_observed_vm_that_asked_for_no_policy_has_none_to_differ(
    policy: PolicyMode, nodes: frozenset[int]
) -> None:
    case = Case(
        policy=policy,
        host_nodes=nodes,
        read=PolicyRead("bind", frozenset({0})),
        by_node={0: MIB},
        **OBSERVED,
    )
    node = drift_of(case)
    assert node.policy_match is None
    assert not node.drifting


@pytest.mark.parametrize("backend", list(Backend))
def test_an_observed_vms_policy_is_compared_where_the_kernel_keeps_it(backend: Backend) -> None:
    case = Case(read=BIND_1, by_node={1: MIB}, **{**OBSERVED, "backend": backend})
    assert drift_of(case).policy_match is True
    without = drift_of(case, host=make_host(inode_policy=False))
    assert without.policy_match is (None if backend is Backend.GUEST_MEMFD else True)
    # gmemd's own cpuset has no say in what another process' policy can use.
    narrow = make_host(mems=frozenset({0}))
    static = replace(case, read=PolicyRead("bind", frozenset({1}), flags=1 << 15))
    assert drift_of(static, host=narrow).policy_match is True


def test_exact_bounds_are_the_bytes_themselves() -> None:
    node = drift_of(Case(by_node={1: 3 * MIB, 2: MIB}))
    assert node.by_node_lower == node.by_node_upper == node.by_node
    assert not node.sampled


def test_what_is_unknown_may_be_on_any_host_node() -> None:
    node = drift_of(Case(by_node={1: 3 * MIB, 2: MIB}, unknown=MIB))
    assert node.by_node_lower == {1: 3 * MIB, 2: MIB}
    assert node.by_node_upper == {1: 4 * MIB, 2: 2 * MIB}


def test_a_sample_of_one_region_has_the_interval_of_its_share() -> None:
    node = drift_of(Case(hits={1: 900, 2: 100}))
    share = wilson(100, 1000)
    assert node.sampled
    assert node.drift_ratio == pytest.approx(0.1, abs=1e-4)
    assert node.drift_lower_ratio == pytest.approx(share.lower)
    assert node.drift_upper_ratio == pytest.approx(share.upper)
    assert node.misplaced_bytes == 100 * GIB // 4096
    assert node.drifting


def test_every_host_node_with_memory_has_bounds_in_a_sample() -> None:
    node = drift_of(Case(hits={1: 4096}))
    assert set(node.by_node_upper) == set(node.by_node_lower) == {0, 1, 2, 3}
    assert set(node.by_node) == {1}
    # Of nothing found in 4,096, up to 3.84 in 4,096 may be there.
    assert node.by_node_upper[0] == pytest.approx(GIB * 3.8379 / 4096, abs=PAGE)
    assert node.by_node_lower[0] == 0
    assert node.by_node_lower[1] < node.by_node[1] == node.by_node_upper[1] == GIB


def test_a_sample_never_drifts_on_chance() -> None:
    # 50 of 4,096 are 1.2 %, and 1 % is well possible; 90 of them are 2.2 %.
    node = drift_of(Case(hits={1: 4046, 2: 50}))
    assert node.drift_ratio is not None
    assert node.drift_lower_ratio is not None
    assert node.drift_ratio > node.tolerance_ratio > node.drift_lower_ratio
    assert (node.drifting, node.cause) == (False, None)
    assert drift_of(Case(hits={1: 4006, 2: 90})).drifting
    assert not drift_of(Case(hits={1: 4095, 2: 1}, tolerance=0.0001)).drifting


def test_a_sample_that_hit_no_page_has_no_ratio_but_bounds() -> None:
    node = drift_of(Case(hits={}))
    assert (node.drift_ratio, node.drift_lower_ratio, node.drift_upper_ratio) == (None, None, None)
    assert node.by_node_upper[2] > 0
    assert not node.drifting


def test_unknown_pages_of_a_sample_count_either_way() -> None:
    node = drift_of(Case(hits={1: 800, 2: 100}, hits_unknown=100))
    assert node.drift_ratio == pytest.approx(1 / 9, abs=1e-4)
    assert node.drift_lower_ratio == pytest.approx(wilson(100, 1000).lower)
    assert node.drift_upper_ratio == pytest.approx(wilson(200, 1000).upper)


def test_what_exists_beyond_a_sample_counts_either_way() -> None:
    # A quarter is mapped, as far as the sample tells; as much again is known to exist.
    node = drift_of(Case(hits={1: 512, 2: 512}, unknown=GIB // 4))
    assert node.unknown_bytes == GIB // 4
    assert node.drift_lower_ratio is not None
    assert node.drift_upper_ratio is not None
    assert 0.22 < node.drift_lower_ratio < 0.25
    assert 0.75 < node.drift_upper_ratio < 0.78


def test_regions_are_combined_so_that_neither_bound_claims_too_much() -> None:
    # The sample's region may be half or twice as large as it looks: 4 hits of 4,096.
    sampled = Case(hits={2: 4})
    exact = Case(host_nodes=frozenset({1}), by_node={1: MIB})
    node = drift_of(sampled, exact)
    assert node.sampled
    assert node.drift_ratio == 0.5
    assert node.drift_lower_ratio is not None
    assert node.drift_upper_ratio is not None
    fewest = wilson(4, 4096).lower * GIB
    assert node.drift_lower_ratio <= fewest * wilson(4, 4).lower / (fewest + MIB) + 0.01
    assert 0.1 < node.drift_lower_ratio < 0.2
    assert node.drift_upper_ratio > 0.7
    assert node.by_node_lower[1] == MIB
    assert node.by_node_lower[2] < MIB < node.by_node_upper[2]


def test_shares_of_a_sample_are_off_only_beyond_chance() -> None:
    fair = Case(policy=PolicyMode.INTERLEAVE, host_nodes=frozenset({0, 1}), hits={0: 2148, 1: 1948})
    node = drift_of(fair)
    assert node.share_error_ratio == 0.0
    assert not node.drifting
    few = drift_of(replace(fair, hits={0: 9, 1: 3}))
    assert few.share_error_ratio == 0.0
    unfair = drift_of(replace(fair, hits={0: 3072, 1: 1024}))
    assert unfair.share_error_ratio is not None
    assert 0.2 < unfair.share_error_ratio < 0.25
    assert unfair.drifting
    assert unfair.cause is Cause.SHARES
    absent = drift_of(replace(fair, host_nodes=frozenset({0, 1, 2})))
    assert absent.share_error_ratio == pytest.approx(1 / 3, abs=0.01)


@given(
    hits=st.dictionaries(st.integers(0, 4), st.integers(0, 1000), max_size=4),
    unknown=st.integers(0, 90),
    beyond=st.integers(0, 1000).map(lambda n: n * PAGE),
    exact=st.none() | st.dictionaries(st.integers(0, 3), st.integers(0, 1000)),
    policy=st.sampled_from(PolicyMode),
)
def test_bounds_hold_what_they_bound(
    hits: dict[int, int],
    unknown: int,
    beyond: int,
    exact: dict[int, int] | None,
    policy: PolicyMode,
) -> None:
    cases = [Case(policy=policy, hits=hits, hits_unknown=unknown, unknown=beyond)]
    if exact is not None:
        by_node = {number: pages * PAGE for number, pages in exact.items()}
        cases.append(Case(policy=policy, by_node=by_node))
    node = drift_of(*cases)
    assert node.sampled
    for number, held in node.by_node.items():
        assert node.by_node_lower[number] <= held <= node.by_node_upper[number]
    if node.drift_ratio is not None:
        assert node.drift_lower_ratio is not None
        assert node.drift_upper_ratio is not None
        assert 0 <= node.drift_lower_ratio <= node.drift_ratio <= node.drift_upper_ratio <= 1
    assert node.drifting == (node.cause is not None)
    assert not node.drifting or (node.detail and node.remedy)


amounts = st.dictionaries(st.integers(0, 3), st.integers(0, 1 << 20).map(lambda n: n * PAGE))


@given(
    by_node=amounts,
    unknown=st.integers(0, 1 << 20).map(lambda n: n * PAGE),
    policy=st.sampled_from(PolicyMode),
    host_nodes=st.frozensets(st.integers(0, 5), min_size=1),
)
def test_placed_misplaced_and_unknown_are_all_there_is(
    by_node: dict[int, int], unknown: int, policy: PolicyMode, host_nodes: frozenset[int]
) -> None:
    case = Case(policy=policy, host_nodes=host_nodes, by_node=by_node, unknown=unknown)
    node = drift_of(case)
    assert node.placed_bytes + node.misplaced_bytes == sum(by_node.values())
    if node.drift_ratio is not None:
        assert 0 <= node.drift_lower_ratio <= node.drift_ratio <= node.drift_upper_ratio <= 1
    if node.share_error_ratio is not None:
        assert 0 <= node.share_error_ratio <= 1
    assert node.drifting == (node.cause is not None)
    assert not node.drifting or (node.detail and node.remedy)
