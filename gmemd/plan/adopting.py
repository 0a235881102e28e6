"""Which memory of a running VMM is taken for which of its spec's regions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.host.vms.model import PieceKind
from gmemd.plan.claims import can_be_taken, find_claims, unlike_sizes
from gmemd.plan.dividing import Kind, Share, divide, is_of_kind, plan_received
from gmemd.plan.errors import LayoutMismatchError
from gmemd.spec.model import Backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gmemd.host.model import Host
    from gmemd.host.vms.model import Piece
    from gmemd.plan.claims import Claim
    from gmemd.plan.model import RegionPlan
    from gmemd.plan.observed import Extent, ObservedVm
    from gmemd.spec.declared import Declaration
    from gmemd.spec.model import GuestNode, RegionSpec, VmSpec

_WITH_FD = (
    "run the VMM with memory that it has a descriptor of: QEMU's memory-backend-memfd, "
    "cloud-hypervisor's --memory shared=on"
)


@dataclass(frozen=True, slots=True)
class AdoptedRegion:
    """A range of a file that the VMM has open: ``plan.size_bytes`` from ``offset`` on.

    ``fd`` is the VMM's number of it, and ``inode`` (device's major, minor, and number; None where
    it isn't known) what must be behind it still. ``spec_index`` numbers the spec's regions of the
    guest node, ``plan.index`` the ranges. ``memdev`` is what the VMM calls it, empty if nothing.
    """

    plan: RegionPlan
    region: RegionSpec
    spec_index: int
    fd: int
    offset: int
    inode: tuple[int, int, int] | None
    memdev: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """Memory of a guest node that can't be taken, and why; ``found`` if the VMM has it at all."""

    guest_node: int
    size_bytes: int
    why: str
    found: bool = True


@dataclass(frozen=True, slots=True)
class Adoption:
    """What to take of a VMM, and what is left to it."""

    regions: tuple[AdoptedRegion, ...]
    left: tuple[Left, ...] = ()


def plan_adoption(vm: ObservedVm, spec: VmSpec, declaration: Declaration, host: Host) -> Adoption:
    """Say what is taken of a running VMM; raises LayoutMismatchError and AmbiguousError.

    ``vm`` is the VMM as `plan_observed` saw it beside the same spec and declaration.
    """
    claims = find_claims(vm, spec, declaration)
    taken: list[AdoptedRegion] = []
    left: list[Left] = []
    for node in spec.guest_nodes:
        mine = [claim for claim in claims if claim.guest_node == node.id]
        ranges = [*_ranges(node, mine), *_not_found(vm, node.id)]
        regions = _adopt(spec, node, ranges, host)
        others = [
            Left(node.id, found.size_bytes, found.lost, found=found.piece is not None)
            for found in ranges
            if found.lost
        ]
        size = sum(region.plan.size_bytes for region in regions)
        if size < node.size_bytes and not others:
            raise unlike_sizes(node.id, node.size_bytes, size)
        taken += regions
        left += others
    if not taken:
        why = "; ".join(dict.fromkeys(other.why for other in left))
        raise LayoutMismatchError(
            f"nothing of {spec.vm}'s memory in process {vm.vmm.pid} can be taken: {why}",
            hint=_WITH_FD,
        )
    return Adoption(tuple(taken), tuple(left))


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes in a row of a guest node's memory; ``lost`` is why they can't be taken.

    ``piece`` is None for what wasn't found. ``beside`` is no part of the guest node's size.
    """

    size_bytes: int
    piece: Piece | None = None
    offset: int = 0
    memdev: str = ""
    spec_index: int | None = None
    lost: str = ""
    beside: bool = False


def _adopt(
    spec: VmSpec, node: GuestNode, ranges: Sequence[_Range], host: Host
) -> list[AdoptedRegion]:
    """Divide a guest node's memory; what is lost has its region too, so nothing else gets it."""
    counted = [found for found in ranges if not found.beside]
    shares = [
        Share(found.size_bytes, None if found.lost else _kind(found.piece), found.spec_index)
        for found in counted
    ]
    chosen = divide(node, [region.size_bytes for region in node.regions], shares)
    regions: list[AdoptedRegion] = []
    for found, spec_index in zip(counted, chosen, strict=True):
        if found.piece is None or found.lost or spec_index is None:
            continue
        region = node.regions[spec_index]
        plan = plan_received(
            spec, node.id, len(regions), region, size_bytes=found.size_bytes, host=host
        )
        regions.append(
            AdoptedRegion(
                plan=plan,
                region=region,
                spec_index=spec_index,
                fd=found.piece.fds[0],
                offset=found.offset,
                inode=found.piece.inode,
                memdev=found.memdev,
            )
        )
    return regions


def _ranges(node: GuestNode, claims: Iterable[Claim]) -> Iterator[_Range]:
    """The guest node's memory; of a backend's two kinds the one that the spec names counts."""
    found = [(claim, extents) for claim in claims for extents in _rows(claim.extents)]
    as_asked = {
        claim.memdev
        for claim, extents in found
        if any(is_of_kind(region, _kind(extents[0].piece)) for region in node.regions)
    }
    for claim, extents in found:
        piece = extents[0].piece
        asked = any(is_of_kind(region, _kind(piece)) for region in node.regions)
        beside = not asked and bool(claim.memdev) and claim.memdev in as_asked
        lost = "" if can_be_taken(piece) else _why_lost(piece)
        if beside:
            lost = f"{piece.kind} of {claim.memdev} beside what the spec names"
        yield _Range(
            size_bytes=sum(extent.length for extent in extents),
            piece=piece,
            offset=piece.offset + extents[0].offset,
            memdev=claim.memdev,
            spec_index=claim.spec_index,
            lost=lost,
            beside=beside,
        )


def _rows(extents: Iterable[Extent]) -> list[list[Extent]]:
    """Extents that follow upon each other in one file: madvise splits mappings."""
    rows: list[list[Extent]] = []
    for extent in extents:
        before = rows[-1][-1] if rows else None
        if before is not None and _follows(before, extent):
            rows[-1].append(extent)
        else:
            rows.append([extent])
    return rows


def _follows(before: Extent, extent: Extent) -> bool:
    first, second = before.piece, extent.piece
    if first.inode is None or (first.inode, first.kind) != (second.inode, second.kind):
        return False
    return first.offset + before.offset + before.length == second.offset + extent.offset


def _not_found(vm: ObservedVm, guest_node: int) -> Iterator[_Range]:
    """Backends of the guest node that have no memory, as far as can be seen."""
    for backend, why in vm.matching.missing:
        for number, size in backend.parts:
            if number == guest_node:
                name = backend.id or "its memory"
                yield _Range(size, lost=f"{name} isn't found in the VMM: {why}")


def _kind(piece: Piece | None) -> Kind | None:
    """What a piece is made of."""
    return None if piece is None else Kind(Backend(piece.kind), piece.page_size)


def _why_lost(piece: Piece) -> str:
    if piece.kind is PieceKind.ANONYMOUS:
        what = "anonymous memory" if piece.file is None else "a private copy of a file"
        return f"{what} can only be observed"
    if piece.kind is PieceKind.FILE:
        return "a file that has a name can only be observed"
    return f"the VMM has no descriptor of its {piece.kind} open"
