"""A running VM as declared: its name, its guest nodes, and which memory is whose. Pure.

What was declared comes from the VMM's command line, and where that places nothing, from the cpuset
that the VMM runs in. A spec with ``source: observe`` may say what is expected instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from gmemd.host.vms.model import Piece, PieceKind
from gmemd.plan.matching import LEAST_GUEST_BYTES, match_backends
from gmemd.plan.model import RegionPlan, Strategy, VmPlan
from gmemd.spec.model import (
    SMALL_PAGE,
    Backend,
    GuestNode,
    PolicyMode,
    RegionSpec,
    Source,
    VmSpec,
)
from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gmemd.host.model import Host
    from gmemd.host.vms.model import VmmProcess
    from gmemd.plan.matching import Match, Matching
    from gmemd.spec.declared import Declaration, DeclaredBackend

_TASK_RULED = frozenset({PolicyMode.DEFAULT, PolicyMode.LOCAL})
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_AS_ONE = "size alone: all large mappings count, as the guest has one node"


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a piece, from ``offset`` on."""

    piece: Piece
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ObservedRegion:
    """A region, the extents that are its memory, in order, and what told so (``how``).

    ``rivals`` numbers regions that only the order of their mappings tells apart; 0: none.
    """

    plan: RegionPlan
    extents: tuple[Extent, ...]
    how: str
    rivals: int = 0


@dataclass(frozen=True, slots=True)
class UnmatchedPiece:
    """Memory that may be the guest's and is none of what was declared, and why."""

    piece: Piece
    why: str


@dataclass(frozen=True, slots=True)
class ObservedVm:
    """A running VM, by name. ``declared_by`` tells what places it; empty where nothing does.

    ``plan`` has all declared regions, ``regions`` those whose memory was found; ``missing`` says of
    the others why not. ``matching`` is what both stem from. ``notes`` are what couldn't be
    understood, for people.
    """

    name: str
    uuid: str
    vmm: VmmProcess
    declared_by: str
    plan: VmPlan
    regions: tuple[ObservedRegion, ...]
    unmatched: tuple[UnmatchedPiece, ...]
    matching: Matching
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def name_of(vmm: VmmProcess, declaration: Declaration) -> str:
    """The VM's name: its VMM's word for it, else its unit, its cgroup, its pid."""
    if declaration.name:
        return declaration.name
    last = vmm.unit.rpartition(".")[0] or vmm.cgroup.rstrip("/").rpartition("/")[2]
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), last) or f"pid-{vmm.pid}"


def unique_names(
    found: Sequence[tuple[VmmProcess, Declaration]], taken: Iterable[str] = ()
) -> list[str]:
    """A name for each; of several with the same, all but the oldest carry their pid."""
    order = sorted(range(len(found)), key=lambda i: (found[i][0].start_ticks, found[i][0].pid))
    names = [""] * len(found)
    used = set(taken)
    for index in order:
        vmm, declaration = found[index]
        name = name_of(vmm, declaration)
        names[index] = f"{name}@{vmm.pid}" if name in used else name
        used.add(names[index])
    return names


def is_no_vm(vmm: VmmProcess, declaration: Declaration) -> bool:
    """Whether it is a VMM without a guest, such as one that is asked what it can do."""
    if declaration.vmm != "qemu":
        return False
    machines = [
        value
        for option, value in zip(vmm.argv, vmm.argv[1:], strict=False)
        if option.lstrip("-") in ("machine", "M")
    ]
    return any(re.match(r"(?:type=)?none(?:,|$)", value) for value in machines)


