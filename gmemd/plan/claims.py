"""Which memory of a running VMM is which guest node's, for sure. Pure.

What a VMM's command line declares was matched with what it has mapped by `gmemd.plan.observed`. To
look at the wrong one of two guest nodes is a wrong figure; to place it is wrong memory. So where
only an order tells mappings apart, a second one has to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gmemd.host.vms.model import PieceKind
from gmemd.plan.errors import AmbiguousError, Candidate, LayoutMismatchError
from gmemd.plan.observed import Extent, cut, owned
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gmemd.host.vms.model import Piece
    from gmemd.plan.matching import Match
    from gmemd.plan.observed import ObservedVm
    from gmemd.spec.declared import Declaration, DeclaredBackend
    from gmemd.spec.model import RegionSpec, VmSpec

_TAKEN = frozenset({PieceKind.MEMFD, PieceKind.GUEST_MEMFD})
_SAME_SIZES = "make the spec's guest nodes those of the VMM"
_TELL_APART = (
    "give the guest nodes different sizes, or place their backends on the VMM's command line "
    "(policy=, host-nodes=), so that the kernel's policies tell"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory that is a guest node's. ``memdev`` is the VMM's name of it, empty if it has none.

    ``spec_index`` is the spec's region of the guest node, where that names it.
    """

    guest_node: int
    extents: tuple[Extent, ...]
    memdev: str = ""
    spec_index: int | None = None


def can_be_taken(piece: Piece) -> bool:
    """Whether it is a file that has its policy in itself, and that the VMM has open."""
    return piece.kind in _TAKEN and bool(piece.fds)


def find_claims(vm: ObservedVm, spec: VmSpec, declaration: Declaration) -> tuple[Claim, ...]:
    """Say whose the memory is; raises LayoutMismatchError and AmbiguousError."""
    _refuse_unlike_orders(vm)
    _refuse_untold(vm)
    added = tuple(_hot_added(vm, spec, declaration))
    for backend in declaration.backends:
        _compare_named(spec, backend)
    if declaration.backends:
        _compare_sizes(spec, declaration, added)
    return (*_declared(vm, spec), *added)


def unlike_sizes(guest_node: int, wanted: int, have: int) -> LayoutMismatchError:
    """Say that a guest node has other sizes (in bytes) in the spec and in the VMM."""
    told = f"{format_size(wanted)} in the spec" if wanted else "not in the spec"
    found = f"{format_size(have)} in the VMM" if have else "not in the VMM"
    return LayoutMismatchError(
        f"guest node {guest_node} is {told}, {found}", guest_node=guest_node, hint=_SAME_SIZES
    )


def _refuse_unlike_orders(vm: ObservedVm) -> None:
    """Mappings that only an order tells apart: the other order has to say the same."""
    groups: dict[object, list[Match]] = {}
    for match in vm.matching.matches:
        backend = match.backend
        if match.rivals:
            groups.setdefault(match.rivals, []).append(match)
        elif match.how == "policy":
            looks = (backend.kind, backend.size_bytes, backend.shared, backend.page_size)
            groups.setdefault((looks, backend.policy, backend.host_nodes), []).append(match)
    for group in groups.values():
        pieces = [match.pieces[0] for match in group]
        if any(map(can_be_taken, pieces)) and not _orders_agree(pieces):
            names = ", ".join(match.backend.id or "the guest's memory" for match in group)
            raise AmbiguousError(
                f"which of {len(group)} mappings of {format_size(pieces[0].size_bytes)} is which "
                f"of {names} can't be told: the orders of descriptors and of addresses differ",
                candidates=[
                    _candidate(match.pieces[0], vm.vmm.pid, match.backend.parts[0][0])
                    for match in group
                ],
                hint=_TELL_APART,
            )


def _refuse_untold(vm: ObservedVm) -> None:
    """Backends that were not found because several mappings could be theirs."""
    for backend, why in vm.matching.missing:
        untold = [
            piece
            for piece, reason in vm.matching.unmatched
            if reason == why and can_be_taken(piece)
        ]
        if untold:
            guest_node = backend.parts[0][0]
            raise AmbiguousError(
                why,
                candidates=[_candidate(piece, vm.vmm.pid, guest_node) for piece in untold],
                hint=_TELL_APART,
            )


