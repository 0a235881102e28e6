"""How memory that a VMM has made, in pieces, is divided among a guest node's regions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gmemd.plan.errors import LayoutMismatchError
from gmemd.plan.model import RegionPlan
from gmemd.plan.strategy import choose_strategy
from gmemd.spec.sizes import exact_size, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.host.model import Host
    from gmemd.spec.model import Backend, GuestNode, RegionSpec, VmSpec


class Kind(NamedTuple):
    """What memory is made of; ``page_size`` in bytes."""

    backend: Backend
    page_size: int

    def __str__(self) -> str:
        return f"{self.backend} of {exact_size(self.page_size)} pages"


@dataclass(frozen=True, slots=True)
class Share:
    """A piece of a guest node's memory, in bytes.

    ``kind`` is None for memory that only takes its region's room; ``spec_index`` is the region
    that it is known to be of.
    """

    size_bytes: int
    kind: Kind | None = None
    spec_index: int | None = None


def divide(node: GuestNode, left: Sequence[int], shares: Sequence[Share]) -> list[int | None]:
    """Find the region (its index) of each share; None for one without a kind that finds no room.

    ``left`` is what each region lacks. A share is of the region that it is known to be of, else of
    the first untouched one of its size, else of the first that lacks as much: a guest node is often
    in pieces, and comes bit by bit. Raises LayoutMismatchError.
    """
    lacking = list(left)
    chosen = [share.spec_index for share in shares]
    for share in shares:
        if share.spec_index is not None:
            lacking[share.spec_index] -= share.size_bytes
        _check_kind(node, share)
    for whole in (True, False):
        for number, share in enumerate(shares):
            if chosen[number] is None:
                index = chosen[number] = _find(node, lacking, share, whole=whole)
                if index is not None:
                    lacking[index] -= share.size_bytes
    for index, share in zip(chosen, shares, strict=True):
        if index is None and share.kind is not None:
            raise _no_room(node, lacking, share.size_bytes, share.kind)
    return chosen


def plan_received(
    spec: VmSpec,
    guest_node: int,
    index: int,
    region: RegionSpec,
    *,
    size_bytes: int,
    host: Host,
) -> RegionPlan:
    """Plan a piece of a region, of memory that a VMM has made; without demand."""
    choice = choose_strategy(region, host, received=True)
    return RegionPlan(
        vm=spec.vm,
        guest_node=guest_node,
        index=index,
        size_bytes=size_bytes,
        backend=region.backend,
        page_size=region.page_size,
        policy=region.policy,
        host_nodes=region.host_nodes,
        strategy=choice.strategy,
        reason=choice.reason,
        prefault=choice.prefault,
    )


def is_of_kind(region: RegionSpec, kind: Kind | None) -> bool:
    """Whether memory of that kind is what the region asks for."""
    return kind is None or (region.backend, region.page_size) == kind


def _find(node: GuestNode, lacking: Sequence[int], share: Share, *, whole: bool) -> int | None:
    size = share.size_bytes
    for index, region in enumerate(node.regions):
        fits = region.size_bytes == size == lacking[index] if whole else size <= lacking[index]
        if fits and is_of_kind(region, share.kind):
            return index
    return None


def _check_kind(node: GuestNode, share: Share) -> None:
    regions = node.regions if share.spec_index is None else [node.regions[share.spec_index]]
    if not any(is_of_kind(region, share.kind) for region in regions):
        kinds = dict.fromkeys(str(Kind(region.backend, region.page_size)) for region in regions)
        raise LayoutMismatchError(
            f"guest node {node.id} is {' or '.join(kinds)} in the spec, {share.kind} in the VMM",
            guest_node=node.id,
            hint="make the spec's backend and page_size those of the VMM",
        )


def _no_room(
    node: GuestNode, lacking: Sequence[int], size_bytes: int, kind: Kind
) -> LayoutMismatchError:
    left = sum(
        max(0, lacks)
        for region, lacks in zip(node.regions, lacking, strict=True)
        if is_of_kind(region, kind)
    )
    if left >= size_bytes:
        return LayoutMismatchError(
            f"guest node {node.id}: none of its regions lacks {format_size(size_bytes)} in one",
            guest_node=node.id,
            hint="a piece belongs to one region: cut it where the spec's regions end",
        )
    return LayoutMismatchError(
        f"guest node {node.id}: a piece of {format_size(size_bytes)} is too much, of the spec's "
        f"{format_size(node.size_bytes)} {format_size(left) if left else 'nothing'} is missing",
        guest_node=node.id,
        hint="make the spec's sizes those of the VMM, with room for what is hotplugged",
    )
