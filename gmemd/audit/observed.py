"""One audit of a VM that somebody else runs: nothing of it is held up, changed or allocated.

Its mappings are asked for by move_pages, which looks and never faults; its guest_memfds are taken
for the time of the audit and looked at through a mapping of gmemd's own. A VMM that holds a
userfaultfd is left alone: its memory is being filled, or written out, by somebody else.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from gmemd.audit.foreign import VmGoneError, audit_range
from gmemd.audit.held import audit_taken
from gmemd.audit.jobs import Jobs
from gmemd.audit.locating import locate_mapped, locate_region
from gmemd.audit.model import CONFIDENCE, PolicyRead, RegionAudit, VmAudit
from gmemd.audit.sampling import MOST_DRAWS, allocate
from gmemd.audit.vm import AuditedRegion
from gmemd.host.vms.finding import holds_userfaultfd, still_runs, to_see_it
from gmemd.host.vms.model import PieceKind
from gmemd.host.vms.taking import VmmGoneError, open_vmm, taken
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mempolicy import RELATIVE_NODES, STATIC_NODES
from gmemd.kernel.procfs.numa_maps import read_numa_maps
from gmemd.kernel.procfs.text import ProcfsError
from gmemd.plan.observed import Extent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random
    from threading import Event

    from gmemd.audit.model import Where
    from gmemd.host.vms.model import Piece, VmmProcess
    from gmemd.plan.observed import ObservedRegion, ObservedVm, UnmatchedPiece

UNMATCHED = -1
"""The guest node that audits of unmatched memory carry; ``index`` is the piece's."""

_FLAGS = {"static": STATIC_NODES, "relative": RELATIVE_NODES}


class Unknown(StrEnum):
    """Why a VM's memory, or some of it, was not looked at."""

    NOT_PERMITTED = "not_permitted"
    MIGRATING = "migrating"
    GONE = "gone"
    UNREADABLE = "unreadable"
    UNMATCHED = "unmatched"


@dataclass(frozen=True, slots=True)
class Unseen:
    """Memory that was not looked at: why in one word, in a sentence, and the way out."""

    reason: Unknown
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ObservedAudit:
    """What an audit saw of a running VM.

    ``audit`` is None where nothing could be looked at; ``unmatched`` goes with the VM's unmatched
    pieces, None for those not seen. ``unseen`` says what was not looked at, and why.
    """

    audit: VmAudit | None
    unmatched: tuple[RegionAudit | None, ...] = ()
    unseen: tuple[Unseen, ...] = ()


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is looked at: ``sample_pages`` of each guest node, None for every page.

    A ``margin`` says that they are as many as it takes to tell each region's share to within it, at
    that ``confidence``: so many existing pages of each region are looked at.

    ``jobs`` threads look at guest_memfds whose every page is looked at. A VMM's own mappings are
    looked at by one, whatever ``jobs`` says: it rests for most of the time so that the VMM gets at
    its mmap lock, and two of them would take these rests from it.

    ``progress`` gets bytes looked at since the last call. A set ``stop`` ends the audit with
    AuditStoppedError. ``where``: look once more, at every page, to tell where in the regions it is.
    """

    sample_pages: int | None
    rng: Random
    stop: Event | None = None
    progress: Callable[[int], None] | None = None
    where: bool = False
    confidence: float = CONFIDENCE
    margin: float | None = None
    jobs: int = 1

    @property
    def most_draws(self) -> int:
        """How many times the pages wanted are drawn to find them."""
        return 1 if self.margin is None else MOST_DRAWS


def read_policies(vmm: VmmProcess) -> dict[int, PolicyRead]:
    """The policies that the kernel holds for a process' mappings, by address.

    It holds the process' locks while the kernel counts its pages: for an audit that was asked to
    look at everything. Raises ProcfsError where they can't be read.
    """
    return {
        entry.start: PolicyRead(
            entry.mode, entry.nodes, sum(_FLAGS.get(flag, 0) for flag in entry.flags)
        )
        for entry in read_numa_maps(vmm.pid)
        if not entry.truncated
    }


def audit_observed(
    vm: ObservedVm, effort: Effort, policies: Mapping[int, PolicyRead] | None = None
) -> ObservedAudit:
    """Look where a running VM's memory is; blocking. ``policies`` are those of `read_policies`.

    It never raises for what can't be seen of this VM. Raises AuditStoppedError.
    """
    nothing = tuple(None for _ in vm.unmatched)
    unseen = _out_of_reach(vm.vmm)
    if unseen is not None:
        return ObservedAudit(None, nothing, (unseen,))
    started = time.time()
    clock, cpu = time.monotonic(), time.thread_time()
    try:
        with Jobs(effort.jobs) as jobs:
            work = _Work(vm.vmm, effort, policies or {}, jobs)
            regions = work.audit_regions(vm.regions)
            unmatched = work.audit_unmatched(vm.unmatched)
    except VmGoneError:
        return ObservedAudit(None, nothing, (gone(vm.vmm),))
    if not still_runs(vm.vmm):
        return ObservedAudit(None, nothing, (gone(vm.vmm),))
    audit = VmAudit(
        vm=vm.name,
        started_timestamp=started,
        duration_seconds=time.monotonic() - clock,
        cpu_seconds=time.thread_time() - cpu + jobs.cpu_seconds,
        regions=tuple(regions),
    )
    seen = regions or any(unmatched) or not work.unseen
    return ObservedAudit(audit if seen else None, tuple(unmatched), tuple(work.unseen))


def gone(vmm: VmmProcess) -> Unseen:
    """What there is to say of a process that isn't there any more."""
    return Unseen(Unknown.GONE, f"pid {vmm.pid} ended, or became another program, meanwhile")


