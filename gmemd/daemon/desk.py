"""What the API stands on: calls turned into work on the fleet, and results into the API's types."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from asyncvarlink.serviceerrors import InvalidParameter, PermissionDenied

from gmemd.daemon.authority import may_pass_specs, usable
from gmemd.daemon.looks import layout_of
from gmemd.daemon.named import holder_of, payer_of
from gmemd.daemon.taking import OfferedPiece
from gmemd.daemon.varlink import errors
from gmemd.daemon.varlink import interface as io
from gmemd.daemon.varlink.told import told_layout, told_placed, told_planned, told_refusal
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from gmemd.audit.asked import Asked
    from gmemd.daemon.adopting import Adopting
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.handing import Handing
    from gmemd.daemon.reconcile import Reconciler
    from gmemd.daemon.specs import PassedSpecs
    from gmemd.daemon.taking import Placed, Taking
    from gmemd.daemon.varlink.peer import Peer
    from gmemd.daemon.varlink.protocol import Call
    from gmemd.daemon.vm import ManagedVm
    from gmemd.export.snapshot import Snapshot, VmStatus

PROGRESS_SECONDS = 0.5
_LONGEST_TIMEOUT_MS = 10**12


class Desk:
    """Serves the API's methods; who may call them was found out before."""

    def __init__(
        self,
        fleet: Fleet,
        reconciler: Reconciler,
        handing: Handing,
        *,
        taking: Taking,
        adopting: Adopting,
        specs: PassedSpecs,
        reload: Callable[[], Awaitable[io.ReloadResult]],
    ) -> None:
        self._fleet = fleet
        self._reconciler = reconciler
        self._handing = handing
        self._taking = taking
        self._adopting = adopting
        self._specs = specs
        self._reload = reload

    @property
    def snapshot(self) -> Snapshot:
        """The latest published snapshot."""
        return self._reconciler.snapshot

    async def change(self) -> None:
        """Wait until a snapshot is published."""
        await self._fleet.change()

    async def usable(self, peer: Peer) -> frozenset[str]:
        """Return the names of the VMs that a peer may use."""
        return await usable(peer, self._fleet.specs_in_force())

    async def may_pass_specs(self, peer: Peer) -> bool:
        """Whether a peer may bring a spec along, and plan."""
        return await may_pass_specs(peer, self._specs.users)

    async def reload(self) -> io.ReloadResult:
        """Read config and specs again; raises ReloadFailed with everything as it was."""
        return await self._reload()

    async def audit(
        self, vm: str, asked: Asked
    ) -> AsyncIterator[tuple[int, int] | VmStatus | None]:
        """Audit a VM now; gives bytes looked at and in all. Raises NotAuditable, AuditFailed.

        What a sample told is the last that it gives: it is for who asked alone. A look at every
        page is published.
        """
        if self._reconciler.observer.runs(vm):
            seen = await self._audit_observed(vm, asked)
            if asked.sampled:
                yield seen
            return
        managed = self._handing.vm(vm)
        auditing = asyncio.create_task(self._reconciler.audit_now(vm, asked))
        auditing.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while not (await asyncio.wait({auditing}, timeout=PROGRESS_SECONDS))[0]:
                yield managed.looked_at
        finally:
            auditing.cancel()  # where the caller is gone, and nobody waits for it
        try:
            answer = auditing.result()
        except GmemdError as error:
            raise errors.AuditFailed(vm=vm, message=error.message, hint=error.hint) from error
        if not managed.regions:
            message = managed.message or "its memory is given back"
            raise errors.NotAuditable(vm=vm, state=str(managed.state), message=message)
        if answer is not None:
            yield answer

    async def _audit_observed(self, name: str, asked: Asked) -> VmStatus:
        """Look at a running VM now; raises NotAuditable and AuditFailed."""
        try:
            seen = await self._reconciler.observer.audit_now(name, asked)
        except GmemdError as error:
            raise errors.AuditFailed(vm=name, message=error.message, hint=error.hint) from error
        self._reconciler.look_at_all()
        if seen is None:
            raise errors.NotAuditable(vm=name, state="waiting", message="it runs no more")
        if seen.audit is None:
            raise errors.NotAuditable(vm=name, state=str(seen.state), message=seen.message)
        return seen

    async def acquire(
        self,
        vm: str,
        call: Call,
        *,
        holder: int | None,
        cgroup: int | None,
        timeout_ms: int | None,
        spec: str | None,
    ) -> AsyncIterator[io.AcquireResult]:
        """Hand out a VM's memory: progress first, the last result has its regions."""
        if timeout_ms is not None and timeout_ms < 0:
            raise InvalidParameter(parameter="timeout_ms")
        deadline = None
        if timeout_ms is not None:
            seconds = min(timeout_ms, _LONGEST_TIMEOUT_MS) / 1000
            deadline = asyncio.get_running_loop().time() + seconds
        candidate = await holder_of(call, holder, self._fleet.workers)
        taken = goes_on = False
        try:
            with await payer_of(call, cgroup, self._fleet.workers) as payer:
                if spec is not None and not await self._take_spec(vm, spec, call.peer, deadline):
                    raise self._timeout(vm, timeout_ms or 0)
                async with aclosing(self._handing.acquire(vm, candidate, payer)) as steps:  # type: ignore[type-var]
                    async for managed in _before(deadline, steps):
                        if managed is None:
                            goes_on = True
                            raise self._timeout(vm, timeout_ms or 0)
                        yield _progress(managed)
            managed = self._handing.vm(vm)
            taken = True
            yield self._acquired(managed)
        finally:
            if not taken:
                candidate.close()
            if not (taken or goes_on):
                self._specs.give_up(vm)

    async def _take_spec(self, vm: str, spec: str, peer: Peer, deadline: float | None) -> bool:
        """Have a spec be in force by which memory is made; whether it is in time.

        Memory that is kept holds somebody's data: raises PermissionDenied but for who may use it.
        """
        known = self._fleet.vms.get(vm)
        if known is not None and known.kept and vm not in await self.usable(peer):
            raise PermissionDenied
        try:
            async with asyncio.timeout_at(deadline):
                await self._specs.take(vm, spec, Source.CREATE, privileged=peer.privileged)
        except TimeoutError:
            return False
        return True

    def _timeout(self, vm: str, timeout_ms: int) -> errors.Timeout:
        managed = self._fleet.vms.get(vm)
        progress = managed.progress if managed is not None else None
        return errors.Timeout(
            vm=vm,
            timeout_ms=timeout_ms,
            state=str(managed.state if managed is not None else VmState.WAITING),
            progress_ratio=progress.ratio if progress is not None else None,
        )

    def _acquired(self, vm: ManagedVm) -> io.AcquireResult:
        """The reply that hands out the memory."""
        extents = layout_of(vm)
        return {
            "vm": vm.name,
            "state": str(vm.state),
            "message": vm.message,
            "progress_ratio": None,
            "regions": told_layout(vm.regions, extents),
            "warnings": list(vm.holder_warnings),
        }

    async def register(
        self,
        vm: str,
        call: Call,
        regions: list[io.OfferedRegion],
        *,
        remove: list[int],
        holder: int | None,
        cgroup: int | None,
        spec: str | None,
    ) -> io.PlacedResult:
        """Take in memory that a VMM has made."""
        offered = [
            OfferedPiece(region.guest_node, region.fd_index, region.offset, region.size)
            for region in regions
        ]
        candidate = await holder_of(call, holder, self._fleet.workers)
        try:
            with await payer_of(call, cgroup, self._fleet.workers) as payer:
                if spec is not None:
                    await self._specs.take(
                        vm, spec, Source.REGISTER, privileged=call.peer.privileged
                    )
                managed = self._handing.vm(vm)
                placed = await self._taking.register(
                    managed,
                    offered,
                    call.fds,
                    remove=frozenset(remove),
                    holder=candidate,
                    payer=payer,
                )
        except BaseException:
            known = self._fleet.vms.get(vm)
            if known is None or known.holder is not candidate:
                candidate.close()
            self._specs.give_up(vm)
            raise
        return _placed(managed, placed)

    async def adopt(self, vm: str, pid: int | None) -> io.PlacedResult:
        """Take in the memory of a VMM that runs."""
        managed = self._handing.vm(vm)
        adopted = await self._adopting.adopt(managed, pid)
        return _placed(managed, adopted.placed)

    async def hand_over(self, vm: str, call: Call, holder: int) -> io.HandoverResult:
        """Make another process the holder."""
        self._handing.require_hand_over(vm, call.peer.living_pid(), may=call.peer.privileged)
        candidate = await holder_of(call, holder, self._fleet.workers)
        try:
            await self._handing.hand_over(vm, candidate)
        except BaseException:
            known = self._fleet.vms.get(vm)
            if known is None or known.holder is not candidate:
                candidate.close()
            raise
        return {"vm": vm, "pid": candidate.pid}

    async def release(self, vm: str, call: Call, *, force: bool) -> io.ReleaseResult:
        """Give back a VM's memory."""
        managed = await self._handing.release(
            vm, call.peer.living_pid(), may=call.peer.privileged, force=force
        )
        self._specs.give_up(vm)
        return {"vm": vm, "state": str(managed.state)}

    async def plan(self, vm: str | None, spec: str | None) -> io.PlanResult:
        """Tell what would be placed where; changes nothing."""
        if spec is not None:
            wanted = await self._specs.parse(None, spec)
        else:
            managed = self._handing.vm(vm or "")
            found = self._fleet.specs_in_force().get(managed.name)
            if found is None:
                raise errors.NotReady(
                    vm=managed.name,
                    state=str(managed.state),
                    message="no good spec of it is known",
                    hint=managed.hint or None,
                )
            wanted = found
        host = await self._fleet.read_host()
        promised = self._fleet.commitments()
        plan = plan_vm(
            wanted,
            host,
            committed=promised.committed,
            hugepages_committed=promised.hugepages_committed,
            reserve=self._fleet.reserve,
        )
        verdict = "refused" if plan.refusals else "fits"
        verdict = _VERDICTS.get(wanted.source, verdict)
        known = self._fleet.vms.get(wanted.vm)
        if known is not None and known.regions and known.plan is not None:
            plan, verdict = known.plan, "placed"
        return {
            "vm": wanted.vm,
            "verdict": verdict,
            "regions": [told_planned(region) for region in plan.regions],
            "refusals": [told_refusal(refusal) for refusal in plan.refusals],
            "warnings": list(plan.warnings),
        }


