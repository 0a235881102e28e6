"""What the API stands on: calls turned into work on the fleet, and results into the API's types."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from typing import TYPE_CHECKING

from asyncvarlink.serviceerrors import InvalidParameter

from gmemd.daemon.authority import may_pass_specs, usable
from gmemd.daemon.handing import PassedCgroup
from gmemd.daemon.holding import Holder
from gmemd.daemon.taking import OfferedPiece
from gmemd.daemon.varlink import errors
from gmemd.daemon.varlink import interface as io
from gmemd.daemon.varlink.peer import PeerError
from gmemd.daemon.varlink.told import told_layout, told_placed, told_planned, told_refusal
from gmemd.errors import GmemdError
from gmemd.host.vms.holders import (
    NotACgroupError,
    NotAPidfdError,
    cgroup_of_procs,
    pid_of_pidfd,
    read_facts,
)
from gmemd.plan.layout import lay_out
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from gmemd.daemon.adopting import Adopting
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.handing import Handing
    from gmemd.daemon.reconcile import Reconciler
    from gmemd.daemon.specs import PassedSpecs
    from gmemd.daemon.taking import Placed, Taking
    from gmemd.daemon.varlink.peer import Peer
    from gmemd.daemon.varlink.protocol import Call
    from gmemd.daemon.vm import ManagedVm
    from gmemd.export.snapshot import Snapshot

PROGRESS_SECONDS = 0.5
_MACHINE = os.uname().machine


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

    async def audit(self, vm: str, *, where: bool) -> AsyncIterator[tuple[int, int] | None]:
        """Audit a VM now; gives bytes looked at and in all. Raises NotAuditable, AuditFailed."""
        if self._reconciler.observer.runs(vm):
            await self._audit_observed(vm, where=where)
            return
        managed = self._handing.vm(vm)
        auditing = asyncio.create_task(self._reconciler.audit_now(vm, where=where))
        while not (await asyncio.wait({auditing}, timeout=PROGRESS_SECONDS))[0]:
            yield managed.looked_at
        auditing.result()
        if not managed.regions:
            raise errors.NotAuditable(vm=vm, state=str(managed.state), message=managed.message)
        if managed.audit_error:
            raise errors.AuditFailed(vm=vm, message=managed.audit_error, hint=None)

    async def _audit_observed(self, name: str, *, where: bool) -> None:
        """Look at a running VM now; raises NotAuditable and AuditFailed."""
        try:
            seen = await self._reconciler.observer.audit_now(name, where=where)
        except GmemdError as error:
            raise errors.AuditFailed(vm=name, message=error.message, hint=error.hint) from error
        self._reconciler.look_at_all()
        if seen is None:
            raise errors.NotAuditable(vm=name, state="waiting", message="it runs no more")
        if seen.audit is None:
            raise errors.NotAuditable(vm=name, state=str(seen.state), message=seen.message)

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
            deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        candidate = await self._holder(call, holder)
        taken = goes_on = False
        try:
            with await self._payer(call, cgroup) as payer:
                if spec is not None:
                    await self._specs.take(vm, spec)
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

    def _timeout(self, vm: str, timeout_ms: int) -> errors.Timeout:
        managed = self._handing.vm(vm)
        progress = managed.progress
        return errors.Timeout(
            vm=vm,
            timeout_ms=timeout_ms,
            state=str(managed.state),
            progress_ratio=progress.ratio if progress is not None else None,
        )

    def _acquired(self, vm: ManagedVm) -> io.AcquireResult:
        """The reply that hands out the memory."""
        extents = lay_out([region.plan for region in vm.regions], _MACHINE)
        try:
            regions = told_layout(vm.regions, extents)
        except OSError as error:
            raise errors.ProvisioningFailed(
                vm=vm.name,
                reason="system-call",
                host_node=None,
                needed_bytes=0,
                available_bytes=0,
                message=f"the daemon has no room for file descriptors: {error.strerror}",
                hint="raise LimitNOFILE= of gmemd.service",
            ) from error
        return {
            "vm": vm.name,
            "state": str(vm.state),
            "message": vm.message,
            "progress_ratio": None,
            "regions": regions,
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
        candidate = await self._holder(call, holder)
        try:
            with await self._payer(call, cgroup) as payer:
                if spec is not None:
                    await self._specs.take(vm, spec)
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
        self._handing.require_hand_over(vm, call.peer.pid, may=call.peer.privileged)
        candidate = await self._holder(call, holder)
        try:
            await self._handing.hand_over(vm, candidate)
        except BaseException:
            candidate.close()
            raise
        return {"vm": vm, "pid": candidate.pid}

    async def release(self, vm: str, call: Call, *, force: bool) -> io.ReleaseResult:
        """Give back a VM's memory."""
        managed = await self._handing.release(
            vm, call.peer.pid, may=call.peer.privileged, force=force
        )
        self._specs.give_up(vm)
        return {"vm": vm, "state": str(managed.state)}

    async def plan(self, vm: str | None, spec: str | None) -> io.PlanResult:
        """Tell what would be placed where; changes nothing."""
        if spec is not None:
            wanted = self._specs.parse(None, spec)
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

    async def _holder(self, call: Call, index: int | None) -> Holder:
        """The process that is to hold the memory: that of a passed pidfd, or the caller."""
        try:
            own = call.peer.pidfd()
        except PeerError as error:
            if index is None:
                raise errors.FdRejected(index=-1, reason=error.in_one_line) from error
            own = -1
        if index is None:
            facts = await self._fleet.workers.read(read_facts, call.peer.pid)
            return Holder(own, call.peer.pid, facts)
        try:
            passed = _passed_fd(call, index)
            pid = pid_of_pidfd(passed)
            facts = await self._fleet.workers.read(read_facts, pid)
            return Holder(os.dup(passed), pid, facts, call.peer.pid, own)
        except NotAPidfdError as error:
            _close(own)
            raise errors.FdRejected(index=index, reason=error.in_one_line) from error
        except BaseException:
            _close(own)
            raise

    async def _payer(self, call: Call, index: int | None) -> _Payer:
        """The cgroup that the caller lets pay."""
        if index is None:
            return _Payer(None)
        passed = _passed_fd(call, index)
        try:
            directory = await self._fleet.workers.read(cgroup_of_procs, passed)
        except NotACgroupError as error:
            raise errors.FdRejected(index=index, reason=error.in_one_line) from error
        return _Payer(PassedCgroup(os.dup(passed), directory))


class _Payer:
    """A passed cgroup, with a descriptor of its own for as long as the block lasts."""

    def __init__(self, passed: PassedCgroup | None) -> None:
        self._passed = passed

    def __enter__(self) -> PassedCgroup | None:
        return self._passed

    def __exit__(self, *_: object) -> None:
        if self._passed is not None:
            os.close(self._passed.procs_fd)


_VERDICTS = {
    Source.REGISTER: "waiting",
    Source.ADOPT: "waiting",
    Source.OBSERVE: "observed",
}


def _passed_fd(call: Call, index: int) -> int:
    """A descriptor of the call, by its number; raises FdRejected."""
    if not 0 <= index < len(call.fds):
        raise errors.FdRejected(
            index=index, reason=f"the call came with {len(call.fds)} file descriptors"
        )
    return call.fds[index]


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


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
