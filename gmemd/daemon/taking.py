"""Memory that a VMM made, into gmemd's care: registered by the VMM, or adopted from it.

Both end in regions whose inodes have the spec's policies, held as long as the VMM lives. All state
changes on the event loop; what blocks runs in Workers.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asyncvarlink.serviceerrors import InvalidParameter

from gmemd.daemon.holding import cpuset_warnings
from gmemd.daemon.steps import step
from gmemd.daemon.varlink.errors import AlreadyOwned, FdRejected, LayoutMismatch, NotReady
from gmemd.daemon.varlink.told import layout_mismatch, provisioning_failed
from gmemd.daemon.vm import Work
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.host.vms.holders import has_exited
from gmemd.memory.errors import ProvisionError
from gmemd.plan.admission import Ask, admit
from gmemd.plan.errors import LayoutMismatchError
from gmemd.plan.ledger import Ledger
from gmemd.plan.model import VmPlan
from gmemd.plan.registering import Offered, Taken, match_offered, missing
from gmemd.spec.model import Backend, Source
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.handing import PassedCgroup
    from gmemd.daemon.holding import Holder
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.reconcile import Reconciler
    from gmemd.daemon.vm import ManagedVm
    from gmemd.host.model import Host
    from gmemd.memory.passed import MemoryFile
    from gmemd.memory.progress import Progress
    from gmemd.memory.regions import Region
    from gmemd.plan.model import RegionPlan
    from gmemd.plan.registering import Registration
    from gmemd.spec.model import RegionSpec, VmSpec


@dataclass(frozen=True, slots=True)
class OfferedPiece:
    """What a VMM says of a piece: a range in bytes of the call's file descriptor ``fd_index``."""

    guest_node: int
    fd_index: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A region that was taken in, and what should be known of it besides."""

    region: Region
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToPlace:
    """A piece on its way: its plan, the spec's region that it belongs to, its file and where in it.

    ``fd`` is somebody else's, and only used until it is placed.
    """

    plan: RegionPlan
    region: RegionSpec
    spec_index: int
    fd: int
    offset: int
    file: MemoryFile


class Taking:
    """Takes VMMs' memory into the fleet's VMs."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle, reconciler: Reconciler) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._being_placed: dict[tuple[int, int], str] = {}

    async def register(
        self,
        vm: ManagedVm,
        offered: Sequence[OfferedPiece],
        fds: Sequence[int],
        *,
        remove: Collection[int],
        holder: Holder,
        payer: PassedCgroup | None,
    ) -> list[Placed]:
        """Take in pieces that a VMM offers, and let go of those whose ids are in ``remove``.

        ``fds`` are the caller's. Raises the varlink errors of Register; nothing is taken then. The
        holder is taken over only if it returns, and may have been closed as it was known already.
        """
        spec = self._registrable(vm, holder)
        files = await self._identify(offered, fds)
        known = {region.id for region in vm.regions}
        if not set(remove) <= known:
            raise InvalidParameter(parameter="remove")
        host = await self._fleet.known_host()

        async def work() -> list[Placed]:
            self._registrable(vm, holder)
            leaving = [region for region in vm.regions if region.id in remove]
            staying = [region for region in vm.regions if region.id not in remove]
            pieces = [_as_offered(piece, files[piece.fd_index]) for piece in offered]
            taken = [_as_taken(region, vm) for region in staying]
            try:
                matched = match_offered(spec, taken, pieces, host)
            except LayoutMismatchError as error:
                raise layout_mismatch(vm.name, error) from error
            to_place = [
                _to_place(registration, fds[piece.fd_index], files[piece.fd_index])
                for registration, piece in zip(matched, offered, strict=True)
            ]
            with self._claimed(vm, files.values()):
                placed = await self._place(
                    vm, spec, to_place, holder=holder, host=host, payer=payer
                )
            step("place.placed")
            vm.regions = [region for region in vm.regions if region.id not in remove]
            self._settle(vm, spec, holder)
            await self._secure(vm, leaving)
            return placed

        return await self._lifecycle.do(vm, work)

    def _registrable(self, vm: ManagedVm, holder: Holder) -> VmSpec:
        """The spec by which a VM's memory may be registered by that holder now."""
        spec = vm.spec if vm.regions else None
        spec = spec or self._fleet.desired.specs.get(vm.name) or vm.spec
        if spec is None:
            message = vm.message or "its file is broken"
            raise NotReady(vm=vm.name, state=str(vm.state), message=message, hint=None)
        if spec.source is not Source.REGISTER:
            raise LayoutMismatch(
                vm=vm.name,
                guest_node=None,
                message=f"its spec says source: {spec.source}",
                hint="write source: register where the VMM makes the memory",
            )
        self.refuse_other_holder(vm, holder)
        if vm.spec != spec and not vm.regions:
            vm.ask(spec)
        return spec

    def refuse_other_holder(self, vm: ManagedVm, holder: Holder) -> None:
        """Raise AlreadyOwned where another process that is alive holds the VM's memory."""
        if has_exited(holder.pidfd):
            raise InvalidParameter(parameter="holder")
        held = vm.held and not vm.bereft
        if held and vm.holder is not None and not vm.holder.is_process(holder.pid):
            raise AlreadyOwned(vm=vm.name, holder_pid=vm.holder.pid)

    async def _identify(
        self, offered: Sequence[OfferedPiece], fds: Sequence[int]
    ) -> dict[int, MemoryFile]:
        """What the descriptors are that pieces are of; raises FdRejected."""
        files: dict[int, MemoryFile] = {}
        for index in sorted({piece.fd_index for piece in offered}):
            if not 0 <= index < len(fds):
                raise FdRejected(
                    index=index, reason=f"the call came with {len(fds)} file descriptors"
                )
            try:
                files[index] = await self._fleet.workers.identify(fds[index])
            except GmemdError as error:
                raise FdRejected(index=index, reason=error.in_one_line) from error
        return files

    @contextmanager
    def _claimed(self, vm: ManagedVm, files: Collection[MemoryFile]) -> Iterator[None]:
        """Raise LayoutMismatch for a file that is another VM's, or is about to be."""
        inodes = {file.inode for file in files}
        others = [
            other.name
            for other in self._fleet.vms.values()
            if other is not vm and any(region.inode in inodes for region in other.regions)
        ]
        others += [self._being_placed[inode] for inode in inodes & self._being_placed.keys()]
        if others:
            raise LayoutMismatch(
                vm=vm.name,
                guest_node=None,
                message=f"the memory is that of the VM {others[0]}",
                hint="a file is one VM's: it can't be another's as well",
            )
        self._being_placed |= dict.fromkeys(inodes, vm.name)
        try:
            yield
        finally:
            for inode in inodes:
                del self._being_placed[inode]

    async def place(
        self,
        vm: ManagedVm,
        spec: VmSpec,
        to_place: Sequence[ToPlace],
        holder: Holder,
    ) -> list[Placed]:
        """Place pieces that were taken from a VMM, in place of all that were taken from one before.

        Raises varlink errors, with everything as it was.
        """
        host = await self._fleet.known_host()

        async def work() -> list[Placed]:
            self.refuse_other_holder(vm, holder)
            if vm.regions and vm.spec is not None and vm.spec.source is not Source.ADOPT:
                raise LayoutMismatch(
                    vm=vm.name,
                    guest_node=None,
                    message=f"it has memory by a spec that says source: {vm.spec.source}",
                    hint="release that first, if nobody needs it: `gmemd release`",
                )
            leaving = vm.regions
            with self._claimed(vm, [one.file for one in to_place]):
                vm.regions = []
                try:
                    placed = await self._place(vm, spec, to_place, holder=holder, host=host)
                except BaseException:
                    vm.regions = leaving
                    raise
            step("place.placed")
            self._settle(vm, spec, holder)
            await self._secure(vm, leaving)
            return placed

        return await self._lifecycle.do(vm, work)

    async def _secure(self, vm: ManagedVm, leaving: Sequence[Region]) -> None:
        """Have what was taken in outlive the daemon, and let go of what leaves."""
        vm.work = Work.APPLY  # no region is on its way from one list to another any more
        await self._fleet.keeper.secure()
        step("place.settled")
        await self._fleet.workers.release(leaving)

    async def _place(
        self,
        vm: ManagedVm,
        spec: VmSpec,
        to_place: Sequence[ToPlace],
        *,
        holder: Holder,
        host: Host,
        payer: PassedCgroup | None = None,
    ) -> list[Placed]:
        """Set the policies, prefault what is to be, and have the regions be the VM's."""
        plans, doubts = self._with_demand(to_place, host)

        def note(progress: Progress) -> None:
            vm.progress = progress

        try:
            with holder.exit_cancels(vm.cancel):
                regions = await self._fleet.workers.place(
                    [
                        (plan, one.fd, one.offset, one.file)
                        for one, plan in zip(to_place, plans, strict=True)
                    ],
                    spec=spec,
                    host=host,
                    reserve=self._fleet.reserve,
                    progress=note,
                    cancel=vm.cancel,
                    payer_fd=payer.procs_fd if payer is not None else None,
                )
        except ProvisionError as error:
            raise provisioning_failed(vm.name, error) from error
        finally:
            vm.progress = None
        for region, one in zip(regions, to_place, strict=True):
            region.id = vm.next_region_id
            vm.next_region_id += 1
            vm.spec_indexes[region.id] = one.spec_index
        vm.regions = [*vm.regions, *regions]
        return [
            Placed(region, (*cpuset_warnings(region.plan, holder.facts, host), *doubt))
            for region, doubt in zip(regions, doubts, strict=True)
        ]

    def _with_demand(
        self, to_place: Sequence[ToPlace], host: Host
    ) -> tuple[list[RegionPlan], list[list[str]]]:
        """The plans with what each is expected to take of the host's nodes, and what it may lack.

        It is the VMM's memory: nothing is refused, but others are admitted beside it.
        """
        promised = self._fleet.commitments()
        ledger = Ledger(host, self._fleet.reserve, promised.committed, promised.hugepages_committed)
        plans: list[RegionPlan] = []
        doubts: list[list[str]] = []
        for one in to_place:
            region = one.region.model_copy(update={"size_bytes": one.plan.size_bytes})
            title = f"guest node {one.plan.guest_node}"
            ask = Ask(title, region, one.plan.strategy, one.plan.prefault)
            admission = admit(ask, host, ledger)
            ledger.take(admission.demand, region.page_size, movable=ask.movable)
            plans.append(replace(one.plan, demand=dict(admission.demand)))
            doubts.append([refusal.message for refusal in admission.refusals])
        return plans, doubts

    def _settle(self, vm: ManagedVm, spec: VmSpec, holder: Holder) -> None:
        """Have the VM be what it is now, and the holder be its holder."""
        plan = vm.plan
        warnings = plan.warnings if plan is not None else ()
        vm.spec = spec
        vm.plan = VmPlan(spec, tuple(region.plan for region in vm.regions), warnings=warnings)
        vm.audit = vm.audit_before = vm.drift = None
        vm.lost = ""
        self._fleet.audit_soon(vm)
        self._lifecycle.count_failed_policies(vm)
        self._tell_what_is_missing(vm, spec)
        vm.settle()
        self._fleet.host_due = 0.0
        if vm.held and vm.holder is not None and vm.holder is not holder:
            holder.close()
        elif vm.holder is not holder:
            self._reconciler.possession.give_to(vm, holder)
        if not vm.regions:
            self._fleet.enter(vm, VmState.WAITING, "none of its memory is registered")

    def _tell_what_is_missing(self, vm: ManagedVm, spec: VmSpec) -> None:
        lacking = missing(spec, [_as_taken(region, vm) for region in vm.regions])
        vm.holder_warnings = tuple(
            f"guest node {node}: {format_size(size)} of its memory was not taken in"
            for node, size in sorted(lacking.items())
        )


def _as_offered(piece: OfferedPiece, file: MemoryFile) -> Offered:
    return Offered(
        guest_node=piece.guest_node,
        size_bytes=piece.size_bytes,
        offset=piece.offset,
        backend=Backend(str(file.kind)),
        page_size=file.page_size,
        inode=file.inode,
        file_bytes=file.size_bytes,
    )


def _as_taken(region: Region, vm: ManagedVm) -> Taken:
    return Taken(
        guest_node=region.plan.guest_node,
        index=region.plan.index,
        spec_index=vm.spec_indexes[region.id],
        size_bytes=region.plan.size_bytes,
        offset=region.offset,
        inode=region.inode,
    )


def _to_place(registration: Registration, fd: int, file: MemoryFile) -> ToPlace:
    return ToPlace(
        plan=registration.plan,
        region=registration.region,
        spec_index=registration.spec_index,
        fd=fd,
        offset=registration.offered.offset,
        file=file,
    )