def plan_observed(
    name: str,
    vmm: VmmProcess,
    declaration: Declaration,
    host: Host,
    *,
    policies: Mapping[int, tuple[str, frozenset[int]]] | None = None,
    spec: VmSpec | None = None,
) -> ObservedVm:
    """Say where each of the VM's guest nodes should be, and in which memory it is.

    ``policies`` are what the kernel holds by the mappings' addresses, where that was read;
    ``spec``, where there is one, tells what is expected of each guest node.
    """
    matching = match_backends(owned(declaration.backends, spec), vmm.pieces, policies)
    cpuset = _narrowing_cpuset(vmm, host)
    layout = _Layout(name, cpuset, spec)
    for match in matching.matches:
        layout.add_match(match)
    for backend, _ in matching.missing if not vmm.blocked else ():
        layout.add_missing(backend)
    left = list(matching.unmatched)
    if declaration.one_node and not declaration.backends:
        left = layout.add_whole(left)
    return ObservedVm(
        name=name,
        uuid=declaration.uuid,
        vmm=vmm,
        declared_by=layout.declared_by(declaration),
        plan=VmPlan(layout.spec(), tuple(layout.plans)),
        regions=tuple(layout.regions),
        unmatched=tuple(UnmatchedPiece(piece, why or _WHY[piece.kind]) for piece, why in left),
        missing=tuple(_missing(matching, vmm)),
        notes=(*declaration.problems, *layout.notes()),
        matching=matching,
    )


def owned(backends: Iterable[DeclaredBackend], spec: VmSpec | None) -> tuple[DeclaredBackend, ...]:
    """Give each backend that a spec names (``memdev``) to the spec's guest node."""
    owners = {
        region.memdev: node.id
        for node in (spec.guest_nodes if spec is not None else ())
        for region in node.regions
        if region.memdev is not None
    }
    return tuple(
        replace(backend, parts=((owners[backend.id], backend.size_bytes),))
        if backend.id in owners
        else backend
        for backend in backends
    )


_WHY = {
    PieceKind.ANONYMOUS: (
        "anonymous memory that is no declared backend's: hot-added, video memory, or the VMM's own"
    ),
    PieceKind.MEMFD: "a memfd that is no declared backend's: hot-added, or not the guest's",
    PieceKind.FILE: "a file that is no declared backend's: hot-added, or not the guest's",
    PieceKind.GUEST_MEMFD: "a guest_memfd that is no declared backend's",
}


def _narrowing_cpuset(vmm: VmmProcess, host: Host) -> frozenset[int]:
    """The nodes with memory that the cpuset leaves the VMM, if it takes any away; else none."""
    every = frozenset(node.id for node in host.nodes if node.has_memory)
    allowed = vmm.mems & every
    return allowed if allowed and allowed != every else frozenset()


def _missing(matching: Matching, vmm: VmmProcess) -> list[str]:
    if vmm.blocked:
        return []
    return [
        f"{backend.id or 'the memory'} of the command line isn't found in memory: {why}"
        for backend, why in matching.missing
    ]