def _out_of_reach(vmm: VmmProcess) -> Unseen | None:
    """Why the whole VM is left alone, at this moment."""
    if vmm.blocked:
        return Unseen(Unknown.NOT_PERMITTED, vmm.blocked, vmm.hint)
    if not still_runs(vmm):
        return gone(vmm)
    try:
        migrating = vmm.userfaultfd or holds_userfaultfd(vmm.pid)
    except PermissionError:
        return Unseen(
            Unknown.NOT_PERMITTED, f"not permitted to look into pid {vmm.pid}", to_see_it()
        )
    except (OSError, ProcfsError):
        return gone(vmm)
    if migrating:
        return Unseen(
            Unknown.MIGRATING,
            "its VMM holds a userfaultfd (a migration's postcopy, a snapshot being restored or "
            "taken): its memory is left alone",
            "it is looked at again when that is over",
        )
    return None


class _Work:
    """One VM's audit under way."""

    def __init__(
        self, vmm: VmmProcess, effort: Effort, policies: Mapping[int, PolicyRead], jobs: Jobs
    ) -> None:
        self._vmm = vmm
        self._jobs = jobs
        self._effort = effort
        self._policies = policies
        self.unseen: list[Unseen] = []

    def audit_regions(self, regions: Sequence[ObservedRegion]) -> list[RegionAudit]:
        """Each region that can be looked at, with its share of its guest node's sample."""
        audits = []
        for region, pages in zip(regions, self._shares(regions), strict=True):
            plan = region.plan
            found = self._audit(region.extents, plan.guest_node, plan.index, pages)
            if found is None:
                continue
            where = self._locate(region) if self._effort.where and found.exact else None
            audits.append(replace(found, size_bytes=plan.size_bytes, where=where))
        return audits

    def audit_unmatched(self, pieces: Sequence[UnmatchedPiece]) -> list[RegionAudit | None]:
        """Each unmatched piece, with a guest node's sample; None for those that can't be seen."""
        return [
            self._audit(
                (Extent(left.piece, 0, left.piece.size_bytes),),
                UNMATCHED,
                index,
                self._effort.sample_pages,
            )
            for index, left in enumerate(pieces)
        ]

    def _shares(self, regions: Sequence[ObservedRegion]) -> list[int | None]:
        """Pages of each region's sample."""
        if self._effort.sample_pages is None or self._effort.margin is not None:
            return [self._effort.sample_pages] * len(regions)
        shares: list[int | None] = [None] * len(regions)
        for node in {region.plan.guest_node for region in regions}:
            mine = [i for i, region in enumerate(regions) if region.plan.guest_node == node]
            populations = [regions[i].plan.size_bytes // regions[i].plan.page_size for i in mine]
            for i, pages in zip(
                mine, allocate(populations, self._effort.sample_pages), strict=True
            ):
                shares[i] = pages
        return shares

    def _audit(
        self, extents: Sequence[Extent], guest_node: int, index: int, pages: int | None
    ) -> RegionAudit | None:
        """One region; None, and a word about it, where it can't be looked at."""
        try:
            if extents[0].piece.kind is PieceKind.GUEST_MEMFD:
                found = self._audit_taken(extents[0], guest_node, index, pages)
            else:
                found = self._audit_mapped(extents, guest_node, index, pages)
        except KernelError as error:
            if error.errno == errno.ESRCH:
                raise VmGoneError(gone(self._vmm).message) from error
            denied = error.errno in (errno.EPERM, errno.EACCES)
            reason = Unknown.NOT_PERMITTED if denied else Unknown.UNREADABLE
            hint = to_see_it() if denied and not error.filtered else error.hint or ""
            self._note(Unseen(reason, error.message, hint))
            return None
        if found.sample is None:
            return found
        return replace(found, sample=replace(found.sample, margin=self._effort.margin))

    def _note(self, unseen: Unseen) -> None:
        if unseen not in self.unseen:
            self.unseen.append(unseen)

    def _locate(self, region: ObservedRegion) -> Where | None:
        """Where in a region its pages are; None, and a word about it, where that can't be seen."""
        effort, first = self._effort, region.extents[0]
        try:
            if first.piece.kind is PieceKind.GUEST_MEMFD:
                plan = replace(region.plan, size_bytes=first.length)
                with _taken(self._vmm, first.piece) as fd:
                    return locate_region(
                        AuditedRegion(fd, plan),
                        idle=False,
                        stop=effort.stop,
                        progress=effort.progress,
                    )
            return locate_mapped(
                self._vmm.pid,
                _ranges(region.extents),
                region.plan,
                page_size=first.piece.page_size,
                stop=effort.stop,
                progress=effort.progress,
            )
        except KernelError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
                raise VmGoneError(gone(self._vmm).message) from error
            self._note(Unseen(Unknown.UNREADABLE, error.message, error.hint or ""))
            return None

    def _audit_mapped(
        self, extents: Sequence[Extent], guest_node: int, index: int, pages: int | None
    ) -> RegionAudit:
        first = extents[0].piece
        held = [
            policy
            for extent in extents
            if (policy := self._policies.get(extent.piece.address or 0)) is not None
        ]
        policy, *others = dict.fromkeys(held) or [None]
        return audit_range(
            self._vmm.pid,
            _ranges(extents),
            guest_node=guest_node,
            index=index,
            page_size=first.page_size,
            sample_pages=pages,
            rng=self._effort.rng,
            most_draws=self._effort.most_draws,
            confidence=self._effort.confidence,
            allocated_bytes=_allocated_bytes(extents),
            policy=policy,
            other_policies=tuple(other for other in others if other is not None),
            stop=self._effort.stop,
            progress=self._effort.progress,
        )

    def _audit_taken(
        self, extent: Extent, guest_node: int, index: int, pages: int | None
    ) -> RegionAudit:
        with _taken(self._vmm, extent.piece) as fd:
            return audit_taken(
                fd,
                guest_node=guest_node,
                index=index,
                size_bytes=extent.length,
                sample_pages=pages,
                rng=self._effort.rng,
                most_draws=self._effort.most_draws,
                clustered=self._effort.margin is None,
                confidence=self._effort.confidence,
                jobs=self._jobs,
                stop=self._effort.stop,
                progress=self._effort.progress,
            )


def _ranges(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Address and length of each extent that the VMM maps."""
    return [
        (extent.piece.address + extent.offset, extent.length)
        for extent in extents
        if extent.piece.address is not None
    ]


def _allocated_bytes(extents: Sequence[Extent]) -> int | None:
    """What a region's file has allocated, where the region is all of the file that is mapped."""
    first = extents[0].piece
    if len(extents) != 1 or extents[0].length != first.size_bytes or first.offset:
        return None
    return first.allocated_bytes


@contextmanager
def _taken(vmm: VmmProcess, piece: Piece) -> Iterator[int]:
    """A guest_memfd of the VMM, for as long as the block lasts: it pins the guest's memory."""
    try:
        with ExitStack() as stack:
            pidfd = open_vmm(vmm)
            stack.callback(os.close, pidfd)
            (fd,) = stack.enter_context(taken(vmm, pidfd, [(piece.fds[0], piece.inode)]))
            yield fd
    except VmmGoneError as error:
        raise VmGoneError(error.message) from error