_VERDICTS = {
    Source.REGISTER: "waiting",
    Source.ADOPT: "waiting",
    Source.OBSERVE: "observed",
}


def _progress(vm: ManagedVm) -> io.AcquireResult:
    """How far a VM's memory is."""
    return {
        "vm": vm.name,
        "state": str(vm.state),
        "message": vm.message,
        "progress_ratio": vm.progress.ratio if vm.progress is not None else None,
        "regions": None,
        "warnings": [],
    }


def _placed(vm: ManagedVm, placed: Sequence[Placed]) -> io.PlacedResult:
    return {
        "vm": vm.name,
        "state": str(vm.state),
        "message": vm.message,
        "pid": vm.holder.pid if vm.holder is not None else 0,
        "regions": [told_placed(one.region, one.warnings) for one in placed],
        "warnings": list(vm.holder_warnings),
    }


async def _before(
    deadline: float | None, steps: AsyncIterator[ManagedVm]
) -> AsyncIterator[ManagedVm | None]:
    """The steps, not more often than is worth telling; None once the deadline has passed."""
    loop = asyncio.get_running_loop()
    told = 0.0
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                vm = await anext(steps)
        except StopAsyncIteration:
            return
        except TimeoutError:
            yield None
            return
        if loop.time() - told >= PROGRESS_SECONDS:
            told = loop.time()
            yield vm