class _Layout:
    """The regions as they are found, numbered within their guest nodes."""

    def __init__(self, name: str, cpuset: frozenset[int], spec: VmSpec | None) -> None:
        self._name = name
        self._cpuset = cpuset
        self._spec = spec
        self._placed_by: set[str] = set()
        self.plans: list[RegionPlan] = []
        self.regions: list[ObservedRegion] = []

    def add_match(self, match: Match) -> None:
        """Take on a backend's memory, part by part."""
        extents = [Extent(piece, 0, piece.size_bytes) for piece in match.pieces]
        for guest_node, size in match.backend.parts:
            mine, extents = cut(extents, size)
            if guest_node is None:
                continue
            first = match.pieces[0]
            plan = self._plan(match.backend, guest_node, size, first)
            self.regions.append(ObservedRegion(plan, tuple(mine), match.how, match.rivals))

    def add_missing(self, backend: DeclaredBackend) -> None:
        """Take on what was declared and has no memory that could be found."""
        for guest_node, size in backend.parts:
            if guest_node is not None:
                self._plan(backend, guest_node, size, None)

    def add_whole(self, left: list[tuple[Piece, str]]) -> list[tuple[Piece, str]]:
        """Take all large pieces for the one node of a guest whose size isn't declared."""
        mine = [piece for piece, why in left if not why and piece.size_bytes >= LEAST_GUEST_BYTES]
        for piece in mine:
            plan = self._plan(None, 0, piece.size_bytes, piece)
            extents = (Extent(piece, 0, piece.size_bytes),)
            self.regions.append(ObservedRegion(plan, extents, _AS_ONE))
        return [pair for pair in left if not any(pair[0] is piece for piece in mine)]

    def _plan(
        self, backend: DeclaredBackend | None, guest_node: int, size: int, piece: Piece | None
    ) -> RegionPlan:
        index = sum(plan.guest_node == guest_node for plan in self.plans)
        policy, host_nodes = self._expected(backend, guest_node, size)
        plan = RegionPlan(
            vm=self._name,
            guest_node=guest_node,
            index=index,
            size_bytes=size,
            backend=Backend(piece.kind) if piece is not None else Backend.ANONYMOUS,
            page_size=piece.page_size if piece is not None else SMALL_PAGE,
            policy=policy,
            host_nodes=host_nodes,
            strategy=Strategy.UNMANAGED,
            reason="",
            prefault=False,
        )
        self.plans.append(plan)
        return plan

    def _expected(
        self, backend: DeclaredBackend | None, guest_node: int, size: int
    ) -> tuple[PolicyMode, frozenset[int]]:
        """Where it should be: the spec's word, the command line's, or the cpuset's."""
        found = _region_of(self._spec, guest_node, size, backend.id if backend else "")
        if found is not None:
            self._placed_by.add("spec")
            return found.policy, found.host_nodes
        if backend is not None and backend.policy not in _TASK_RULED and backend.host_nodes:
            self._placed_by.add("command line")
            return backend.policy, backend.host_nodes
        if self._cpuset:
            self._placed_by.add("cpuset")
        return PolicyMode.DEFAULT, self._cpuset

    def declared_by(self, declaration: Declaration) -> str:
        """What places the VM's memory, in a few words; empty where nothing does."""
        words = []
        if "spec" in self._placed_by:
            words.append("its spec")
        if "command line" in self._placed_by:
            words.append(f"{declaration.vmm or 'its'} command line")
        if "cpuset" in self._placed_by:
            words.append(f"cpuset.mems {format_nodeset(self._cpuset)}")
        return ", ".join(words)

    def notes(self) -> list[str]:
        """Guest nodes of the spec that the VM doesn't have."""
        have = {plan.guest_node for plan in self.plans}
        wanted = [node.id for node in self._spec.guest_nodes] if self._spec is not None else []
        return [
            f"guest node {node} of {self._spec.path if self._spec else ''} isn't one of the VM's"
            for node in wanted
            if node not in have
        ]

    def spec(self) -> VmSpec:
        """The VM as a spec would say it: the guest nodes whose memory was found."""
        found: dict[int, list[RegionPlan]] = {}
        for region in self.regions:
            found.setdefault(region.plan.guest_node, []).append(region.plan)
        spec = VmSpec(
            vm=self._name,
            source=Source.OBSERVE,
            guest_nodes=tuple(
                GuestNode(id=number, regions=tuple(_region_spec(plan) for plan in plans))
                for number, plans in sorted(found.items())
            ),
        )
        if self._spec is None:
            return spec
        update = {"drift_tolerance": self._spec.drift_tolerance, "path": self._spec.path or ""}
        return spec.model_copy(update=update)


def cut(extents: list[Extent], size: int) -> tuple[list[Extent], list[Extent]]:
    """Take the first ``size`` bytes; the rest."""
    mine = []
    rest = list(extents)
    while size > 0 and rest:
        first = rest.pop(0)
        length = min(size, first.length)
        mine.append(replace(first, length=length))
        if length < first.length:
            rest.insert(0, Extent(first.piece, first.offset + length, first.length - length))
        size -= length
    return mine, rest


def _region_of(spec: VmSpec | None, guest_node: int, size: int, memdev: str) -> RegionSpec | None:
    """What a spec says of a guest node's memory of that name or size."""
    if spec is None:
        return None
    regions = next((node.regions for node in spec.guest_nodes if node.id == guest_node), ())
    named = (region for region in regions if memdev and region.memdev == memdev)
    alike = (region for region in regions if region.size_bytes == size)
    return next(chain(named, alike, regions), None)


def _region_spec(plan: RegionPlan) -> RegionSpec:
    return RegionSpec(
        size_bytes=plan.size_bytes,
        host_nodes=plan.host_nodes,
        policy=plan.policy,
        backend=plan.backend,
        page_size=plan.page_size,
    )
