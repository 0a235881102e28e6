"""Every cause of drift is told apart from the others, and comes with a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gmemd.audit.model import PolicyRead
from gmemd.drift.model import Cause
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode, Source
from tests.unit.drift.cases import MIB, Case, drift_of, host_node, make_host

BIND_1 = PolicyRead("bind", frozenset({1}))
DEFAULT = PolicyRead("default", frozenset())
STATIC = 1 << 15

MOVABLE_HOST = make_host(nodes=(*map(host_node, range(4)), host_node(4, movable_only=True)))
NARROW_HOST = make_host(mems=frozenset({0, 1}))
OLD_HOST = make_host(inode_policy=False)

ELSEWHERE = {1: 7 * MIB, 3: MIB}

CAUSES = {
    "a full node under preferred": (
        Case(
            policy=PolicyMode.PREFERRED,
            read=PolicyRead("preferred", frozenset({1})),
            by_node=ELSEWHERE,
        ),
        make_host(),
        Cause.SPILLED,
        (
            "1MiB on node 3: preferred overflows by design when its nodes are full "
            "(node 1 has 12MiB left)"
        ),
        "free memory on node 1",
    ),
    "a full node under interleave": (
        Case(
            policy=PolicyMode.INTERLEAVE,
            host_nodes=frozenset({0, 1}),
            read=PolicyRead("interleave", frozenset({0, 1})),
            by_node={0: 4 * MIB, 1: 2 * MIB, 3: 2 * MIB},
        ),
        make_host(),
        Cause.SPILLED,
        "2MiB on node 3: interleave overflows",
        "free memory on nodes 0-1",
    ),
    "a policy of somebody else": (
        Case(read=PolicyRead("preferred", frozenset({3})), by_node=ELSEWHERE),
        make_host(),
        Cause.POLICY_CHANGED,
        "the kernel holds preferred 3, the spec asks bind 1; 1MiB on node 3",
        "find what calls mbind",
    ),
    "a policy that is gone": (
        Case(read=DEFAULT, by_node={1: MIB}),
        make_host(),
        Cause.POLICY_CHANGED,
        "the kernel holds default, the spec asks bind 1",
        "find what calls mbind",
    ),
    "a policy further in that isn't the spec's": (
        Case(read=BIND_1, others=(PolicyRead("bind", frozenset({2})),), by_node={1: MIB}),
        make_host(),
        Cause.POLICY_CHANGED,
        "the kernel holds bind 2, the spec asks bind 1",
        "find what calls mbind",
    ),
    "a node that is offline": (
        Case(host_nodes=frozenset({0, 5}), read=PolicyRead("bind", frozenset({0}))),
        make_host(),
        Cause.NODE_OFFLINE,
        "node 5 of host_nodes 0,5 is offline or without memory",
        "bring the memory of node 5 online",
    ),
    "an offline node that static flags read back": (
        Case(
            host_nodes=frozenset({0, 5}),
            read=PolicyRead("bind", frozenset({0, 5}), flags=STATIC),
        ),
        make_host(),
        Cause.NODE_OFFLINE,
        "node 5 of host_nodes 0,5 is offline",
        "bring the memory of node 5 online",
    ),
    "a node that came online too late": (
        Case(
            host_nodes=frozenset({0, 3}),
            read=PolicyRead("bind", frozenset({0})),
            outcome="narrowed-offline",
        ),
        make_host(),
        Cause.NODE_OFFLINE,
        "node 3 of host_nodes 0,3 was offline when the policy was set",
        "bring the memory of node 3 online",
    ),
    "a node of movable memory": (
        Case(
            host_nodes=frozenset({4}),
            read=PolicyRead("bind", frozenset({4})),
            by_node={2: 3 * MIB},
        ),
        MOVABLE_HOST,
        Cause.MOVABLE_ONLY,
        (
            "node 4 has only ZONE_MOVABLE memory, and guest_memfd is unmovable: the kernel puts "
            "its pages elsewhere (3MiB on node 2)"
        ),
        "online node 4 as kernel memory (online_kernel), or use backend: memfd",
    ),
    "interleave with a node of movable memory": (
        Case(
            policy=PolicyMode.INTERLEAVE,
            host_nodes=frozenset({0, 4}),
            read=PolicyRead("interleave", frozenset({0, 4})),
            by_node={0: 8 * MIB},
        ),
        MOVABLE_HOST,
        Cause.MOVABLE_ONLY,
        "node 4 has only ZONE_MOVABLE memory",
        "online node 4",
    ),
    "gmemd's own cpuset": (
        Case(host_nodes=frozenset({1, 2}), read=BIND_1, outcome="narrowed-cpuset"),
        NARROW_HOST,
        Cause.CPUSET,
        "gmemd's own cpuset (now 0-1) left out node 2",
        "AllowedMemoryNodes=",
    ),
    "gmemd's own cpuset, behind static flags": (
        Case(
            host_nodes=frozenset({1, 2}),
            read=PolicyRead("bind", frozenset({1, 2}), flags=STATIC),
        ),
        NARROW_HOST,
        Cause.CPUSET,
        "gmemd's own cpuset (now 0-1) left out node 2",
        "AllowedMemoryNodes=",
    ),
    "gmemd's own cpuset as it was": (
        Case(host_nodes=frozenset({1, 2}), read=BIND_1, outcome="narrowed-cpuset"),
        make_host(),
        Cause.CPUSET,
        "left out node 2",
        "AllowedMemoryNodes=",
    ),
    "the cpuset of who touched it": (
        Case(read=BIND_1, by_node=ELSEWHERE),
        make_host(),
        Cause.CPUSET,
        "1MiB on node 3 although the policy holds: a task whose cpuset leaves out node 1",
        "give the VMM's cpuset node 1",
    ),
    "pages from before the policy": (
        Case(read=BIND_1, by_node=ELSEWHERE, source=Source.REGISTER),
        make_host(),
        Cause.RESIDENT_BEFORE_POLICY,
        "1MiB on node 3 although the policy holds: these pages were resident before it was set",
        "have the policy set before",
    ),
    "memfd pages that were moved": (
        Case(read=BIND_1, by_node=ELSEWHERE, backend=Backend.MEMFD),
        make_host(),
        Cause.MOVED,
        "1MiB on node 3 although the policy holds: memfd pages are moved by NUMA balancing",
        "turn off what moves them",
    ),
    "a kernel without inode policies": (
        Case(strategy=Strategy.PROXY_ALLOCATION, read=DEFAULT, by_node=ELSEWHERE),
        OLD_HOST,
        Cause.NO_INODE_POLICY,
        "1MiB on node 3: this kernel keeps no policy on guest_memfd",
        "use a kernel of 6.19 or later",
    ),
    "a kernel without inode policies, nothing prefaulted": (
        Case(strategy=Strategy.UNMANAGED, by_node=ELSEWHERE, prefault=False),
        OLD_HOST,
        Cause.NO_INODE_POLICY,
        "1MiB on node 3: this kernel keeps no policy on guest_memfd",
        "prefault: true",
    ),
    "a policy that turned out not to be kept": (
        Case(outcome="not-kept", read=DEFAULT, by_node=ELSEWHERE),
        make_host(),
        Cause.NO_INODE_POLICY,
        "this kernel keeps no policy on guest_memfd",
        "6.19",
    ),
    "hugetlb pages that were punched": (
        Case(
            strategy=Strategy.PROXY_ALLOCATION,
            backend=Backend.MEMFD,
            page_size=2 * MIB,
            by_node={1: 6 * MIB, 3: 2 * MIB},
        ),
        make_host(),
        Cause.NO_INODE_POLICY,
        "2MiB on node 3: hugetlb memory keeps no policy",
        "never punch or balloon it",
    ),
    "memory that can't be bound": (
        Case(strategy=Strategy.PROXY_ALLOCATION, outcome="unmappable", by_node=ELSEWHERE),
        make_host(),
        Cause.NO_INODE_POLICY,
        "no policy could be set on it",
        "prefault: true",
    ),
    "preferred that spilled while it was prefaulted": (
        Case(
            policy=PolicyMode.PREFERRED,
            strategy=Strategy.PROXY_ALLOCATION,
            by_node=ELSEWHERE,
        ),
        OLD_HOST,
        Cause.SPILLED,
        "1MiB on node 3: preferred overflows",
        "policy: bind",
    ),
    "shares that are off": (
        Case(
            policy=PolicyMode.INTERLEAVE,
            host_nodes=frozenset({0, 1}),
            read=PolicyRead("interleave", frozenset({0, 1})),
            by_node={0: 6 * MIB, 1: 2 * MIB},
        ),
        make_host(),
        Cause.SHARES,
        "node 0 6MiB, node 1 2MiB, off equal shares by 25.0%",
        "prefault: true",
    ),
    "no policy, but an expectation": (
        Case(policy=PolicyMode.DEFAULT, strategy=Strategy.UNMANAGED, read=DEFAULT, by_node={0: 1}),
        make_host(),
        Cause.NO_POLICY,
        "policy: default leaves each page to the task that touches it first",
        "use policy: bind with host_nodes: 1",
    ),
    "adopted memory that can't be bound": (
        Case(
            strategy=Strategy.UNMANAGED,
            outcome="unmappable",
            by_node=ELSEWHERE,
            prefault=False,
            source=Source.ADOPT,
        ),
        make_host(),
        Cause.NO_INODE_POLICY,
        "no policy could be set on it",
        "use source: register (or create) with prefault: true",
    ),
    "registered hugetlb pages that nothing placed": (
        Case(
            strategy=Strategy.UNMANAGED,
            backend=Backend.MEMFD,
            page_size=2 * MIB,
            by_node={1: 6 * MIB, 3: 2 * MIB},
            prefault=False,
            source=Source.REGISTER,
        ),
        make_host(),
        Cause.NO_INODE_POLICY,
        "2MiB on node 3: hugetlb memory keeps no policy",
        "use prefault: true; restart the VM",
    ),
    "a policy that can't be read": (
        Case(read=None, by_node=ELSEWHERE),
        make_host(),
        Cause.UNKNOWN,
        "the policy that the kernel holds can't be read",
        "restart the VM",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_cause(name: str) -> None:
    case, host, cause, detail, remedy = CAUSES[name]
    node = drift_of(case, host=host)
    assert node.drifting
    assert node.cause is cause
    assert detail in node.detail
    assert remedy in node.remedy


def test_every_cause_has_a_case() -> None:
    assert {case[2] for case in CAUSES.values()} == set(Cause)


OBSERVED = Case(
    source=Source.OBSERVE,
    strategy=Strategy.UNMANAGED,
    backend=Backend.ANONYMOUS,
    prefault=False,
    outcome="",
    by_node=ELSEWHERE,
)
HUGE = 2 * MIB

OBSERVED_CAUSES = {
    "bound by its command line, found elsewhere by a sample": (
        replace(OBSERVED, hits={1: 3000, 3: 1000}),
        make_host(),
        Cause.MOVED,
        (
            "about 250MiB on node 3; its command line asks bind 1: moved since (migratepages, "
            "numad, a change of its cgroup's cpuset.mems, NUMA balancing), or touched before the "
            "policy was set"
        ),
        (
            "move its pages back (migratepages as root, with the VMM's pid, from node 3 to "
            "node 1), and turn off what moves them"
        ),
    ),
    "bound by its command line, and the kernel holds it": (
        replace(OBSERVED, read=BIND_1),
        make_host(),
        Cause.MOVED,
        (
            "1MiB on node 3; its command line asks bind 1, which the kernel holds: moved since "
            "(migratepages, numad, a change of its cgroup's cpuset.mems), or touched before"
        ),
        "from node 3 to node 1",
    ),
    "bound to several nodes, a memfd": (
        replace(
            OBSERVED,
            backend=Backend.MEMFD,
            host_nodes=frozenset({0, 1}),
            by_node={0: MIB, 2: MIB, 3: MIB},
        ),
        make_host(),
        Cause.MOVED,
        "1MiB on node 2, 1MiB on node 3; its command line asks bind 0-1",
        "from nodes 2-3 to nodes 0-1",
    ),
    "bound, a file": (
        replace(OBSERVED, backend=Backend.FILE),
        make_host(),
        Cause.MOVED,
        "or of a file on a disk, whose pages no policy of a mapping rules",
        "from node 3 to node 1",
    ),
    "bound, hugetlb": (
        replace(OBSERVED, backend=Backend.FILE, page_size=HUGE, by_node={1: HUGE, 3: HUGE}),
        make_host(),
        Cause.MOVED,
        "or made by another process that shares it, as hugetlb keeps no policy",
        "free huge pages of 2MiB on node 1, then move its pages back",
    ),
    "another policy than the command line's": (
        replace(OBSERVED, read=PolicyRead("preferred", frozenset({3}))),
        make_host(),
        Cause.POLICY_CHANGED,
        "the kernel holds preferred 3, its command line asks bind 1; 1MiB on node 3",
        "find what calls mbind on this memory after its VMM did",
    ),
    "no policy at all": (
        replace(OBSERVED, read=DEFAULT, by_node={1: MIB}),
        make_host(),
        Cause.POLICY_CHANGED,
        (
            "the kernel holds default, its command line asks bind 1: it was never set on this "
            "memory, or was taken back"
        ),
        "have the VMM set the policy as it makes the memory",
    ),
    "the policy's nodes rewritten": (
        replace(OBSERVED, read=PolicyRead("bind", frozenset({3}))),
        make_host(),
        Cause.POLICY_CHANGED,
        (
            "the kernel holds bind 3, its command line asks bind 1: a change of a cgroup's "
            "cpuset.mems rewrites the nodes of its processes' policies; 1MiB on node 3"
        ),
        "have the cpuset.mems of its cgroup hold node 1; move its pages back",
    ),
    "a cpuset alone": (
        replace(OBSERVED, policy=PolicyMode.DEFAULT, host_nodes=frozenset({0, 1})),
        make_host(),
        Cause.CPUSET,
        "1MiB on node 3, outside its cgroup's cpuset.mems (0-1): touched before that was set",
        "from node 3 to nodes 0-1); set cpuset.mems before the VMM starts",
    ),
    "a cpuset alone, memory that others share": (
        replace(OBSERVED, policy=PolicyMode.DEFAULT, backend=Backend.MEMFD),
        make_host(),
        Cause.CPUSET,
        "or made by another process that shares it (a vhost-user backend)",
        "from node 3 to node 1",
    ),
    "a cpuset alone, a guest_memfd": (
        replace(OBSERVED, policy=PolicyMode.DEFAULT, backend=Backend.GUEST_MEMFD),
        make_host(),
        Cause.CPUSET,
        "outside its cgroup's cpuset.mems (1)",
        "guest_memfd pages can't be moved",
    ),
    "preferred that overflowed": (
        replace(OBSERVED, policy=PolicyMode.PREFERRED),
        MOVABLE_HOST,
        Cause.SPILLED,
        (
            "1MiB on node 3: preferred, as its command line asks, overflows by design when its "
            "nodes are full (node 1 has 12MiB left)"
        ),
        "make room on node 1, then move its pages back",
    ),
    "preferred on a node of movable memory has room there": (
        replace(OBSERVED, policy=PolicyMode.PREFERRED, host_nodes=frozenset({4})),
        MOVABLE_HOST,
        Cause.SPILLED,
        "(node 4 has 1GiB left)",
        "policy=bind refuses rather than spills",
    ),
    "preferred huge pages that overflowed": (
        replace(
            OBSERVED,
            policy=PolicyMode.PREFERRED,
            backend=Backend.MEMFD,
            page_size=HUGE,
            by_node={1: HUGE, 3: HUGE},
        ),
        make_host(),
        Cause.SPILLED,
        (
            "overflows by design when its nodes have no free huge page of 2MiB "
            "(node 1 has 0 huge pages of 2MiB left)"
        ),
        "free huge pages of 2MiB on node 1",
    ),
    "interleave that overflowed": (
        replace(OBSERVED, policy=PolicyMode.INTERLEAVE, host_nodes=frozenset({0, 1})),
        make_host(),
        Cause.SPILLED,
        "interleave, as its command line asks, overflows by design",
        "make room on nodes 0-1",
    ),
    "interleave whose shares are off": (
        replace(
            OBSERVED,
            policy=PolicyMode.INTERLEAVE,
            host_nodes=frozenset({0, 1}),
            hits={0: 3072, 1: 1024},
        ),
        make_host(),
        Cause.SHARES,
        (
            "node 0 about 768MiB, node 1 about 256MiB: off the shares that its command line asks "
            "(interleave) by at least 22.3%"
        ),
        "make room on nodes 0-1",
    ),
    "a node that is offline, of a command line": (
        replace(OBSERVED, host_nodes=frozenset({1, 5})),
        make_host(),
        Cause.NODE_OFFLINE,
        "its command line names node 5, which is offline or without memory",
        "bring the memory of node 5 online, or have its command line name others",
    ),
    "a node that is offline, of a cpuset": (
        replace(OBSERVED, policy=PolicyMode.DEFAULT, host_nodes=frozenset({1, 5, 6})),
        make_host(),
        Cause.NODE_OFFLINE,
        "its cgroup's cpuset.mems names nodes 5-6, which are offline or without memory",
        "bring the memory of nodes 5-6 online",
    ),
    "guest_memfd on a kernel that keeps no policy": (
        replace(OBSERVED, backend=Backend.GUEST_MEMFD, read=DEFAULT),
        OLD_HOST,
        Cause.NO_INODE_POLICY,
        "its command line asks bind 1, but this kernel keeps no policy on guest_memfd",
        "use a kernel of 6.19 or later, or start the VMM under numactl --membind",
    ),
    "guest_memfd whose policy holds": (
        replace(OBSERVED, backend=Backend.GUEST_MEMFD, read=BIND_1),
        make_host(),
        Cause.RESIDENT_BEFORE_POLICY,
        "these pages were made before it was set, or by a task whose cpuset leaves out node 1",
        "have the VMM's cpuset hold node 1; guest_memfd pages can't be moved",
    ),
    "guest_memfd whose policy isn't known": (
        replace(OBSERVED, backend=Backend.GUEST_MEMFD),
        make_host(),
        Cause.UNKNOWN,
        "its command line asks bind 1, and whether the kernel holds that can't be read",
        "guest_memfd pages can't be moved: restart the VM",
    ),
}


@pytest.mark.parametrize("name", OBSERVED_CAUSES)
def test_cause_of_an_observed_vm(name: str) -> None:
    case, host, cause, detail, remedy = OBSERVED_CAUSES[name]
    node = drift_of(case, host=host)
    assert node.drifting
    assert node.cause is cause
    assert detail in node.detail
    assert remedy in node.remedy
    # There is none: what was asked for is the command line's, or the cpuset's.
    assert "spec" not in node.detail + node.remedy
    assert "gmemd" not in node.detail + node.remedy


def test_unmovable_pages_are_never_said_to_be_movable() -> None:
    guest = drift_of(Case(read=BIND_1, by_node=ELSEWHERE))
    assert "guest_memfd pages can't be moved" in guest.remedy
    movable = drift_of(Case(read=BIND_1, by_node=ELSEWHERE, backend=Backend.MEMFD))
    assert "migratepages" in movable.remedy


def test_the_region_that_drifts_most_is_the_one_explained() -> None:
    well = Case(read=BIND_1, by_node={1: 8 * MIB})
    spilled = Case(
        policy=PolicyMode.PREFERRED,
        host_nodes=frozenset({2}),
        read=PolicyRead("preferred", frozenset({2})),
        by_node={3: 8 * MIB},
    )
    node = drift_of(well, spilled)
    assert node.cause is Cause.SPILLED
    assert node.detail.startswith("region 1: 8MiB on node 3")


def test_a_policy_that_differs_is_explained_before_larger_drift_elsewhere() -> None:
    changed = Case(read=DEFAULT, by_node={1: 8 * MIB})
    spilled = Case(
        policy=PolicyMode.PREFERRED,
        read=PolicyRead("preferred", frozenset({1})),
        by_node={3: 8 * MIB},
    )
    assert drift_of(spilled, changed).cause is Cause.POLICY_CHANGED


def test_a_policy_that_was_set_again_found_pages_there() -> None:
    region = Case(read=BIND_1, by_node=ELSEWHERE, rebound=True)
    assert drift_of(region).cause is Cause.POLICY_CHANGED
    assert "the spec was changed to bind 1" in drift_of(region).detail
    preferred = replace(
        region,
        policy=PolicyMode.PREFERRED,
        read=PolicyRead("preferred", frozenset({1})),
    )
    assert drift_of(preferred).cause is Cause.POLICY_CHANGED


def test_no_cause_without_drift() -> None:
    node = drift_of(Case(read=BIND_1, by_node={1: 8 * MIB}))
    assert not node.drifting
    assert (node.cause, node.detail, node.remedy) == (None, "", "")


def test_no_cause_within_the_tolerance() -> None:
    case = Case(read=BIND_1, by_node={1: 999 * MIB, 3: MIB}, tolerance=0.01)
    assert not drift_of(case).drifting
    assert drift_of(replace(case, tolerance=0.0)).cause is Cause.CPUSET
