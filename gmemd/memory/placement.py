"""What a prefault helper is told for a region: nodes, shares, reserves, policy, CPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.guard import Guard
from gmemd.plan.model import Strategy
from gmemd.spec.model import SMALL_PAGE, Backend, PolicyMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.host.model import Host, HostNode
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import RegionPlan

MOST_THREADS = 4
_WORTH_A_THREAD_BYTES = 256 << 20

_SPREAD = frozenset({PolicyMode.INTERLEAVE, PolicyMode.WEIGHTED_INTERLEAVE})
_PREFERENCE = frozenset({PolicyMode.PREFERRED, PolicyMode.PREFERRED_MANY})
_UNTOLD = frozenset({PolicyMode.DEFAULT, PolicyMode.LOCAL})


def task_policy(plan: RegionPlan, strategy: Strategy) -> MemPolicy:
    """The policy that the helper itself runs under.

    Where the inode has a policy, the default. Under ``default`` and ``local`` the pages are
    brought about on the named nodes by a strict policy of the helper's: no CPU of theirs is needed.
    """
    if not plan.host_nodes:
        return MemPolicy("default")
    if plan.policy in _UNTOLD:
        return MemPolicy("bind", plan.host_nodes)
    if strategy is Strategy.INODE_POLICY:
        return MemPolicy("default")
    return MemPolicy(plan.policy.value, plan.host_nodes)


def guard_of(plan: RegionPlan, host: Host, reserve: Reserve, *, root: str = "/") -> Guard | None:
    """What watches over the region's prefault; None for hugetlb, whose pools can't be overdrawn."""
    if plan.page_size != SMALL_PAGE:
        return None
    movable = plan.backend is not Backend.GUEST_MEMFD
    allowed = host.cpuset.mems or frozenset(node.id for node in host.nodes)
    nodes = {node.id: node for node in host.nodes if node.has_memory and node.id in allowed}
    if plan.host_nodes and plan.policy not in _PREFERENCE:
        nodes = {number: nodes[number] for number in plan.host_nodes if number in nodes}
    return Guard(
        reserve_bytes={
            number: reserve.bytes_of(node.placeable_bytes + node.movable_bytes, host)
            for number, node in nodes.items()
        },
        shares=_shares(plan, nodes) if plan.policy in _SPREAD else {},
        movable=movable,
        root=root,
        oom_panics=host.oom_panics,
    )


def _shares(plan: RegionPlan, nodes: Mapping[int, HostNode]) -> dict[int, float]:
    """Each node's part of an interleave; they add up to one."""
    weighted = plan.policy is PolicyMode.WEIGHTED_INTERLEAVE
    weights = {number: node.interleave_weight if weighted else 1 for number, node in nodes.items()}
    total = sum(weights.values())
    return {number: weight / total for number, weight in weights.items()}


def cpus_beside(nodes: frozenset[int], host: Host) -> frozenset[int]:
    """The CPUs of these nodes, or of the nearest node that has any. All nodes: where none named."""
    targets = [node for node in host.nodes if node.id in nodes] or list(host.nodes)
    own = frozenset[int]().union(*(node.cpus for node in targets))
    if own:
        return own
    with_cpus = [node for node in host.nodes if node.cpus]
    if not with_cpus:
        return any_cpus(host)
    nearest = min(
        with_cpus,
        key=lambda node: (
            min(target.distances.get(node.id, 255) for target in targets),
            node.id,
        ),
    )
    return nearest.cpus


def threads_for(plan: RegionPlan, cpus: frozenset[int]) -> int:
    """How many threads allocate the region at the same time, with so many CPUs beside it.

    fallocate() of a guest_memfd takes its lock shared, so threads run in parallel: 2 GiB of it took
    at best 0.77 s on one thread, 0.46 s on two (on two CPUs that others used too). More threads
    than CPUs cost 9 % more CPU time, and more than four have not been measured. That of a memfd and
    of huge pages takes the inode's lock alone: a second thread made a memfd no faster.

    MADV_POPULATE_WRITE, which zeroes the pages as well and can't serve memory that isn't mapped,
    was never faster: at best 1.2 GiB/s on two threads, for a memfd that fallocate() made at 2.4.
    """
    if plan.backend is not Backend.GUEST_MEMFD:
        return 1
    return max(1, min(MOST_THREADS, len(cpus), plan.size_bytes // _WORTH_A_THREAD_BYTES))


def any_cpus(host: Host) -> frozenset[int]:
    """The CPUs that gmemd may run on at all."""
    return host.cpuset.cpus or frozenset(os.sched_getaffinity(0))
