"""What the host's nodes have, what is asked of them, and what would be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.plan.ledger import SMALL_PAGE, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gmemd.host.model import Host
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import VmPlan


@dataclass(frozen=True, slots=True)
class NodeOutlook:
    """One node before and after the plans, in bytes.

    ``left`` is what unmovable pages (guest_memfd) could still have, ``left_movable`` what movable
    ones (memfd) could. ``demand`` is in small pages, ``demand_hugepages`` in bytes by page size.
    """

    id: int
    available_bytes: int
    free_bytes: int
    movable_available_bytes: int
    committed_bytes: int
    reserve_bytes: int
    demand_bytes: int
    left_bytes: int
    left_movable_bytes: int
    demand_hugepages: Mapping[int, int]


def outlook(
    plans: Iterable[VmPlan], host: Host, *, committed: Mapping[int, int], reserve: Reserve
) -> tuple[NodeOutlook, ...]:
    """Hold the admitted plans' demand against every node that has memory."""
    ledger = Ledger(host, reserve, committed, {})
    demand: dict[int, int] = {}
    hugepages: dict[int, dict[int, int]] = {}
    for plan in plans:
        for region in plan.regions if plan.admitted else ():
            movable = region.backend != "guest_memfd"
            ledger.take(region.demand, region.page_size, movable=movable)
            for node, size_bytes in region.demand.items():
                if region.page_size > SMALL_PAGE:
                    pools = hugepages.setdefault(node, {})
                    pools[region.page_size] = pools.get(region.page_size, 0) + size_bytes
                else:
                    demand[node] = demand.get(node, 0) + size_bytes
    return tuple(
        NodeOutlook(
            id=node.id,
            available_bytes=node.placeable_available_bytes,
            free_bytes=node.placeable_free_bytes,
            movable_available_bytes=node.movable_available_bytes,
            committed_bytes=committed.get(node.id, 0),
            reserve_bytes=ledger.room(node.id, SMALL_PAGE, movable=True).reserve_bytes,
            demand_bytes=demand.get(node.id, 0),
            left_bytes=ledger.room(node.id, SMALL_PAGE, movable=False).left_bytes,
            left_movable_bytes=ledger.room(node.id, SMALL_PAGE, movable=True).left_bytes,
            demand_hugepages=hugepages.get(node.id, {}),
        )
        for node in host.nodes
        if node.has_memory
    )
