"""Whether a region fits, node by node, and what it is expected to take from each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.plan.model import Refusal, Strategy
from gmemd.spec.model import SMALL_PAGE, Backend, PolicyMode, RegionSpec
from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.host.model import Host
    from gmemd.plan.ledger import Ledger, NodeRoom

_SPREAD = frozenset({PolicyMode.INTERLEAVE, PolicyMode.WEIGHTED_INTERLEAVE})
_UNTOLD = frozenset({PolicyMode.DEFAULT, PolicyMode.LOCAL})


@dataclass(frozen=True, slots=True)
class Reserve:
    """What admission leaves alone on every node: a share of its memory, and never less than that.

    ``ratio`` goes from 0 to 1. Where the kernel panics rather than kills, twice as much is left:
    what else takes memory between a look and an allocation must not be what tips it over.
    """

    ratio: float = 0.02
    minimum_bytes: int = 256 << 20

    def bytes_of(self, node_bytes: int, host: Host) -> int:
        """Return the reserve, in bytes, of a node that has ``node_bytes`` in all."""
        if node_bytes <= 0:
            return 0
        return max(int(node_bytes * self.ratio), self.minimum_bytes) * (2 if host.oom_panics else 1)


@dataclass(frozen=True, slots=True)
class Admission:
    """What a region is expected to take (bytes per host node), or why it may not."""

    demand: Mapping[int, int] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """One region at the counter. ``title`` names it in messages."""

    title: str
    region: RegionSpec
    strategy: Strategy
    prefault: bool

    @property
    def hugetlb(self) -> bool:
        """Whether it takes from hugepage pools."""
        return self.region.page_size > SMALL_PAGE

    @property
    def movable(self) -> bool:
        """Whether its pages may be in ZONE_MOVABLE."""
        return self.region.backend is not Backend.GUEST_MEMFD

    @property
    def strict(self) -> bool:
        """Whether its pages may come from its host nodes alone, together.

        Prefaulting ``default`` and ``local`` is done under a strict policy of the helper's.
        """
        if self.strategy is Strategy.UNMANAGED or not self.region.host_nodes:
            return False
        bound = self.region.policy is PolicyMode.BIND
        return bound or (self.prefault and self.region.policy in _UNTOLD)

    @property
    def spread(self) -> bool:
        """Whether each of its host nodes has to give its own share."""
        return self.strategy is not Strategy.UNMANAGED and self.region.policy in _SPREAD


def admit(ask: Ask, host: Host, ledger: Ledger) -> Admission:
    """Hold one region against what is left. Takes nothing from the ledger."""
    if ask.spread:
        admission = _admit_shares(ask, host, ledger)
    elif ask.strict:
        admission = _admit_together(ask, host, ledger)
    else:
        admission = _admit_softly(ask, host, ledger)
    if ask.hugetlb and not admission.refusals:
        left = ledger.pool_room_left(ask.region.page_size)
        if ask.region.size_bytes > left:
            return Admission(refusals=(_host_wide_pool_refusal(ask, ledger, left),))
    return admission


def shares(region: RegionSpec, host: Host) -> Mapping[int, int]:
    """Return each host node's part of an interleaved region, in bytes; whole pages.

    Equal parts, or by the host's weights; the pages left over go to the lowest nodes.
    """
    weights = dict.fromkeys(sorted(region.host_nodes), 1)
    if region.policy is PolicyMode.WEIGHTED_INTERLEAVE:
        known = {node.id: node.interleave_weight for node in host.nodes}
        weights = {node: known.get(node, 1) for node in weights}
    pages = region.size_bytes // region.page_size
    total = sum(weights.values())
    parts = {node: pages * weight // total for node, weight in weights.items()}
    left_over = pages - sum(parts.values())
    for node in list(parts)[:left_over]:
        parts[node] += 1
    return {node: part * region.page_size for node, part in parts.items()}


def nearest_first(nodes: frozenset[int], host: Host) -> tuple[int, ...]:
    """Order the nodes as the kernel fills them, from the first that has CPUs, by distance."""
    known = [node for node in host.nodes if node.id in nodes]
    if not known:
        return ()
    start = next((node for node in known if node.cpus), known[0])
    return tuple(
        sorted((node.id for node in known), key=lambda node: (start.distances.get(node, 255), node))
    )


def _room(ask: Ask, ledger: Ledger, node: int) -> NodeRoom:
    return ledger.room(node, ask.region.page_size, movable=ask.movable)


def _fill(ask: Ask, order: tuple[int, ...], ledger: Ledger) -> dict[int, int]:
    """Fill up the nodes one after the other; what is missing in the sum found no room."""
    missing = ask.region.size_bytes
    demand: dict[int, int] = {}
    for node in order:
        left = _room(ask, ledger, node).left_bytes
        taken = min(missing, left - left % ask.region.page_size)
        if taken:
            demand[node] = taken
            missing -= taken
    return demand


def _admit_together(ask: Ask, host: Host, ledger: Ledger) -> Admission:
    """A strict set: the nodes have to hold it together."""
    nodes = _usable(ask, host)
    demand = _fill(ask, nearest_first(nodes, host), ledger)
    if sum(demand.values()) < ask.region.size_bytes:
        return Admission(refusals=(_refusal(ask, nodes, ask.region.size_bytes, ledger),))
    return Admission(demand, warnings=_cache_warnings(ask, demand, ledger))


def _admit_shares(ask: Ask, host: Host, ledger: Ledger) -> Admission:
    """Interleaving: each node has to hold its share, or the shares are off from the start."""
    demand = shares(ask.region, host)
    refusals = tuple(
        _refusal(ask, frozenset({node}), needed, ledger)
        for node, needed in demand.items()
        if needed > _room(ask, ledger, node).left_bytes
    )
    if refusals:
        return Admission(refusals=refusals)
    return Admission(demand, warnings=_cache_warnings(ask, demand, ledger))


def _admit_softly(ask: Ask, host: Host, ledger: Ledger) -> Admission:
    """Preferences and what nobody places: refused only where the whole host can't hold it."""
    everywhere = frozenset(node.id for node in host.nodes if node.has_memory)
    wanted = ask.region.host_nodes & everywhere
    first = nearest_first(wanted, host)
    start = host.node(first[0]) if first else None
    distances = start.distances if start is not None else {}
    rest = sorted(everywhere - wanted, key=lambda node: (distances.get(node, 255), node))
    demand = _fill(ask, (*first, *rest), ledger)
    size = ask.region.size_bytes
    if sum(demand.values()) < size:
        return Admission(refusals=(_refusal(ask, everywhere, size, ledger),))
    if not ask.region.host_nodes:
        warning = f"{ask.title}: no host_nodes, so where it goes is unknown and counted nowhere"
        return Admission(warnings=(warning,))
    spilled = {node: taken for node, taken in demand.items() if node not in wanted}
    if not spilled:
        return Admission(demand, warnings=_cache_warnings(ask, demand, ledger))
    elsewhere = ", ".join(f"{_amount(part)} to node {n}" for n, part in spilled.items())
    left = sum(_room(ask, ledger, node).left_bytes for node in wanted)
    warning = (
        f"{ask.title}: host {_nodes(wanted)} {_has(wanted)} {_amount(left)} left for its "
        f"{_amount(size)}: expect {elsewhere} to spill"
    )
    return Admission(demand, warnings=(warning,))


