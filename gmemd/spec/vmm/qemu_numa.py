"""QEMU's ``-numa``: a guest's nodes, whose memory is whose, and the distances between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.spec.vmm.qemu_options import read_group, read_size
from gmemd.spec.vmm.values import NotUnderstood, quoted, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gmemd.spec.vmm.qemu_options import OptionGroup
    from gmemd.spec.vmm.values import Problems

HIGHEST_GUEST_NODE = 127
"""QEMU has at most 128 guest nodes (MAX_NODES in its numa.h)."""

_MIB = 1 << 20
_LOCAL = 10
_UNREACHABLE = 255
_NO_MEMORY_MATTER = frozenset({"cpu", "hmat-lb", "hmat-cache"})


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A guest node: the id of its memory's backend, or its bytes of the one block, where told."""

    id: int
    memdev: str = ""
    mem_bytes: int | None = None


def read_numa(
    values: Iterable[str], problems: Problems
) -> tuple[list[NumaNode], dict[int, dict[int, int]]]:
    """Read all ``-numa`` of a command line: its nodes, in order, and distances by node and node."""
    nodes: list[NumaNode] = []
    told: dict[tuple[int, int], int] = {}
    for value in values:
        option = f"-numa {value}"
        try:
            group = read_group(value, "type")
            kind = group.get("type")
            if kind == "node":
                nodes.append(_read_node(group, nodes))
            elif kind == "dist":
                _read_distance(group, told)
            elif kind not in _NO_MEMORY_MATTER:
                problems.add(option, f"{quoted(kind)} is no kind that is known")
        except NotUnderstood as error:
            problems.add(option, error)
    return nodes, _both_ways(told)


def split_legacy(
    nodes: Sequence[NumaNode], size_bytes: int, problems: Problems
) -> tuple[tuple[int | None, int], ...]:
    """Guest nodes' parts of the one block of memory, in the order in which they lie in it.

    A single node has all of it. Nodes without ``mem=`` were given shares by old QEMUs, in ways
    that differ.
    """
    if len(nodes) <= 1:
        return ((nodes[0].id if nodes else 0, size_bytes),)
    shares = sorted((node.id, node.mem_bytes) for node in nodes if node.mem_bytes)
    total = sum(size for _, size in shares)
    if not shares:
        problems.add("-numa node", "no node's memory is told: which is whose can't be known")
    elif total > size_bytes:
        problems.add("-numa node,mem=", "the nodes have more than the guest's memory")
    else:
        rest = size_bytes - total
        if rest:
            problems.add("-numa node,mem=", f"{rest} bytes of the guest's memory are no node's")
        return (*shares, (None, rest)) if rest else tuple(shares)
    return ((None, size_bytes),)


def _read_node(group: OptionGroup, before: Sequence[NumaNode]) -> NumaNode:
    """A node; one without a number has that of how many there are before it."""
    number = whole_number(group.get("nodeid", str(len(before))), highest=HIGHEST_GUEST_NODE)
    if any(node.id == number for node in before):
        raise NotUnderstood(f"guest node {number} is declared twice")
    mem = read_size(group.get("mem"), unit=_MIB) if "mem" in group else None
    return NumaNode(number, group.get("memdev"), mem)


def _read_distance(group: OptionGroup, told: dict[tuple[int, int], int]) -> None:
    src, dst = (whole_number(group.get(key), highest=HIGHEST_GUEST_NODE) for key in ("src", "dst"))
    told[src, dst] = whole_number(group.get("val"), highest=_UNREACHABLE)


def _both_ways(told: Mapping[tuple[int, int], int]) -> dict[int, dict[int, int]]:
    """Each node's distances: as far back as forth where only one way is told, itself at 10."""
    distances: dict[int, dict[int, int]] = {}
    for (src, dst), value in told.items():
        for here, there in ((src, dst), (dst, src)):
            mine = distances.setdefault(here, {here: _LOCAL})
            if (here, there) == (src, dst) or (here, there) not in told:
                mine[there] = value
    return distances