def _orders_agree(pieces: list[Piece]) -> bool:
    """Descriptors ascend as memory is made; so do guest_memfds' inodes, and addresses descend."""
    if not all(map(can_be_taken, pieces)):
        return False
    made = sorted(pieces, key=lambda piece: (piece.fds[0], piece.offset))
    ranks = [
        -piece.address if piece.address is not None else (piece.inode or (0, 0, 0))[2]
        for piece in made
    ]
    return all(before < after for before, after in pairwise(ranks))


def _candidate(piece: Piece, pid: int, guest_node: int | None) -> Candidate:
    at = f" at {piece.address:#x}" if piece.address is not None else ""
    fd = f", descriptor {piece.fds[0]}" if piece.fds else ""
    what = f"{piece.kind}{at}{fd} of process {pid}"
    return Candidate(what, pid, guest_node, piece.size_bytes)


def _declared(vm: ObservedVm, spec: VmSpec) -> Iterator[Claim]:
    """What the command line declares and was found, by guest node."""
    named = {
        region.memdev: index
        for node in spec.guest_nodes
        for index, region in enumerate(node.regions)
        if region.memdev is not None
    }
    for match in vm.matching.matches:
        extents = [Extent(piece, 0, piece.size_bytes) for piece in match.pieces]
        for guest_node, size in match.backend.parts:
            mine, extents = cut(extents, size)
            if guest_node is not None:
                name = match.backend.id
                yield Claim(guest_node, tuple(mine), name, named.get(name))
    if not vm.matching.matches:
        for region in vm.regions:
            yield Claim(region.plan.guest_node, region.extents)


def _hot_added(vm: ObservedVm, spec: VmSpec, declaration: Declaration) -> Iterator[Claim]:
    """Regions named after backends that no command line has: told by their size."""
    known = {backend.id for backend in declaration.backends}
    for node in spec.guest_nodes:
        for index, region in enumerate(node.regions):
            if region.memdev is None or region.memdev in known:
                continue
            title = f"guest node {node.id}: {region.memdev}"
            found = [
                other.piece
                for other in vm.unmatched
                if other.piece.size_bytes == region.size_bytes and can_be_taken(other.piece)
            ]
            if not found:
                ids = ", ".join(sorted(filter(None, known))) or "none"
                raise LayoutMismatchError(
                    f"{title} is no memory backend of the VMM's command line, and no other memory "
                    f"has its size, {format_size(region.size_bytes)}",
                    guest_node=node.id,
                    hint=f"its backends are {ids}",
                )
            if len(found) > 1:
                raise AmbiguousError(
                    f"{title} was added later, and could be any of {len(found)} mappings of "
                    f"{format_size(region.size_bytes)}",
                    candidates=[_candidate(piece, vm.vmm.pid, node.id) for piece in found],
                    hint=_TELL_APART,
                )
            yield Claim(node.id, (Extent(found[0], 0, region.size_bytes),), region.memdev, index)


def _compare_sizes(spec: VmSpec, declaration: Declaration, added: Sequence[Claim]) -> None:
    """Hold the spec's guest nodes against those that were declared."""
    have: dict[int, int] = {}
    for backend in owned(declaration.backends, spec):
        for number, size in backend.parts:
            if number is not None:
                have[number] = have.get(number, 0) + size
    for claim in added:
        have[claim.guest_node] = have.get(claim.guest_node, 0) + claim.extents[0].length
    wanted = {node.id: node.size_bytes for node in spec.guest_nodes}
    for number in sorted(wanted.keys() | have.keys()):
        if wanted.get(number, 0) != have.get(number, 0):
            raise unlike_sizes(number, wanted.get(number, 0), have.get(number, 0))


def _compare_named(spec: VmSpec, backend: DeclaredBackend) -> None:
    """Hold a region that is named after a backend against that."""
    for node in spec.guest_nodes:
        if not (region := _region_named(node.regions, backend.id)):
            continue
        title = f"guest node {node.id}: {backend.id}"
        others = [number for number, _ in backend.parts if number not in (None, node.id)]
        if others:
            raise LayoutMismatchError(
                f"{title} is guest node {others[0]}'s by the VMM's command line",
                guest_node=node.id,
                hint="name each guest node's own backend",
            )
        if region.size_bytes != backend.size_bytes:
            raise LayoutMismatchError(
                f"{title} has {format_size(region.size_bytes)} in the spec, "
                f"{format_size(backend.size_bytes)} in the VMM",
                guest_node=node.id,
                hint=_SAME_SIZES,
            )


def _region_named(regions: Sequence[RegionSpec], memdev: str) -> RegionSpec | None:
    return next((region for region in regions if memdev and region.memdev == memdev), None)
