"""Which regions of a spec the pieces of memory are that a VMM has made. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gmemd.plan.dividing import Kind, Share, divide, plan_received
from gmemd.plan.errors import LayoutMismatchError
from gmemd.spec.sizes import exact_size, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan
    from gmemd.spec.model import Backend, GuestNode, RegionSpec, VmSpec

MOST_REGIONS = 1024
"""Of one VM: pieces of its guest nodes, hotplugged ones included."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A piece that was taken in before: ``size_bytes`` from ``offset`` on of the file ``inode``.

    ``index`` is its number within the guest node, ``spec_index`` that of the spec's region.
    """

    guest_node: int
    index: int
    spec_index: int
    size_bytes: int
    offset: int
    inode: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Offered:
    """A piece of a guest node's memory that a VMM has made, in bytes.

    ``inode`` is its file's (st_dev, st_ino), and ``file_bytes`` the file's size.
    """

    guest_node: int
    size_bytes: int
    offset: int
    backend: Backend
    page_size: int
    inode: tuple[int, int]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Registration:
    """An offered piece, the spec's region that it belongs to, and its plan (without demand).

    ``spec_index`` numbers the spec's regions of the guest node; ``plan.index`` the pieces.
    """

    offered: Offered
    region: RegionSpec
    spec_index: int
    plan: RegionPlan


def match_offered(
    spec: VmSpec, taken: Sequence[Taken], offered: Sequence[Offered], host: Host
) -> tuple[Registration, ...]:
    """Say what each offered piece is, in their order; raises LayoutMismatchError.

    A piece is the region of its guest node that has its size, or else the first one that still
    lacks that many bytes: a guest node is often in pieces, and comes bit by bit.
    """
    if len(taken) + len(offered) > MOST_REGIONS:
        raise LayoutMismatchError(
            f"{spec.vm} would have {len(taken) + len(offered)} regions, at most {MOST_REGIONS} "
            "are taken in",
            hint="make larger pieces",
        )
    for piece in offered:
        _check(piece)
    _refuse_overlaps(taken, offered)
    found: dict[int, Registration] = {}
    for number in dict.fromkeys(piece.guest_node for piece in offered):
        node = _guest_node(spec, number)
        mine = {n: piece for n, piece in enumerate(offered) if piece.guest_node == number}
        before = [piece for piece in taken if piece.guest_node == number]
        chosen = divide(
            node,
            _lacking(node, before),
            [Share(p.size_bytes, Kind(p.backend, p.page_size)) for p in mine.values()],
        )
        first = max((piece.index for piece in before), default=-1) + 1
        for index, (n, spec_index) in enumerate(zip(mine, chosen, strict=True), first):
            piece, region = mine[n], node.regions[spec_index or 0]
            plan = plan_received(
                spec, number, index, region, size_bytes=piece.size_bytes, host=host
            )
            found[n] = Registration(piece, region, spec_index or 0, plan)
    return tuple(found[number] for number in range(len(offered)))


def missing(spec: VmSpec, taken: Sequence[Taken]) -> dict[int, int]:
    """Return the bytes of each guest node that nobody has registered yet; complete ones are out."""
    lacks = {
        node.id: sum(_lacking(node, [piece for piece in taken if piece.guest_node == node.id]))
        for node in spec.guest_nodes
    }
    return {node: lacking for node, lacking in lacks.items() if lacking > 0}


def _lacking(node: GuestNode, taken: Sequence[Taken]) -> list[int]:
    """What each region of a guest node lacks, in bytes."""
    return [
        region.size_bytes - sum(piece.size_bytes for piece in taken if piece.spec_index == index)
        for index, region in enumerate(node.regions)
    ]


def _guest_node(spec: VmSpec, number: int) -> GuestNode:
    for node in spec.guest_nodes:
        if node.id == number:
            return node
    known = ", ".join(str(node.id) for node in spec.guest_nodes)
    raise LayoutMismatchError(
        f"{spec.vm} has no guest node {number}", guest_node=number, hint=f"the spec has {known}"
    )


def _check(piece: Offered) -> None:
    """Refuse what is no range of whole pages of its file."""
    title = f"guest node {piece.guest_node}"
    for what, value, least in (("size", piece.size_bytes, 1), ("offset", piece.offset, 0)):
        if value < least or value % piece.page_size:
            raise LayoutMismatchError(
                f"{title}: a piece's {what} is {value}, it must be a multiple of the page "
                f"size, {exact_size(piece.page_size)}",
                guest_node=piece.guest_node,
            )
    if piece.offset + piece.size_bytes > piece.file_bytes:
        raise LayoutMismatchError(
            f"{title}: a piece of {format_size(piece.size_bytes)} at {format_size(piece.offset)} "
            f"ends past its file, which has {format_size(piece.file_bytes)}",
            guest_node=piece.guest_node,
        )


def _refuse_overlaps(taken: Sequence[Taken], offered: Sequence[Offered]) -> None:
    """Refuse pieces that have bytes of one file in common."""
    pieces: list[Taken | Offered] = [*taken, *offered]
    ordered = sorted(pieces, key=lambda piece: (piece.inode, piece.offset))
    for before, after in pairwise(ordered):
        if before.inode == after.inode and before.offset + before.size_bytes > after.offset:
            raise LayoutMismatchError(
                f"two pieces of one file overlap at {format_size(after.offset)}"
                if after.offset
                else "two pieces are the same bytes of one file",
                guest_node=after.guest_node,
                hint="offer each byte of a file once; what is registered needn't be offered again",
            )
