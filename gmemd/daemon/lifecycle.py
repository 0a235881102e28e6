"""What is done for one VM: its memory is made, audited, changed and given back.

Each is a coroutine on the event loop; what blocks runs in Workers. One is done at a time for a VM.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gmemd.daemon.looks import Looks
from gmemd.daemon.steps import step
from gmemd.daemon.varlink.errors import NoSuchVM
from gmemd.daemon.vm import Failure, Work
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.plan.checks import check_against_host
from gmemd.plan.model import VmPlan
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.vm import ManagedVm
    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress
    from gmemd.plan.model import RegionPlan
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

RELEASED = "its memory was given back; it is made again when somebody acquires it"

_R = TypeVar("_R")


class Lifecycle:
    """What is done for the VMs of a fleet. ``forget_spec`` is told of a VM whose spec goes, too."""

    def __init__(self, fleet: Fleet, forget_spec: Callable[[str], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._workers = fleet.workers
        self._forget_spec = forget_spec
        self.looks = Looks(fleet)
        self._admission = asyncio.Lock()

    def start(
        self, vm: ManagedVm, kind: Work, work: Coroutine[None, None, None]
    ) -> asyncio.Task[None] | None:
        """Begin something for a VM; whatever goes wrong in it is that VM's failure.

        Returns its task; None where the daemon stops, and nothing is begun any more.
        """
        if self._fleet.stopping:
            work.close()
            return None
        vm.cancel.clear()
        vm.work = kind
        vm.task = task = _task(vm, self._confine(vm, kind, work))
        return task

    async def do(self, vm: ManagedVm, work: Callable[[], Coroutine[None, None, _R]]) -> _R:
        """Do something for a VM once nothing else is done or due; an audit makes way.

        Errors are raised. Where the caller is cancelled the work is, too, and waited for. Raises
        NoSuchVM where the VM was forgotten meanwhile, or the daemon stops: nobody would look after
        it any more.
        """
        while (known := self._fleet.vms.get(vm.name) is vm) and not vm.untouched:
            if vm.busy and vm.task is not None:
                if vm.work is Work.AUDIT:
                    vm.cancel.set()
                await asyncio.wait([vm.task])
            else:
                await self._fleet.change()
        if not known or self._fleet.stopping:
            raise NoSuchVM(vm=vm.name)
        vm.cancel.clear()
        vm.work = Work.PLACE
        result: list[_R] = []

        async def run() -> None:
            try:
                result.append(await work())
            finally:
                self._fleet.changed(vm)

        vm.task = task = _task(vm, run())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            vm.cancel.set()
            await asyncio.wait([task])
            raise
        return result[0]

    async def _confine(self, vm: ManagedVm, kind: Work, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except GmemdError as error:
            reason = str(getattr(error, "reason", type(error).__name__))
            cause = Failure(error=error) if isinstance(error, ProvisionError) else None
            if vm.fail(reason, error.message, error.hint or "", cause):
                log.error("%s: %s", vm.name, error.in_one_line)  # noqa: TRY400
        except Exception:
            log.exception("%s: unexpected failure", vm.name)
            if vm.work is Work.AUDIT:
                vm.audit_error = "internal error"
            vm.fail("internal", "internal error", "the daemon's log has the traceback")
        finally:
            desired = self._fleet.desired
            wanted = desired.has(vm.name)
            as_asked = wanted and desired.specs.get(vm.name) in (vm.spec, vm.pending_spec)
            if kind is Work.AUDIT and vm.steady and as_asked:
                self._fleet.news()
            else:
                self._fleet.changed(vm)

    async def provision(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Plan, admit, make and audit a VM's memory."""
        fleet = self._fleet
        vm.audit = vm.audit_before = vm.drift = None
        host = await self._admit(vm, spec)
        if host is None or vm.plan is None:
            return
        fleet.enter(vm, VmState.PROVISIONING)
        step("provision.admitted")

        def note(progress: Progress) -> None:
            vm.progress = progress

        try:
            vm.regions = await self._workers.provision(
                vm.plan, host, fleet.reserve, note, vm.cancel
            )
        except ProvisionCancelledError:
            vm.plan, vm.retry_at = None, 0.0
            fleet.enter(vm, VmState.WAITING, "provisioning was cancelled")
            return
        finally:
            vm.promised = False
            if vm.progress is not None:
                fleet.counters.add_prefault(vm.name, vm.progress.allocated_bytes)
            vm.progress = None
            fleet.host_due = 0.0
        step("provision.made")
        vm.dormant = False
        self.count_failed_policies(vm)
        await fleet.keeper.secure()
        vm.work = Work.AUDIT
        fleet.tell()
        await self.looks.watch(vm)

    def count_failed_policies(self, vm: ManagedVm) -> None:
        """Count the policies that don't hold as asked."""
        for region in vm.regions:
            if region.bind is not None and not region.bind.ok:
                self._fleet.counters.add_policy_failure(vm.name, str(region.bind.outcome))

    async def _admit(self, vm: ManagedVm, spec: VmSpec) -> Host | None:
        """Plan a VM beside all others' promises; None where it is refused, which is recorded.

        One at a time: between reading the host and recording the promise nobody else is admitted.
        """
        async with self._admission:
            host = await self._fleet.read_host()
            promised = self._fleet.commitments()
            vm.plan = plan_vm(
                spec,
                host,
                committed=promised.committed,
                hugepages_committed=promised.hugepages_committed,
                reserve=self._fleet.reserve,
            )
            vm.promised = vm.plan.admitted
        if vm.plan.admitted:
            return host
        worst = vm.plan.refusals[0]
        message = "; ".join(refusal.message for refusal in vm.plan.refusals)
        cause = Failure(refusals=vm.plan.refusals)
        if vm.fail(f"refused-{worst.reason}", message, worst.hint, cause):
            log.warning("%s: not admitted: %s", vm.name, message)
        return None

    async def apply(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Take on a changed spec for memory that exists: policies for pages to come, tolerances."""
        host = await self._fleet.known_host()
        if problems := check_against_host(spec, host):
            vm.postpone(spec, "; ".join(problems))
            return
        plan = self._planned_anew(vm, spec, host)
        changes = [
            (region, new)
            for region, new in zip(vm.regions, plan.regions, strict=True)
            if (new.policy, new.host_nodes) != (region.plan.policy, region.plan.host_nodes)
        ]
        step("apply.begun")
        try:
            await self._workers.rebind(changes)
        except ProvisionError as error:
            vm.put_off(error)
            self._fleet.counters.add_policy_failure(vm.name, error.reason)
            log.error("%s: changed spec: %s", vm.name, error.in_one_line)  # noqa: TRY400
            return
        step("apply.bound")
        for region, new in zip(vm.regions, plan.regions, strict=True):
            region.plan = new
        vm.spec, vm.plan, vm.pending, vm.pending_spec = spec, plan, "", None
        log.info("%s: changed spec applied, %d policies set anew", vm.name, len(changes))
        await self._fleet.keeper.secure()
        vm.work = Work.AUDIT
        await self.looks.watch(vm)

    def _planned_anew(self, vm: ManagedVm, spec: VmSpec, host: Host) -> VmPlan:
        """The plan of memory that exists, by a changed spec of the same shape."""
        if spec.source is Source.CREATE:
            return plan_vm(spec, host, reserve=self._fleet.reserve)
        wanted = {node.id: node.regions for node in spec.guest_nodes}

        def changed(plan: RegionPlan, region_id: int) -> RegionPlan:
            asked = wanted[plan.guest_node][vm.spec_indexes[region_id]]
            return replace(plan, policy=asked.policy, host_nodes=asked.host_nodes)

        return VmPlan(spec, tuple(changed(region.plan, region.id) for region in vm.regions))

    async def release(self, vm: ManagedVm) -> None:
        """Give a VM's memory back, or let it go.

        What outlives the daemon is given up first: whoever closes the last descriptor of a file
        waits while its memory is freed, and that mustn't be systemd.
        """
        self._fleet.enter(vm, VmState.RELEASING)
        step("release.begun")
        regions, vm.regions = vm.regions, []
        holder, vm.holder = vm.holder, None
        if holder is not None:
            vm.left_alone = holder.pid if holder.alive else 0
            holder.close()
        vm.dormant = True
        vm.lost = ""
        await self._fleet.keeper.secure()
        step("release.unstored")
        await self._workers.release(regions)
        step("release.closed")
        vm.plan = vm.audit = vm.audit_before = vm.drift = None
        vm.prefaulted = False
        vm.holder_warnings = ()
        vm.pending, vm.pending_spec = "", None
        vm.spec_indexes.clear()
        if vm.inline:
            await self._forget_spec(vm.name)
        vm.release_wanted = False
        if vm.spec is not None and vm.spec.source is Source.CREATE:
            self._fleet.enter(vm, VmState.WAITING, RELEASED)
        step("release.forgotten")
        self._fleet.host_due = 0.0
        self._fleet.retry_failed()


def _task(vm: ManagedVm, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """A task in a context of its own: it may outlive the call that it was begun by."""
    return asyncio.create_task(work, name=vm.name, context=Context())