def _usable(ask: Ask, host: Host) -> frozenset[int]:
    """The host nodes that a strict region's pages can really come from."""
    if ask.movable or ask.hugetlb:
        return ask.region.host_nodes
    movable_only = {node.id for node in host.nodes if node.movable_only}
    return ask.region.host_nodes - movable_only


def _cache_warnings(ask: Ask, demand: Mapping[int, int], ledger: Ledger) -> tuple[str, ...]:
    """One line per node that holds the demand only by dropping clean page cache."""
    if ask.hugetlb:
        return ()
    warnings = []
    for node, size_bytes in demand.items():
        room = _room(ask, ledger, node)
        dropped = size_bytes - max(0, room.free_bytes - room.committed_bytes)
        if dropped > 0:
            warnings.append(
                f"{ask.title}: host node {node} will drop {_amount(dropped)} of clean page "
                f"cache to hold {_amount(size_bytes)} "
                f"({_amount(max(0, room.free_bytes - room.committed_bytes))} is free)"
            )
    return tuple(warnings)


def _refusal(ask: Ask, nodes: frozenset[int], needed: int, ledger: Ledger) -> Refusal:
    rooms = {node: _room(ask, ledger, node) for node in sorted(nodes)}
    left = sum(room.left_bytes for room in rooms.values())
    what = (
        f"free {_amount(ask.region.page_size)} pages"
        if ask.hugetlb
        else "available"
        if ask.movable
        else "placeable available"
    )
    sums = "; ".join(_sum(node, room, what) for node, room in rooms.items())
    share = " as its share" if ask.spread else ""
    return Refusal(
        reason="not-enough-hugepages" if ask.hugetlb else "not-enough-memory",
        host_nodes=nodes,
        page_size=ask.region.page_size,
        needed_bytes=needed,
        available_bytes=sum(room.available_bytes for room in rooms.values()),
        committed_bytes=sum(room.committed_bytes for room in rooms.values()),
        reserve_bytes=sum(room.reserve_bytes for room in rooms.values()),
        message=(
            f"{ask.title} needs {_amount(needed)} on host {_nodes(nodes)}{share}, "
            f"{_amount(needed - left)} more than {_they_have(nodes)} left ({sums})"
        ),
        hint=_hint(ask, nodes, needed - left),
    )


