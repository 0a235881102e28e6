"""Why the memory of a VM that somebody else runs is not where its VMM was told to put it.

What was asked for is the VMM's command line, or else the cpuset of its cgroup; gmemd set no policy
and knows of none but those that the kernel gives back, if it was asked for them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from gmemd.spec.model import Backend
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from gmemd.drift.region import RegionDrift
    from gmemd.host.model import Host

BY_COMMAND_LINE = "its command line"
BY_SPEC = "its spec"


@dataclass(frozen=True, slots=True)
class Around:
    """What a region's diagnosis depends on besides itself.

    ``asked_by`` is who named host nodes and policy (``its command line``); ``held_elsewhere`` are
    the host nodes where other regions of the VM have pages that belong there, ``astray`` those
    where they have pages that don't.
    """

    host: Host
    asked_by: str = BY_COMMAND_LINE
    held_elsewhere: frozenset[int] = frozenset()
    astray: frozenset[int] = frozenset()


_ANEW = "restart the VM to place its memory anew"
_SHARED = frozenset({Backend.MEMFD, Backend.FILE})


def diagnose_observed(region: RegionDrift, around: Around) -> Diagnosis:
    """Tell why a region of a running VM drifts; the first explanation that holds wins."""
    return (
        _node_offline(region, around)
        or _policy_differs(region, around)
        or _outside_cpuset(region, around)
        or _shares_off(region, around)
        or _spilled(region, around)
        or _guest_memfd(region, around)
        or _moved(region, around)
    )


def _asked(region: RegionDrift, around: Around) -> str:
    """Who named the host nodes."""
    by_cpuset = region.plan.policy in TASK_RULED and around.asked_by == BY_COMMAND_LINE
    return "its cgroup's cpuset.mems" if by_cpuset else around.asked_by


def _place_again(region: RegionDrift, around: Around) -> str:
    """How pages that lie wrong get to where they belong.

    migratepages takes all that the process has on a node, whichever guest node it is of.
    """
    plan = region.plan
    if plan.backend is Backend.GUEST_MEMFD:
        return f"guest_memfd pages can't be moved: {_ANEW}"
    if not region.misplaced_bytes:
        return _ANEW
    sources = frozenset(region.misplaced_by_node)
    if taken_along := sources & around.held_elsewhere:
        return (
            f"{_ANEW}: migratepages would take memory of another guest node along, which belongs "
            f"on {in_words(taken_along)}"
        )
    if mixed := plan.host_nodes & around.astray:
        return (
            f"{_ANEW}: another guest node's memory is on {in_words(mixed)}, and migratepages can't "
            "tell them apart once they are on one node"
        )
    targets = in_words(plan.host_nodes)
    back = (
        "move its pages back (migratepages as root, with the VMM's pid, from "
        f"{in_words(sources)} to {targets})"
    )
    if plan.page_size == BASE_PAGE:
        return back
    return f"free huge pages of {format_size(plan.page_size)} on {targets}, then {back}"


def _node_offline(region: RegionDrift, around: Around) -> Diagnosis | None:
    absent = region.plan.host_nodes - memory_nodes(around.host)
    if not absent:
        return None
    are = "are" if len(absent) > 1 else "is"
    found = f" ({where(region)})" if region.misplaced_bytes else ""
    asked = _asked(region, around)
    return Diagnosis(
        Cause.NODE_OFFLINE,
        f"{asked} names {in_words(absent)}, which {are} offline or without memory: the kernel "
        f"leaves such nodes out of a policy, and moves pages away as a node goes{found}",
        f"bring the memory of {in_words(absent)} online, or have {asked} name others; then restart "
        "the VM",
    )


def _policy_differs(region: RegionDrift, around: Around) -> Diagnosis | None:
    """Explain a policy that the kernel gave back, and that isn't the command line's."""
    wrong, plan = region.wrong_policy, region.plan
    if wrong is None:
        return None
    found = f"; {where(region)}" if region.misplaced_bytes else ""
    if wrong.mode in TASK_RULED:
        why = ": it was never set on this memory, or was taken back"
        remedy = "have the VMM set the policy as it makes the memory (host-nodes=, policy=)"
    elif wrong.mode == plan.policy:
        why = ": a change of a cgroup's cpuset.mems rewrites the nodes of its processes' policies"
        remedy = f"have the cpuset.mems of its cgroup hold {in_words(plan.host_nodes)}"
    else:
        why = ""
        remedy = "find what calls mbind on this memory after its VMM did, and turn it off"
    return Diagnosis(
        Cause.POLICY_CHANGED,
        f"the kernel holds {describe(wrong.mode, wrong.nodes)}, {around.asked_by} asks "
        f"{describe(plan.policy, plan.host_nodes)}{why}{found}",
        f"{remedy}; {_place_again(region, around)}",
    )


def _outside_cpuset(region: RegionDrift, around: Around) -> Diagnosis | None:
    """Explain pages of memory that nothing but the cgroup's cpuset rules."""
    plan = region.plan
    if plan.policy not in TASK_RULED:
        return None
    shared = plan.backend in _SHARED or plan.backend is Backend.GUEST_MEMFD
    others = ", or made by another process that shares it (a vhost-user backend)" if shared else ""
    if around.asked_by == BY_SPEC:
        return Diagnosis(
            Cause.NO_POLICY,
            f"{where(region)}; its spec expects {in_words(plan.host_nodes)} without a policy: each "
            f"page is left to the task that touches it first{others}",
            f"run the VM with memory that is bound to {in_words(plan.host_nodes)}; "
            f"{_place_again(region, around)}",
        )
    return Diagnosis(
        Cause.CPUSET,
        f"{where(region)}, outside its cgroup's cpuset.mems ({format_nodeset(plan.host_nodes)}): "
        f"touched before that was set, or left behind when it changed{others}",
        f"{_place_again(region, around)}; set cpuset.mems before the VMM starts",
    )


