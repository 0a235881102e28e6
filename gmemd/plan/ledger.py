"""What each host node has left while regions are planned one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gmemd.host.model import Host, HostNode
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import RegionPlan

Pool = tuple[int, int]
"""A hugepage pool: host node and page size in bytes."""

SMALL_PAGE = 4096


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node's figures, in bytes. ``left`` = available - committed - reserve, at least 0.

    ``committed_bytes`` holds what was promised before and what this plan has promised so far.
    """

    available_bytes: int
    free_bytes: int
    committed_bytes: int
    reserve_bytes: int
    left_bytes: int


@dataclass(frozen=True, slots=True)
class _Node:
    """A node's account. Movable pages are taken from ``movable_available`` first."""

    placeable_available: int
    placeable_free: int
    movable_available: int
    reserve: int
    reserve_movable: int
    committed: int
    committed_movable: int = 0


class Ledger:
    """Room per node and per hugepage pool; regions take from it. Its cost is per node, not per VM.

    ``committed`` is placeable bytes promised and not yet resident, by node; ``hugepages_committed``
    is the same in huge pages, by pool.
    """

    def __init__(
        self,
        host: Host,
        reserve: Reserve,
        committed: Mapping[int, int],
        hugepages_committed: Mapping[Pool, int],
    ) -> None:
        self._nodes = {
            node.id: _account(node, host, reserve, committed.get(node.id, 0)) for node in host.nodes
        }
        self._pools = {
            (node.id, size): pool.free
            for node in host.nodes
            for size, pool in node.hugepages.items()
        }
        self._pool_committed = {pool: hugepages_committed.get(pool, 0) for pool in self._pools}
        self._reserved = dict(host.hugepages_reserved)

    def copy(self) -> Ledger:
        """Return an independent ledger with the same figures."""
        twin = object.__new__(Ledger)
        twin._nodes = dict(self._nodes)
        twin._pools = self._pools
        twin._pool_committed = dict(self._pool_committed)
        twin._reserved = self._reserved
        return twin

    def room(self, node: int, page_size: int, *, movable: bool) -> NodeRoom:
        """Return what the node can still give to pages of that size; movable ones may have more."""
        if page_size > SMALL_PAGE:
            return self._pool_room((node, page_size))
        account = self._nodes.get(node)
        if account is None:
            return NodeRoom(0, 0, 0, 0, 0)
        available, committed = account.placeable_available, account.committed
        free, reserve = account.placeable_free, account.reserve
        if movable:
            reserve = account.reserve_movable
            available += account.movable_available
            free += account.movable_available
            committed += account.committed_movable
        return NodeRoom(
            available_bytes=available,
            free_bytes=free,
            committed_bytes=committed,
            reserve_bytes=reserve,
            left_bytes=max(0, available - committed - reserve),
        )

    def pool_room_left(self, page_size: int) -> int:
        """Return the bytes of huge pages that no mapping has reserved, over all nodes.

        The kernel promises huge pages to mappings host-wide; those are free in some pool, but
        nobody else can have them.
        """
        left = sum(
            free - self._pool_committed[pool]
            for pool, free in self._pools.items()
            if pool[1] == page_size
        )
        return max(0, left - self._reserved.get(page_size, 0)) * page_size

    def reserved_hugepages(self, page_size: int) -> int:
        """Return how many huge pages of that size mappings have reserved, host-wide."""
        return self._reserved.get(page_size, 0)

    def take(self, demand: Mapping[int, int], page_size: int, *, movable: bool) -> None:
        """Promise the bytes per node to a region."""
        for node, size_bytes in demand.items():
            if page_size > SMALL_PAGE:
                self._pool_committed[node, page_size] += -(-size_bytes // page_size)
                continue
            account = self._nodes[node]
            spare = account.movable_available - account.committed_movable
            taken = min(size_bytes, max(0, spare)) if movable else 0
            self._nodes[node] = replace(
                account,
                committed=account.committed + size_bytes - taken,
                committed_movable=account.committed_movable + taken,
            )

    def _pool_room(self, pool: Pool) -> NodeRoom:
        available = self._pools.get(pool, 0) * pool[1]
        committed = self._pool_committed.get(pool, 0) * pool[1]
        return NodeRoom(available, available, committed, 0, max(0, available - committed))


@dataclass(frozen=True, slots=True)
class Commitments:
    """What regions were promised: placeable bytes by node, huge pages by pool."""

    committed: Mapping[int, int]
    hugepages_committed: Mapping[Pool, int]


def commitments(
    regions: Iterable[RegionPlan], resident: Mapping[tuple[str, int, int], Mapping[int, int]]
) -> Commitments:
    """Sum up what the regions were promised and don't have yet.

    ``resident`` is bytes per node of what a region (VM, guest node, index) has already: it is gone
    from the host's figures, so it is no promise any more.
    """
    committed: dict[int, int] = {}
    hugepages: dict[Pool, int] = {}
    for region in regions:
        there = resident.get((region.vm, region.guest_node, region.index), {})
        for node, size_bytes in region.demand.items():
            missing = max(0, size_bytes - there.get(node, 0))
            if region.page_size > SMALL_PAGE:
                pool = (node, region.page_size)
                hugepages[pool] = hugepages.get(pool, 0) + missing // region.page_size
            else:
                committed[node] = committed.get(node, 0) + missing
    return Commitments(committed, hugepages)


def total(parts: Iterable[Commitments]) -> Commitments:
    """Sum up what several were promised, none of whose regions is another's."""
    committed: dict[int, int] = {}
    hugepages: dict[Pool, int] = {}
    for part in parts:
        for node, size_bytes in part.committed.items():
            committed[node] = committed.get(node, 0) + size_bytes
        for pool, n_pages in part.hugepages_committed.items():
            hugepages[pool] = hugepages.get(pool, 0) + n_pages
    return Commitments(committed, hugepages)


def _account(node: HostNode, host: Host, reserve: Reserve, committed: int) -> _Node:
    return _Node(
        placeable_available=node.placeable_available_bytes,
        placeable_free=node.placeable_free_bytes,
        movable_available=node.movable_available_bytes,
        reserve=reserve.bytes_of(node.placeable_bytes, host),
        reserve_movable=reserve.bytes_of(node.placeable_bytes + node.movable_bytes, host),
        committed=committed,
    )
