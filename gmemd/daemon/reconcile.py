"""The reconcile loop: what is asked for against what there is, over and over.

Every pass looks at every VM and starts at most one piece of work for it; a VM's failure is that
VM's alone. All state lives on the event loop's thread; what blocks runs in Workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import gmemd
from gmemd.audit.scan import AuditStoppedError
from gmemd.daemon.desired import Change, Desired, compare
from gmemd.daemon.observer import Observer
from gmemd.daemon.vm import ManagedVm
from gmemd.drift.compute import compute_drift
from gmemd.errors import GmemdError
from gmemd.export.snapshot import Snapshot, VmState
from gmemd.memory.errors import ProvisionCancelledError
from gmemd.plan.checks import check_against_host
from gmemd.plan.ledger import commitments
from gmemd.plan.planning import can_spill, plan_vm
from gmemd.spec.model import Source, waiting_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gmemd.daemon.work import Workers
    from gmemd.export.instruments import Counters
    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress
    from gmemd.plan.admission import Reserve
    from gmemd.plan.ledger import Commitments
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
LONGEST_PASS_SECONDS = 30.0
SHORTEST_PAUSE_SECONDS = 0.05
RELEASE_FIRST = "remove the file and reload to release its memory, then put the file back"


class Reconciler:
    """Holds the VMs, ``observer`` those that were found running; ``snapshot`` is replaced whole.

    ``after_pass`` is called at the end of every pass; the longest pause between two is
    ``longest_pause_seconds``.
    """

    def __init__(
        self,
        workers: Workers,
        counters: Counters,
        *,
        reserve: Reserve,
        audit_interval_seconds: float,
        after_pass: Callable[[], None],
        longest_pause_seconds: float = LONGEST_PASS_SECONDS,
    ) -> None:
        self.reserve = reserve
        self.audit_interval_seconds = audit_interval_seconds
        self.desired = Desired()
        self.vms: dict[str, ManagedVm] = {}
        self.reload_successful = True
        self.reload_success_timestamp = 0.0
        self.reload_message = ""
        self._workers = workers
        self._counters = counters
        self._after_pass = after_pass
        self._longest_pause_seconds = longest_pause_seconds
        self._wake = asyncio.Event()
        self._admission = asyncio.Lock()
        self._host: Host | None = None
        self._host_due = 0.0
        self._host_task: asyncio.Task[None] | None = None
        self.observer = Observer(workers, counters, host=self._known_host, changed=self._wake.set)
        self.snapshot = Snapshot(gmemd.__version__, time.time())

    def want(self, desired: Desired) -> None:
        """Take on other specs; failed VMs get another try at once."""
        self.desired = desired
        self.retry_failed()

    def retry_failed(self) -> None:
        """Let failed VMs try again now, as something that may heal them happened."""
        for vm in self.vms.values():
            vm.retry_at = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            self._wake.clear()
            self.look_at_all()
            self._after_pass()
            try:
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Stop all work and give all memory back."""
        for vm in self.vms.values():
            vm.cancel.set()
        tasks = [vm.task for vm in self.vms.values() if vm.task is not None]
        if self._host_task is not None:
            tasks.append(self._host_task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(
            *(self._workers.release(vm.regions) for vm in self.vms.values()),
            return_exceptions=True,
        )

    async def audit_now(self, name: str) -> ManagedVm:
        """Audit a VM that has memory; waits for what is under way. Raises GmemdError."""
        vm = self.vms[name]
        while vm.busy and vm.task is not None:
            await asyncio.wait([vm.task])
        if vm.regions:
            self._start(vm, self._audit(vm))
            await asyncio.wait([vm.task] if vm.task is not None else [])
            self.publish()
        return vm

    def publish(self) -> None:
        """Replace the snapshot by one of this moment."""
        self.snapshot = Snapshot(
            version=gmemd.__version__,
            taken_timestamp=time.time(),
            host=self._host,
            vms=self.observer.beside(vm.status() for vm in self.vms.values()),
            unseen_processes=self.observer.unseen_processes,
            hidden_processes=self.observer.hidden_processes,
            committed=self._commitments().committed,
            audit_interval_seconds=self.audit_interval_seconds,
            reload_successful=self.reload_successful,
            reload_success_timestamp=self.reload_success_timestamp,
            reload_message=self.reload_message,
        )

    def look_at_all(self) -> None:
        """Look at everything once, and publish."""
        if self._host_due <= time.monotonic() and self._host_task is None:
            self._host_task = asyncio.create_task(self._refresh_host())
        for name in self._in_order_of_admission():
            vm = self.vms.setdefault(name, ManagedVm(name))
            try:
                self._look_at(vm)
            except Exception:
                log.exception("%s: looking at it failed", name)
                vm.fail("internal", "internal error", "the daemon's log has the traceback")
        self.publish()

    def _in_order_of_admission(self) -> list[str]:
        """All VMs by name, those whose memory can go elsewhere behind those whose can't."""
        specs = self.desired.specs
        spilling = {name for name, spec in specs.items() if can_spill(spec)}
        names = self.desired.names | frozenset(self.vms)
        return sorted(names, key=lambda name: (name in spilling, name))

    def _pause_seconds(self) -> float:
        """How long nothing is due."""
        due = [time.monotonic() + self._longest_pause_seconds]
        if self._host_task is None:
            due.append(self._host_due)
        for vm in self.vms.values():
            if vm.busy:
                due.append(time.monotonic() + PROGRESS_SECONDS)
            elif vm.regions:
                due.append(vm.audit_due)
                if self.desired.specs.get(vm.name) not in (vm.spec, vm.pending_spec):
                    due.append(vm.retry_at)
            elif vm.state is VmState.FAILED and vm.spec is not None:
                due.append(vm.retry_at)
        return max(SHORTEST_PAUSE_SECONDS, min(due) - time.monotonic())

    def _look_at(self, vm: ManagedVm) -> None:
        """Start what one VM needs next, if anything."""
        spec = self.desired.specs.get(vm.name)
        vm.problem = self.desired.broken.get(vm.name)
        if vm.busy:
            if spec is None or (not vm.regions and spec != vm.spec):
                vm.cancel.set()
        elif vm.name not in self.desired.names:
            self._let_go(vm)
        elif spec is None:
            vm.ask(None)
            if vm.problem is not None:
                vm.enter(VmState.FAILED, str(vm.problem), vm.problem.hint or "")
        elif vm.regions:
            self._keep(vm, spec)
        elif spec.source is Source.OBSERVE:
            self._observe(vm, spec)
        else:
            self._bring_about(vm, spec)

    def _observe(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Tell what a VM waits for that isn't running; of one that is, the observer tells."""
        if spec != vm.spec:
            vm.ask(spec)
        if self.observer.runs(vm.name):
            vm.enter(VmState.READY)
        else:
            self._enter(vm, VmState.WAITING, *self.observer.waiting(spec))

    def _bring_about(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Provision a VM that has no memory yet, unless it waits for something."""
        if (reason := waiting_reason(spec)) is not None:
            vm.ask(spec)
            self._enter(vm, VmState.WAITING, reason)
            return
        if spec != vm.spec:
            vm.ask(spec)
        if not vm.failure:
            self._enter(vm, VmState.PROVISIONING)
        if vm.retry_at <= time.monotonic():
            self._start(vm, self._provision(vm, spec))

    def _let_go(self, vm: ManagedVm) -> None:
        """Give back a VM that no file asks for any more, then forget it."""
        if vm.regions:
            self._start(vm, self._release(vm))
            return
        self._counters.forget(vm.name)
        del self.vms[vm.name]
        log.info("%s: %s", vm.name, "no spec any more" if self.observer.runs(vm.name) else "gone")

    def _keep(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Apply what changed in a VM that has memory, else audit it when due."""
        if spec == vm.spec:
            vm.pending, vm.pending_spec = "", None
        elif spec != vm.pending_spec:
            change = compare(vm.spec, spec) if vm.spec is not None else Change()
            if change.shape:
                vm.postpone(spec, f"{', '.join(change.shape)} changed; {RELEASE_FIRST}")
            elif vm.retry_at <= time.monotonic():
                self._start(vm, self._apply(vm, spec))
                return
        if vm.audit_due <= time.monotonic():
            self._start(vm, self._audit(vm))

    def _start(self, vm: ManagedVm, work: Coroutine[None, None, None]) -> None:
        """Run a VM's work; whatever goes wrong in it is that VM's failure."""
        vm.cancel.clear()
        vm.task = asyncio.create_task(self._confine(vm, work), name=vm.name)

    async def _confine(self, vm: ManagedVm, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except GmemdError as error:
            reason = str(getattr(error, "reason", type(error).__name__))
            if vm.fail(reason, error.message, error.hint or ""):
                log.error("%s: %s", vm.name, error.in_one_line)  # noqa: TRY400
        except Exception:
            log.exception("%s: unexpected failure", vm.name)
            vm.fail("internal", "internal error", "the daemon's log has the traceback")
        finally:
            self._wake.set()

    def _enter(self, vm: ManagedVm, state: VmState, message: str = "", hint: str = "") -> None:
        """Go to a state, and log it if it is news."""
        if vm.enter(state, message, hint):
            log.info("%s: %s%s", vm.name, state, f": {message}" if message else "")

    async def _known_host(self) -> Host:
        """The host's figures as last read, or now."""
        return self._host or await self._workers.read_host()

    async def _refresh_host(self) -> None:
        """Read the host's figures for the snapshot."""
        try:
            self._host = await self._workers.read_host()
        except GmemdError as error:
            log.error("reading the host: %s", error.in_one_line)  # noqa: TRY400
        finally:
            self._host_due = time.monotonic() + self.audit_interval_seconds
            self._host_task = None
            self._wake.set()

    def _commitments(self) -> Commitments:
        """What all VMs were promised and don't have yet."""
        return commitments(
            (plan for vm in self.vms.values() for plan in vm.promises()),
            dict(pair for vm in self.vms.values() for pair in vm.resident()),
        )

    async def _provision(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Plan, admit, make and audit a VM's memory."""
        vm.audit = vm.drift = None
        host = await self._admit(vm, spec)
        if host is None or vm.plan is None:
            return
        self._enter(vm, VmState.PROVISIONING)

        def note(progress: Progress) -> None:
            vm.progress = progress

        try:
            vm.regions = await self._workers.provision(vm.plan, host, self.reserve, note, vm.cancel)
        except ProvisionCancelledError:
            vm.plan, vm.retry_at = None, 0.0
            self._enter(vm, VmState.WAITING, "provisioning was cancelled")
            return
        finally:
            vm.promised = False
            if vm.progress is not None:
                self._counters.add_prefault(vm.name, vm.progress.allocated_bytes)
            self._host_due = 0.0
        for region in vm.regions:
            if region.bind is not None and not region.bind.ok:
                self._counters.add_policy_failure(vm.name, str(region.bind.outcome))
        await self._audit(vm)

    async def _admit(self, vm: ManagedVm, spec: VmSpec) -> Host | None:
        """Plan a VM beside all others' promises; None where it is refused, which is recorded.

        One at a time: between reading the host and recording the promise nobody else is admitted.
        """
        async with self._admission:
            self._host = host = await self._workers.read_host()
            promised = self._commitments()
            vm.plan = plan_vm(
                spec,
                host,
                committed=promised.committed,
                hugepages_committed=promised.hugepages_committed,
                reserve=self.reserve,
            )
            vm.promised = vm.plan.admitted
        if vm.plan.admitted:
            return host
        worst = vm.plan.refusals[0]
        message = "; ".join(refusal.message for refusal in vm.plan.refusals)
        if vm.fail(f"refused-{worst.reason}", message, worst.hint):
            log.warning("%s: not admitted: %s", vm.name, message)
        return None

    async def _audit(self, vm: ManagedVm) -> None:
        """Look where a VM's pages are, and judge it."""
        if vm.spec is None or vm.plan is None:
            return
        try:
            audit = await self._workers.audit(
                vm.name, vm.regions, confidential=vm.spec.confidential, stop=vm.cancel
            )
        except AuditStoppedError:
            return
        except GmemdError as error:
            self._counters.add_audit_error("failed")
            if vm.audit_error != error.message:
                log.warning("%s: audit: %s", vm.name, error.in_one_line)
            vm.audit_error = error.message
        else:
            vm.audit, vm.audit_error = audit, ""
            self._counters.add_audit(audit)
            host = await self._known_host()
            vm.drift = compute_drift(
                vm.plan, audit, host, achieved=vm.outcomes(), rebound=vm.rebound()
            )
        finally:
            vm.audit_due = time.monotonic() + self.audit_interval_seconds
        if vm.settle():
            level = logging.WARNING if vm.state is VmState.DEGRADED else logging.INFO
            log.log(level, "%s: %s%s", vm.name, vm.state, f": {vm.message}" if vm.message else "")

    async def _apply(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Take on a changed spec for memory that exists: policies for pages to come, tolerances."""
        host = await self._known_host()
        if problems := check_against_host(spec, host):
            vm.postpone(spec, "; ".join(problems))
            return
        plan = plan_vm(spec, host, reserve=self.reserve)
        changes = [
            (region, new)
            for region, new in zip(vm.regions, plan.regions, strict=True)
            if (new.policy, new.host_nodes) != (region.plan.policy, region.plan.host_nodes)
        ]
        await self._workers.rebind(changes)
        for region, new in zip(vm.regions, plan.regions, strict=True):
            region.plan = new
        vm.spec, vm.plan, vm.pending = spec, plan, ""
        log.info("%s: changed spec applied, %d policies set anew", vm.name, len(changes))
        await self._audit(vm)

    async def _release(self, vm: ManagedVm) -> None:
        """Give a VM's memory back."""
        self._enter(vm, VmState.RELEASING)
        regions, vm.regions = vm.regions, []
        await self._workers.release(regions)
        vm.plan = vm.audit = vm.drift = None
        self._host_due = 0.0
        self.retry_failed()
