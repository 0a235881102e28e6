"""Drift in words: nodes, what lies where, and what room there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.drift.policy import BASE_PAGE
from gmemd.spec.model import Backend
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gmemd.drift.region import RegionDrift
    from gmemd.host.model import Host, HostNode
    from gmemd.plan.model import RegionPlan


def in_words(nodes: Iterable[int]) -> str:
    """``node 1``, or ``nodes 0-2``."""
    numbers = frozenset(nodes)
    return f"node{'s' if len(numbers) > 1 else ''} {format_nodeset(numbers)}"


def where(region: RegionDrift) -> str:
    """What lies where it should not: ``3MiB on node 2, 1MiB on node 3``; of a sample ``about``."""
    about = "about " if region.audit.sample is not None else ""
    return ", ".join(
        f"{about}{format_size(held)} on node {node}"
        for node, held in region.misplaced_by_node.items()
    )


def room(plan: RegionPlan, host: Host, nodes: Iterable[int]) -> str:
    """What the nodes can still give to such memory: ``node 1 has 12MiB left``."""
    known = [node for number in sorted(nodes) if (node := host.node(number))]
    return ", ".join(f"node {node.id} has {_left(plan, node)} left" for node in known)


def _left(plan: RegionPlan, node: HostNode) -> str:
    if plan.page_size != BASE_PAGE:
        pool = node.hugepages.get(plan.page_size)
        free = pool.free if pool is not None else 0
        return f"{free} huge page{'s' if free != 1 else ''} of {format_size(plan.page_size)}"
    movable = 0 if plan.backend is Backend.GUEST_MEMFD else node.movable_available_bytes
    return format_size(node.placeable_available_bytes + movable)