def _shares_off(region: RegionDrift, around: Around) -> Diagnosis | None:
    if region.misplaced_bytes or not region.share_error_ratio:
        return None
    plan, audit = region.plan, region.audit
    about, least = ("about ", "at least ") if audit.sample is not None else ("", "")
    shares = ", ".join(
        f"node {node} {about}{format_size(audit.by_node.get(node, 0))}"
        for node in sorted(plan.host_nodes)
    )
    return Diagnosis(
        Cause.SHARES,
        f"{shares}: off the shares that {around.asked_by} asks ({plan.policy}) by "
        f"{least}{region.share_error_ratio:.1%}; a node that is full is passed over, and pages "
        "that were moved since keep no shares",
        f"make room on {in_words(plan.host_nodes)}, and {_ANEW}",
    )


def _spilled(region: RegionDrift, around: Around) -> Diagnosis | None:
    plan = region.plan
    if plan.policy not in PREFERRING | INTERLEAVING:
        return None
    full = "its nodes are full"
    if plan.page_size != BASE_PAGE:
        full = f"its nodes have no free huge page of {format_size(plan.page_size)}"
    left = room(plan, around.host, plan.host_nodes)
    strict = "; policy=bind refuses rather than spills" if plan.policy in PREFERRING else ""
    return Diagnosis(
        Cause.SPILLED,
        f"{where(region)}: {plan.policy}, as {around.asked_by} asks, overflows by design when "
        f"{full}" + (f" ({left})" if left else ""),
        f"make room on {in_words(plan.host_nodes)}, then {_place_again(region, around)}{strict}",
    )


def _guest_memfd(region: RegionDrift, around: Around) -> Diagnosis | None:
    """Explain guest_memfd under a strict policy: its pages are still where they were made."""
    plan = region.plan
    if plan.backend is not Backend.GUEST_MEMFD:
        return None
    asks = f"{around.asked_by} asks {describe(plan.policy, plan.host_nodes)}"
    if not around.host.supports("inode_policy"):
        return Diagnosis(
            Cause.NO_INODE_POLICY,
            f"{where(region)}; {asks}, but this kernel keeps no policy on guest_memfd: its pages "
            "go where the touching task's policy says",
            f"use a kernel of 6.19 or later, or start the VMM under numactl --membind; "
            f"{_place_again(region, around)}",
        )
    if region.policy_match is None:
        return Diagnosis(
            Cause.UNKNOWN,
            f"{where(region)}; {asks}, and whether the kernel holds that can't be read",
            _place_again(region, around),
        )
    return Diagnosis(
        Cause.RESIDENT_BEFORE_POLICY,
        f"{where(region)}; {asks}, and the kernel holds that: these pages were made before it was "
        f"set, or by a task whose cpuset leaves out {in_words(plan.host_nodes)}",
        f"have the VMM's cpuset hold {in_words(plan.host_nodes)}; {_place_again(region, around)}",
    )


def _moved(region: RegionDrift, around: Around) -> Diagnosis:
    """Explain movable pages under a strict policy: they weren't made where they are, or too soon.

    NUMA balancing passes over memory whose policy is bind (vma_policy_mof in mm/mempolicy.c), so it
    is named only where the policy wasn't read.
    """
    plan = region.plan
    movers = ["migratepages", "numad", "a change of its cgroup's cpuset.mems"]
    if region.policy_match is None:
        movers.append("NUMA balancing")
    held = ", which the kernel holds" if region.policy_match else ""
    otherwise = ["touched before the policy was set"]
    if plan.page_size != BASE_PAGE and plan.backend in _SHARED:
        otherwise.append("made by another process that shares it, as hugetlb keeps no policy")
    elif plan.backend is Backend.FILE:
        otherwise.append("of a file on a disk, whose pages no policy of a mapping rules")
    return Diagnosis(
        Cause.MOVED,
        f"{where(region)}; {around.asked_by} asks {describe(plan.policy, plan.host_nodes)}{held}: "
        f"moved since ({', '.join(movers)}), or {', or '.join(otherwise)}",
        f"{_place_again(region, around)}, and turn off what moves them",
    )
