"""What is done for one VM: its memory is made, audited, changed and given back.

Each is a coroutine on the event loop; what blocks runs in Workers. One is done at a time for a VM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from gmemd.audit.scan import AuditStoppedError
from gmemd.audit.vm import EVERY_PAGE, no_less_lately_verified, without_holders_pages
from gmemd.audit.watching import Watch
from gmemd.daemon.hostnews import out_of_reach
from gmemd.daemon.steps import step
from gmemd.daemon.varlink.errors import NoSuchVM
from gmemd.daemon.vm import Failure, Work
from gmemd.drift.compute import compute_drift
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.host.vms.holders import read_facts
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.plan.checks import check_against_host
from gmemd.plan.layout import lay_out
from gmemd.plan.model import VmPlan
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from pathlib import Path

    from gmemd.audit.asked import Asked
    from gmemd.audit.model import VmAudit
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.vm import ManagedVm
    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress
    from gmemd.plan.layout import Extent
    from gmemd.plan.model import RegionPlan
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

RELEASED = "its memory was given back; it is made again when somebody acquires it"

FRESH_INTERVALS = 2
"""What the rolling scan saw so many audit intervals ago is taken for what is now."""

AT_ONCE_BYTES = 256 << 20
"""A VM that is new and no larger is looked at whole at once, which takes some 0.1 s of a CPU."""

_R = TypeVar("_R")


class Look(Protocol):
    """One way to look at a VM's memory, which ``payer``'s cgroup pays for."""

    async def __call__(self, spec: VmSpec, payer: Path | None, *, idle: bool) -> VmAudit:
        """Give what was seen."""


class Lifecycle:
    """What is done for the VMs of a fleet. ``forget_spec`` is told of a VM whose spec goes, too."""

    def __init__(self, fleet: Fleet, forget_spec: Callable[[str], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._workers = fleet.workers
        self._forget_spec = forget_spec
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
        await self.watch(vm)

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

    async def audit(self, vm: ManagedVm, asked: Asked = EVERY_PAGE) -> GmemdError | None:
        """Look at a VM's pages as is asked, and judge it; gives why it wasn't, if it wasn't."""
        began = time.monotonic()

        def note(looked_at: int, total: int) -> None:
            vm.looked_at = looked_at, total

        async def look(spec: VmSpec, payer: Path | None, *, idle: bool) -> VmAudit:
            audit = await self._workers.audit(
                vm.name,
                vm.regions,
                confidential=spec.confidential,
                idle=idle,
                holders_cgroup=payer,
                progress=note,
                stop=vm.cancel,
                asked=asked,
                layout=layout_of(vm) if asked.where else None,
            )
            if all(region.sample is None for region in audit.regions):
                vm.seen_whole_at = began
            return audit

        return await self._audit(vm, look, published=not asked.sampled)

    async def watch(self, vm: ManagedVm, *, charged: bool = False) -> None:
        """Look at a VM as is done again and again, for little, and judge it.

        ``charged``: what it takes is spent of the budget, as it is not when memory is new.
        """

        async def look(spec: VmSpec, payer: Path | None, *, idle: bool) -> VmAudit:
            fleet = self._fleet
            since_asked = time.monotonic() - vm.seen_whole_at
            watch = Watch(
                random.Random(),  # noqa: S311  a sample, no secret
                sample_pages=fleet.sample_pages,
                fresh_seconds=min(FRESH_INTERVALS * fleet.audit_interval_seconds, since_asked),
                at_once_bytes=AT_ONCE_BYTES,
                readable=not spec.confidential,
                idle=idle,
                stop=vm.cancel,
            )
            return await self._workers.watch(
                vm.name, vm.regions, watch, holders_cgroup=payer, charged=charged
            )

        await self._audit(vm, look)

    async def _audit(
        self, vm: ManagedVm, look: Look, *, published: bool = True
    ) -> GmemdError | None:
        if vm.spec is None or vm.plan is None:
            return None
        failed: GmemdError | None = None
        step("audit.begun")
        idle = not vm.held
        payer = await self.look_at_holder(vm)
        try:
            audit = await look(vm.spec, payer, idle=idle)
        except AuditStoppedError as error:
            return error
        except GmemdError as error:
            failed = error
            self._fleet.counters.add_audit_error("failed")
            if vm.audit_error != error.message:
                log.warning("%s: audit: %s", vm.name, error.in_one_line)
            vm.audit_error = error.message
        else:
            if idle and vm.held:
                audit = without_holders_pages(audit)
            audit = no_less_lately_verified(audit, vm.audit or vm.audit_before)
            step("audit.done")
            self._fleet.counters.add_audit(audit)
            host = await self._fleet.known_host()
            drift = compute_drift(
                vm.plan, audit, host, achieved=vm.outcomes(), rebound=vm.rebound()
            )
            vm.out_of_reach = out_of_reach(vm.spec, host)
            if not published:
                vm.answer = replace(vm.status(), audit=audit, drift=drift)
                return None
            vm.audit, vm.audit_error, vm.drift = audit, "", drift
        finally:
            vm.looked_at = None
            vm.audit_due = time.monotonic() + self._fleet.audit_interval_seconds
        if vm.settle():
            level = logging.WARNING if vm.state is VmState.DEGRADED else logging.INFO
            log.log(level, "%s: %s%s", vm.name, vm.state, f": {vm.message}" if vm.message else "")
        return failed

    async def look_at_holder(self, vm: ManagedVm) -> Path | None:
        """Read again what its holder is, as it may run another program in another cgroup by now.

        Returns the directory of the cgroup that pays for what the holder is the first to touch.
        """
        holder = vm.holder
        if holder is None or not holder.alive:
            return None
        facts = await self._workers.read(read_facts, holder.pid)
        if holder.is_process(holder.pid):
            holder.facts = facts
        return holder.facts.cgroup_directory

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
        await self.watch(vm)

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


def layout_of(vm: ManagedVm) -> Mapping[tuple[int, int], tuple[Extent, ...]]:
    """Where in the guest's address space its regions are, of memory that is handed out so."""
    if vm.spec is None or vm.spec.source is not Source.CREATE:
        return {}
    return lay_out([region.plan for region in vm.regions], os.uname().machine)
