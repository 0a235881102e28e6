"""Why a region drifts, and what to do about it.

The kernel takes some policies and then does something else (KVM guest memory is unmovable, nodes
go offline, cpusets narrow); each such case has a cause of its own here, told apart by what the
kernel gave back, what the host has and how the region was placed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.drift.model import Cause, Diagnosis
from gmemd.drift.policy import (
    BASE_PAGE,
    INTERLEAVING,
    PREFERRING,
    TASK_RULED,
    describe,
    memory_nodes,
)
from gmemd.drift.words import in_words, room, where
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode, Source
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from gmemd.drift.region import RegionDrift
    from gmemd.host.model import Host

_UNMOVABLE = "guest_memfd pages can't be moved"


def diagnose(region: RegionDrift, host: Host, source: Source) -> Diagnosis:
    """Tell why a region that gmemd placed drifts; the first explanation that holds wins."""
    return (
        _node_offline(region, host)
        or _movable_only(region, host)
        or _own_cpuset(region, host)
        or _policy_changed(region)
        or (_spec_changed(region) if region.rebound else None)
        or _never_ruled(region, host, source)
        or _spilled(region, host)
        or _shares_off(region, source)
        or _placed_otherwise(region, source)
    )


def _place_anew(region: RegionDrift) -> str:
    """How pages that lie wrong get to where they belong: this depends on what they are."""
    if region.plan.backend is Backend.MEMFD and region.plan.page_size == BASE_PAGE:
        return "move its pages (migratepages on the VMM's pid), or restart the VM"
    if region.plan.backend is Backend.MEMFD:
        return "restart the VM to place its memory anew"
    return f"{_UNMOVABLE}: restart the VM to place its memory anew"


def _prefaulted(source: Source) -> str:
    """How a spec of that source has its memory allocated beforehand."""
    if source is Source.ADOPT:
        return "source: register (or create) with prefault: true"
    return "prefault: true"


def _narrowed(region: RegionDrift, outcome: str) -> frozenset[int]:
    """Nodes that the kernel left out when the policy was set, where the bind said why."""
    if region.outcome != outcome or region.wrong_policy is None:
        return frozenset()
    return region.plan.host_nodes - region.wrong_policy.nodes


def _node_offline(region: RegionDrift, host: Host) -> Diagnosis | None:
    plan = region.plan
    absent = plan.host_nodes - memory_nodes(host)
    if absent:
        when = f"{'are' if len(absent) > 1 else 'is'} offline or without memory"
    elif absent := _narrowed(region, "narrowed-offline"):
        when = f"{'were' if len(absent) > 1 else 'was'} offline when the policy was set"
    else:
        return None
    return Diagnosis(
        Cause.NODE_OFFLINE,
        f"{in_words(absent)} of host_nodes {format_nodeset(plan.host_nodes)} {when}: the kernel "
        "leaves such nodes out of a policy without an error",
        f"bring the memory of {in_words(absent)} online, or take "
        f"{'them' if len(absent) > 1 else 'it'} out of host_nodes; then restart the VM",
    )


def _movable_only(region: RegionDrift, host: Host) -> Diagnosis | None:
    plan = region.plan
    if plan.backend is not Backend.GUEST_MEMFD:
        return None
    found = {number: host.node(number) for number in plan.host_nodes}
    movable = frozenset(number for number, node in found.items() if node and node.movable_only)
    if not movable or (movable != plan.host_nodes and plan.policy not in INTERLEAVING):
        return None
    return Diagnosis(
        Cause.MOVABLE_ONLY,
        f"{in_words(movable)} {'have' if len(movable) > 1 else 'has'} only ZONE_MOVABLE memory, "
        "and guest_memfd is unmovable: the kernel puts its pages "
        f"elsewhere ({where(region) or 'nothing is there'})",
        f"online {in_words(movable)} as kernel memory (online_kernel), or use backend: memfd, "
        "whose pages can live there",
    )


def _own_cpuset(region: RegionDrift, host: Host) -> Diagnosis | None:
    outside = region.plan.host_nodes - host.cpuset.mems if host.cpuset.mems else frozenset()
    outside = outside or _narrowed(region, "narrowed-cpuset")
    if not outside:
        return None
    return Diagnosis(
        Cause.CPUSET,
        f"gmemd's own cpuset (now {format_nodeset(host.cpuset.mems)}) left out "
        f"{in_words(outside)}: the kernel narrows a policy to the cpuset without an error",
        f"give gmemd's unit {in_words(outside)} (AllowedMemoryNodes=, or a slice without the "
        "limit), then restart the VM",
    )


def _policy_changed(region: RegionDrift) -> Diagnosis | None:
    wrong = region.wrong_policy
    if wrong is None:
        return None
    plan = region.plan
    elsewhere = f"; {where(region)}" if region.misplaced_bytes else ""
    return Diagnosis(
        Cause.POLICY_CHANGED,
        f"the kernel holds {describe(wrong.mode, wrong.nodes)}, the spec asks "
        f"{describe(plan.policy, plan.host_nodes)}{elsewhere}",
        "find what calls mbind on this memory (a VMM's own host-nodes= or policy= option) and "
        f"turn it off; {_place_anew(region)}",
    )


def _spec_changed(region: RegionDrift) -> Diagnosis:
    """Explain pages that were there when the spec's policy was changed."""
    plan = region.plan
    found = where(region) or f"shares off by {region.share_error_ratio or 0:.1%}"
    return Diagnosis(
        Cause.POLICY_CHANGED,
        f"{found}: these pages were there when the spec was changed to "
        f"{describe(plan.policy, plan.host_nodes)}, which rules the pages to come",
        f"{_place_anew(region)}, or change the spec back",
    )


