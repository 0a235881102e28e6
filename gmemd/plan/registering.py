"""Which regions of a spec the pieces of memory are that a VMM has made. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from gmemd.plan.errors import LayoutMismatchError
from gmemd.plan.model import RegionPlan
from gmemd.plan.strategy import choose_strategy
from gmemd.spec.sizes import exact_size, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.host.model import Host
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
    _refuse_overlaps(taken, offered)
    found: dict[int, Registration] = {}
    for node_id in dict.fromkeys(piece.guest_node for piece in offered):
        node = _guest_node(spec, node_id)
        work = NodeMatching(
            spec, node, host, [piece for piece in taken if piece.guest_node == node_id]
        )
        mine = [(n, piece) for n, piece in enumerate(offered) if piece.guest_node == node_id]
        for _, piece in mine:
            work.check(piece)
        chosen = {n: index for n, piece in mine if (index := work.of_its_size(piece)) is not None}
        chosen |= {n: work.with_room(piece) for n, piece in mine if n not in chosen}
        found |= {n: work.register(piece, chosen[n]) for n, piece in mine}
    return tuple(found[number] for number in range(len(offered)))


def missing(spec: VmSpec, taken: Sequence[Taken]) -> dict[int, int]:
    """Return the bytes of each guest node that nobody has registered yet; complete ones are out."""
    have: dict[int, int] = {}
    for piece in taken:
        have[piece.guest_node] = have.get(piece.guest_node, 0) + piece.size_bytes
    lacks = {node.id: node.size_bytes - have.get(node.id, 0) for node in spec.guest_nodes}
    return {node: lacking for node, lacking in lacks.items() if lacking > 0}


@dataclass(slots=True)
class NodeMatching:
    """One guest node: what its regions still lack, and the next piece's number."""

    spec: VmSpec
    node: GuestNode
    host: Host
    taken: list[Taken]
    left: list[int] = field(init=False)
    next_index: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = [region.size_bytes for region in self.node.regions]
        for piece in self.taken:
            if piece.spec_index < len(self.left):
                self.left[piece.spec_index] -= piece.size_bytes
        self.next_index = max((piece.index for piece in self.taken), default=-1) + 1

    def check(self, piece: Offered) -> None:
        """Refuse a piece that can be none of the guest node's."""
        title = f"guest node {self.node.id}"
        if not any(_is_made_of(region, piece) for region in self.node.regions):
            wanted = " or ".join(
                dict.fromkeys(_kind(r.backend, r.page_size) for r in self.node.regions)
            )
            raise LayoutMismatchError(
                f"{title}: the spec has {wanted}, {_kind(piece.backend, piece.page_size)} "
                "was offered",
                guest_node=self.node.id,
                hint="make the spec's backend and page_size those of the VMM",
            )
        for what, value in (("size", piece.size_bytes), ("offset", piece.offset)):
            if value < 0 or value % piece.page_size or (what == "size" and not value):
                raise LayoutMismatchError(
                    f"{title}: a piece's {what} is {value}, it must be a multiple of the page "
                    f"size, {exact_size(piece.page_size)}",
                    guest_node=self.node.id,
                )
        if piece.offset + piece.size_bytes > piece.file_bytes:
            raise LayoutMismatchError(
                f"{title}: a piece of {format_size(piece.size_bytes)} at "
                f"{format_size(piece.offset)} ends past its file, which has "
                f"{format_size(piece.file_bytes)}",
                guest_node=self.node.id,
            )

    def of_its_size(self, piece: Offered) -> int | None:
        """Take the first untouched region of just its size."""
        for index, region in enumerate(self.node.regions):
            whole = region.size_bytes == piece.size_bytes == self.left[index]
            if whole and _is_made_of(region, piece):
                self.left[index] = 0
                return index
        return None

    def with_room(self, piece: Offered) -> int:
        """Take the first region that lacks that many bytes."""
        fitting = [
            (index, self.left[index])
            for index, region in enumerate(self.node.regions)
            if _is_made_of(region, piece)
        ]
        for index, lacking in fitting:
            if lacking >= piece.size_bytes:
                self.left[index] -= piece.size_bytes
                return index
        lacking = sum(max(0, left) for _, left in fitting)
        title = f"guest node {self.node.id}"
        if lacking >= piece.size_bytes:
            raise LayoutMismatchError(
                f"{title}: none of its regions lacks {format_size(piece.size_bytes)} in one",
                guest_node=self.node.id,
                hint="a piece belongs to one region: cut it where the spec's regions end",
            )
        raise LayoutMismatchError(
            f"{title}: the spec has {format_size(self.node.size_bytes)}, of which "
            f"{format_size(lacking) if lacking else 'nothing'} is missing; "
            f"{format_size(piece.size_bytes)} was offered",
            guest_node=self.node.id,
            hint="make the spec's sizes those of the VMM, with room for what is hotplugged",
        )

    def register(self, piece: Offered, spec_index: int) -> Registration:
        """Plan a piece of that region."""
        region = self.node.regions[spec_index]
        plan = plan_received(
            self.spec,
            self.node.id,
            self.next_index,
            region.model_copy(update={"size_bytes": piece.size_bytes}),
            self.host,
        )
        self.next_index += 1
        return Registration(piece, region, spec_index, plan)


def plan_received(
    spec: VmSpec, guest_node: int, index: int, region: RegionSpec, host: Host
) -> RegionPlan:
    """Plan a region of memory that a VMM has made; without demand."""
    choice = choose_strategy(region, host, received=True)
    return RegionPlan(
        vm=spec.vm,
        guest_node=guest_node,
        index=index,
        size_bytes=region.size_bytes,
        backend=region.backend,
        page_size=region.page_size,
        policy=region.policy,
        host_nodes=region.host_nodes,
        strategy=choice.strategy,
        reason=choice.reason,
        prefault=choice.prefault,
    )


def _guest_node(spec: VmSpec, number: int) -> GuestNode:
    for node in spec.guest_nodes:
        if node.id == number:
            return node
    known = ", ".join(str(node.id) for node in spec.guest_nodes)
    raise LayoutMismatchError(
        f"{spec.vm} has no guest node {number}", guest_node=number, hint=f"the spec has {known}"
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


def _is_made_of(region: RegionSpec, piece: Offered) -> bool:
    return (region.backend, region.page_size) == (piece.backend, piece.page_size)


def _kind(backend: Backend, page_size: int) -> str:
    return f"{backend} of {exact_size(page_size)} pages"