def _sum(node: int, room: NodeRoom, what: str) -> str:
    reserve = f" - {_amount(room.reserve_bytes)} reserve" if room.reserve_bytes else ""
    return (
        f"node {node}: {_amount(room.available_bytes)} {what} "
        f"- {_amount(room.committed_bytes)} committed{reserve} = "
        f"{_amount(room.left_bytes)}"
    )


def _hint(ask: Ask, nodes: frozenset[int], short: int) -> str:
    size = ask.region.page_size
    if not nodes:
        return "name host nodes that have memory"
    if not ask.hugetlb:
        return "give the VM less memory, name another or one more host node, or free some there"
    node, pages, name = min(nodes), -(-short // size), f"hugepages-{size // 1024}kB"
    added = f"{pages} huge {'page' if pages == 1 else 'pages'}"
    return (
        f"add {added}: raise /sys/devices/system/node/node{node}/hugepages/{name}/"
        f"nr_hugepages by {pages}, early after boot"
    )


def _host_wide_pool_refusal(ask: Ask, ledger: Ledger, left: int) -> Refusal:
    size, region = ask.region.page_size, ask.region
    reserved = ledger.reserved_hugepages(size)
    return Refusal(
        reason="not-enough-hugepages",
        host_nodes=region.host_nodes,
        page_size=size,
        needed_bytes=region.size_bytes,
        available_bytes=left,
        committed_bytes=0,
        reserve_bytes=reserved * size,
        message=(
            f"{ask.title} needs {_amount(region.size_bytes)} in {_amount(size)} pages, "
            f"the whole host has {_amount(left)} in such pages left "
            f"({reserved} of the free ones are reserved by mappings)"
        ),
        hint=_hint(ask, region.host_nodes, region.size_bytes - left),
    )


def _nodes(nodes: frozenset[int]) -> str:
    return f"{'node' if len(nodes) == 1 else 'nodes'} {format_nodeset(nodes) or 'none'}"


def _they_have(nodes: frozenset[int]) -> str:
    return "it has" if len(nodes) == 1 else "they have"


def _has(nodes: frozenset[int]) -> str:
    return "has" if len(nodes) == 1 else "have"


def _amount(size_bytes: int) -> str:
    """A size to two decimals of its unit, so that a message's figures add up before one's eyes."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.2f}".rstrip("0").rstrip(".") + unit
    return f"{size_bytes}B"
