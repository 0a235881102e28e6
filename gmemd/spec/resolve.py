"""From what is written to what is meant: defaults filled in, both forms of a region made one."""

from collections.abc import Iterator
from dataclasses import dataclass

from gmemd.spec.document import GuestNodeDocument, RegionDocument, VmDocument
from gmemd.spec.model import (
    SMALL_PAGE,
    Backend,
    GuestNode,
    Match,
    OnVmmExit,
    Owner,
    PolicyMode,
    RegionSpec,
    Source,
    VmSpec,
)
from gmemd.spec.problems import KeyPath
from gmemd.spec.scalars import NEAREST_DISTANCE

REMOTE_DISTANCE = 20
"""What Linux takes between nodes that nobody gave a distance (REMOTE_DISTANCE)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One region as written, short form or long, and where; its defaults found."""

    path: KeyPath
    size_key: str
    size_bytes: int | None
    host_nodes: frozenset[int]
    policy: PolicyMode
    backend: Backend
    page_size: int
    prefault: bool
    memdev: str | None

    @property
    def spec(self) -> RegionSpec:
        """The region as the rest of gmemd reads it."""
        return RegionSpec(
            size_bytes=self.size_bytes or 0,
            host_nodes=self.host_nodes,
            policy=self.policy,
            backend=self.backend,
            page_size=self.page_size,
            prefault=self.prefault,
            memdev=self.memdev,
        )


def pieces(vm: VmDocument, index: int) -> Iterator[Piece]:
    """List the regions of the guest node of that index, in order."""
    node = (vm.guest_nodes or ())[index]
    path: KeyPath = ("guest_nodes", index)
    if node.regions is None:
        yield _piece(vm, node, node, path, size_key="memory", size_bytes=node.memory)
        return
    for number, region in enumerate(node.regions):
        yield _piece(
            vm, node, region, (*path, "regions", number), size_key="size", size_bytes=region.size
        )


def resolve(vm: VmDocument, file: str | None) -> VmSpec:
    """Make the VM spec that a document without faults means."""
    nodes = vm.guest_nodes or ()
    distances = all_distances(nodes)
    return VmSpec(
        vm=vm.vm or "",
        source=vm.source or Source.CREATE,
        confidential=bool(vm.confidential),
        on_vmm_exit=vm.on_vmm_exit or OnVmmExit.RELEASE,
        cgroup=vm.cgroup or "none",
        owner=Owner(**vm.owner.model_dump()) if vm.owner else None,
        match=Match(**vm.match.model_dump()) if vm.match else None,
        drift_tolerance=0.01 if vm.drift_tolerance is None else vm.drift_tolerance,
        guest_nodes=tuple(
            GuestNode(
                id=node.id or 0,
                vcpus=node.vcpus or (),
                distances=distances[node.id or 0],
                regions=tuple(piece.spec for piece in pieces(vm, index)),
            )
            for index, node in enumerate(nodes)
        ),
        path=file,
    )


def all_distances(nodes: tuple[GuestNodeDocument, ...]) -> dict[int, dict[int, int]]:
    """Find every guest node's distances: given, mirrored, or the kernel's defaults."""
    ids = [node.id or 0 for node in nodes]
    given = {
        (node.id or 0, to): far for node in nodes for to, far in (node.distances or {}).items()
    }
    return {
        a: {
            b: NEAREST_DISTANCE if a == b else given.get((a, b), given.get((b, a), REMOTE_DISTANCE))
            for b in ids
        }
        for a in ids
    }


def _piece(
    vm: VmDocument,
    node: GuestNodeDocument,
    region: GuestNodeDocument | RegionDocument,
    path: KeyPath,
    *,
    size_key: str,
    size_bytes: int | None,
) -> Piece:
    backend = region.backend or node.backend or vm.backend or Backend.GUEST_MEMFD
    page_size = region.page_size or node.page_size or vm.page_size or SMALL_PAGE
    prefaults = (region.prefault, node.prefault, vm.prefault)
    nodes = region.host_nodes or frozenset()
    source_prefaults = (vm.source or Source.CREATE) is Source.CREATE
    return Piece(
        path=path,
        size_key=size_key,
        size_bytes=size_bytes,
        host_nodes=nodes,
        policy=region.policy or (PolicyMode.BIND if nodes else PolicyMode.DEFAULT),
        backend=backend,
        page_size=page_size if backend is Backend.MEMFD else SMALL_PAGE,
        prefault=next(
            (given for given in prefaults if given is not None), bool(nodes) and source_prefaults
        ),
        memdev=region.memdev,
    )
