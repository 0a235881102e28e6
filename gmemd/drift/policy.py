"""Whether the policy that the kernel holds is the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode, Source
from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    from gmemd.audit.model import PolicyRead
    from gmemd.host.model import Host

BASE_PAGE = 4096
INTERLEAVING = frozenset({PolicyMode.INTERLEAVE, PolicyMode.WEIGHTED_INTERLEAVE})
PREFERRING = frozenset({PolicyMode.PREFERRED, PolicyMode.PREFERRED_MANY})
TASK_RULED = frozenset({PolicyMode.DEFAULT, PolicyMode.LOCAL})

# Outcomes of a bind that leave no policy on the inode.
_KEEPS_NOTHING = frozenset({"not-kept", "hugetlb", "unmappable"})


def memory_nodes(host: Host) -> frozenset[int]:
    """The host nodes that are online and have memory; the kernel drops others from a policy."""
    return frozenset(node.id for node in host.nodes if node.has_memory)


def keeps_policy(plan: RegionPlan, host: Host, outcome: str = "") -> bool:
    """Whether a policy read from this region's inode says anything about its placement.

    Hugetlb memory and guest_memfd before 6.19 keep none: what is read there is always the default.
    """
    if plan.page_size != BASE_PAGE or outcome in _KEEPS_NOTHING:
        return False
    if plan.strategy is Strategy.INODE_POLICY:
        return True
    feature = "inode_policy" if plan.backend is Backend.GUEST_MEMFD else "memfd_inode_policy"
    return plan.policy is PolicyMode.DEFAULT and host.supports(feature)


def canonical(mode: str, nodes: frozenset[int]) -> tuple[str, frozenset[int]]:
    """One spelling for policies that the kernel treats alike.

    ``preferred-many`` with one node is ``preferred``; ``preferred`` with none is ``local``.
    """
    if mode in TASK_RULED:
        return str(mode), frozenset()
    if mode in PREFERRING:
        if not nodes:
            return str(PolicyMode.LOCAL), nodes
        word = PolicyMode.PREFERRED if len(nodes) == 1 else PolicyMode.PREFERRED_MANY
        return str(word), nodes
    return str(mode), nodes


def holds_declared_policy(plan: RegionPlan, host: Host) -> bool:
    """Whether a policy that a running VMM's memory has is one that its command line asked for.

    Where it asked for none, what is found there is a launcher's (numactl) or the VMM's own affair.
    """
    if plan.policy in TASK_RULED:
        return False
    return plan.backend is not Backend.GUEST_MEMFD or host.supports("inode_policy")


def effective_nodes(policy: PolicyRead, host: Host, source: Source) -> frozenset[int]:
    """The nodes of a policy that it can use: with memory, and within gmemd's own cpuset.

    With static or relative flags the kernel gives back the nodes as they were asked for, used or
    not; without them it has narrowed them already. An observed VM's policy isn't gmemd's, nor is
    the cpuset that narrows it.
    """
    nodes = policy.nodes & memory_nodes(host)
    if source is Source.OBSERVE or not policy.flags or not host.cpuset.mems:
        return nodes
    return nodes & host.cpuset.mems


def policy_matches(plan: RegionPlan, policy: PolicyRead, host: Host, source: Source) -> bool:
    """Whether the policy read from the kernel is what the plan asks for, node by node."""
    found = canonical(policy.mode, effective_nodes(policy, host, source))
    return found == canonical(str(plan.policy), plan.host_nodes)


def describe(mode: str, nodes: frozenset[int]) -> str:
    """A policy in a few words: ``bind 0-1``."""
    return f"{mode} {format_nodeset(nodes)}" if nodes else str(mode)