def _never_ruled(region: RegionDrift, host: Host, source: Source) -> Diagnosis | None:
    """Cover regions on whose later pages nothing that gmemd set has any say."""
    plan = region.plan
    if plan.policy in TASK_RULED:
        return Diagnosis(
            Cause.NO_POLICY,
            f"{where(region)}: policy: {plan.policy} leaves each page to the task that touches "
            "it first",
            f"use policy: bind with host_nodes: {format_nodeset(plan.host_nodes)}, or run the "
            "VM's threads on these nodes' CPUs",
        )
    if plan.strategy is Strategy.INODE_POLICY and region.outcome != "not-kept":
        return None
    if plan.strategy is Strategy.PROXY_ALLOCATION and plan.prefault and plan.policy in PREFERRING:
        return None
    if plan.page_size != BASE_PAGE:
        why = "hugetlb memory keeps no policy"
        kept = "never punch or balloon it" if plan.prefault else f"use {_prefaulted(source)}"
        remedy = f"{kept}; {_place_anew(region)}"
    elif not host.supports("inode_policy") or region.outcome == "not-kept":
        why = "this kernel keeps no policy on guest_memfd"
        remedy = f"use a kernel of 6.19 or later, or {_prefaulted(source)}; {_place_anew(region)}"
    else:
        why = "no policy could be set on it"
        remedy = f"use {_prefaulted(source)} and never punch or balloon it; {_place_anew(region)}"
    return Diagnosis(
        Cause.NO_INODE_POLICY,
        f"{where(region) or 'shares are off'}: {why}, so pages that weren't prefaulted, or were "
        "punched and touched again, go where the touching task's policy says",
        remedy,
    )


def _spilled(region: RegionDrift, host: Host) -> Diagnosis | None:
    plan = region.plan
    if not region.misplaced_bytes or plan.policy not in PREFERRING | INTERLEAVING:
        return None
    left = room(plan, host, plan.host_nodes)
    strict = (
        ", or use policy: bind, which refuses rather than spills"
        if plan.policy in PREFERRING
        else ""
    )
    return Diagnosis(
        Cause.SPILLED,
        f"{where(region)}: {plan.policy} overflows by design when its nodes are full"
        + (f" ({left})" if left else ""),
        f"free memory on {in_words(plan.host_nodes)}; {_place_anew(region)}{strict}",
    )


def _shares_off(region: RegionDrift, source: Source) -> Diagnosis | None:
    if region.misplaced_bytes or not region.share_error_ratio:
        return None
    plan = region.plan
    held = {node: region.audit.by_node.get(node, 0) for node in sorted(plan.host_nodes)}
    shares = ", ".join(f"node {node} {format_size(size)}" for node, size in held.items())
    against = (
        "the host's weights" if plan.policy is PolicyMode.WEIGHTED_INTERLEAVE else "equal shares"
    )
    return Diagnosis(
        Cause.SHARES,
        f"{shares}, off {against} by {region.share_error_ratio:.1%}: the kernel goes round-robin "
        "per touching task, a full node is passed over, and weights count when a page is made",
        f"use {_prefaulted(source)}, which gives each region a task of its own; "
        f"{_place_anew(region)}",
    )


def _placed_otherwise(region: RegionDrift, source: Source) -> Diagnosis:
    """Explain misplaced pages under a strict policy that the kernel does hold."""
    plan = region.plan
    found = where(region)
    if region.policy_match is None and plan.strategy is Strategy.INODE_POLICY:
        return Diagnosis(
            Cause.UNKNOWN,
            f"{found}, and the policy that the kernel holds can't be read",
            _place_anew(region),
        )
    if plan.backend is Backend.MEMFD:
        return Diagnosis(
            Cause.MOVED,
            f"{found} although the policy holds: memfd pages are moved by NUMA balancing, "
            "migratepages and changes of a cpuset's mems",
            "turn off what moves them (kernel.numa_balancing, numad, the VMM's cpuset) and "
            f"{_place_anew(region)}",
        )
    if source is Source.CREATE:
        return Diagnosis(
            Cause.CPUSET,
            f"{found} although the policy holds: a task whose cpuset leaves out "
            f"{in_words(plan.host_nodes)} touched them first, and a task's cpuset wins over the "
            "memory's policy",
            f"give the VMM's cpuset {in_words(plan.host_nodes)}, or use prefault: true; "
            f"{_place_anew(region)}",
        )
    return _resident_before(region)


def _resident_before(region: RegionDrift) -> Diagnosis:
    """Explain pages that were there when the policy came."""
    found = where(region) or f"shares off by {region.share_error_ratio or 0:.1%}"
    return Diagnosis(
        Cause.RESIDENT_BEFORE_POLICY,
        f"{found} although the policy holds: these pages were resident before it was set",
        "have the policy set before the VM's memory is touched (source: register, or create); "
        f"{_place_anew(region)}",
    )
