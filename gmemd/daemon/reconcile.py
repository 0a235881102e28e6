"""The reconcile loop: what is asked for against what there is, over and over.

A pass looks at the VMs to which something happened or for which something is due, and now and then
at every one, so that nothing is missed for long. It starts at most one piece of work for each; a
VM's failure is that VM's alone. All state lives on the event loop's thread; what blocks runs in
Workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import gmemd
from gmemd.daemon.clock import WallClock, shift_vm
from gmemd.daemon.desired import Change, compare
from gmemd.daemon.lifecycle import RELEASED
from gmemd.daemon.on_demand import audit_on_demand
from gmemd.daemon.possession import Possession
from gmemd.daemon.steps import step
from gmemd.daemon.vm import LOST_HINT, ManagedVm, Work
from gmemd.export.snapshot import Snapshot, VmState
from gmemd.plan.planning import can_spill
from gmemd.spec.model import Source, waiting_reason
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gmemd.audit.asked import Asked
    from gmemd.daemon.desired import Desired
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.observer import Observer
    from gmemd.export.snapshot import VmStatus
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
LONGEST_PASS_SECONDS = 30.0
SHORTEST_PAUSE_SECONDS = 0.05
REST_RATIO = 3.0
"""What a pass takes, and so long again times this nobody has another one: at most a quarter of the
loop's time goes into passes, however many VMs there are."""

_FOUND_RUNNING = (Source.OBSERVE, Source.ADOPT)

RELEASE_FIRST = "remove the file and reload to release its memory, then put the file back"
AFTER_ITS_VMM = "it waits until its memory is released: when its VMM exits, or `gmemd release`"
LEFT_ALONE = "its VMM, pid {pid}, was let go and isn't adopted again by itself"
STAYS = (
    "the memory of %d VMs (%s) stays in systemd's fd store for the next start; "
    "`systemctl clean --what=fdstore` gives it back"
)
NO_SPEC = "its file is gone: its memory is let go when its VMM exits, or by `gmemd release --force`"
NO_SPEC_KEPT = "its file is gone, its memory is kept: `gmemd release` gives it back"


class Reconciler:
    """Has the fleet's VMs become what is wanted; ``snapshot`` is replaced whole.

    ``observer`` has those that were found running, ``is_inline`` tells specs that came with a call
    from those of files. ``after_pass`` is called at the end of every
    pass; the longest pause between two is ``longest_pause_seconds``.
    """

    def __init__(
        self,
        fleet: Fleet,
        lifecycle: Lifecycle,
        observer: Observer,
        *,
        is_inline: Callable[[VmSpec | None], bool],
        after_pass: Callable[[], None],
        longest_pause_seconds: float = LONGEST_PASS_SECONDS,
    ) -> None:
        self.observer = observer
        self.reload_successful = True
        self.reload_success_timestamp = 0.0
        self.reload_message = ""
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._is_inline = is_inline
        self._after_pass = after_pass
        self._longest_pause_seconds = longest_pause_seconds
        self._host_task: asyncio.Task[None] | None = None
        self._looked_at: dict[str, object] = {}
        self._due: dict[str, float] = {}
        self._all_due = 0.0
        self._clock = WallClock()
        self._asked: Desired | None = None
        self._found: object = None
        self._spilling: frozenset[str] = frozenset()
        self.possession = Possession(fleet, lifecycle, self.publish)
        self.snapshot = Snapshot(gmemd.__version__, time.time())

    def want(self, desired: Desired) -> None:
        """Take on other specs; failed VMs get another try at once."""
        self._fleet.desired = desired
        self._fleet.retry_failed()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        wake = self._fleet.wake
        while True:
            wake.clear()
            began = time.monotonic()
            self._pass()
            self._after_pass()
            await asyncio.sleep(REST_RATIO * (time.monotonic() - began))
            try:
                async with asyncio.timeout(self._pause_seconds()):
                    await wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Stop all work; memory that nothing keeps past the daemon is given back."""
        all_vms, keeper = self._fleet.vms, self._fleet.keeper
        vms = all_vms.values()
        self._fleet.stopping = True
        for vm in vms:
            vm.cancel.set()
        self.possession.close()
        tasks = [vm.task for vm in vms if vm.task is not None]
        if self._host_task is not None:
            tasks.append(self._host_task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await keeper.finish()
        staying = {n: vm for n, vm in all_vms.items() if vm.regions and keeper.keeps(vm)}
        step("stop.begun")
        for vm in vms:
            if vm.holder is not None:
                vm.holder.close()
        await asyncio.gather(
            *(self._fleet.workers.let_go(vm.regions) for vm in staying.values()),
            *(self._fleet.workers.release(vm.regions) for vm in vms if vm.name not in staying),
            return_exceptions=True,
        )
        if staying:
            regions = [region for vm in staying.values() for region in vm.regions]
            size = sum(region.plan.size_bytes for region in regions)
            log.info(STAYS, len(staying), format_size(size))

    async def audit_now(self, name: str, asked: Asked) -> VmStatus | None:
        """Audit a VM that has memory; see audit_on_demand. Raises GmemdError.

        What was seen is published, or given back where it is for who asked alone.
        """
        vm = self._fleet.vms[name]
        try:
            await audit_on_demand(self._fleet, self._lifecycle, vm, asked)
        finally:
            answer, vm.answer = vm.answer, None
            self.publish()
        return answer

    def publish(self) -> None:
        """Replace the snapshot by one of this moment."""
        fleet = self._fleet
        self.snapshot = Snapshot(
            version=gmemd.__version__,
            taken_timestamp=time.time(),
            host=fleet.host,
            vms=self.observer.beside(vm.status() for vm in fleet.vms.values()),
            unseen_processes=self.observer.unseen_processes,
            hidden_processes=self.observer.hidden_processes,
            committed=fleet.commitments().committed,
            audit_interval_seconds=fleet.audit_interval_seconds,
            audit_budget_ratio=fleet.audit_budget_ratio,
            page_table_bytes=fleet.page_table_bytes,
            reload_successful=self.reload_successful,
            reload_success_timestamp=self.reload_success_timestamp,
            reload_message=self.reload_message,
            kept=fleet.keeper.kept,
        )
        fleet.tell()

    def look_at_all(self) -> None:
        """Look at everything once, and publish."""
        self._all_due = 0.0
        self._pass()

    def _pass(self) -> None:
        """Look at what is to be looked at, and publish; nothing where the daemon stops."""
        fleet = self._fleet
        if fleet.stopping:
            return
        if step := self._clock.step():
            self._clock_was_set(step)
        now = time.monotonic()
        if fleet.host_due <= now and self._host_task is None:
            self._host_task = asyncio.create_task(fleet.refresh_host())
            self._host_task.add_done_callback(self._host_is_read)
        for name in self._in_order_of_admission(self._to_look_at(now)):
            vm = fleet.vms.get(name)
            if vm is None:
                vm = fleet.vms[name] = ManagedVm(name, dormant=self._is_left_over(name))
            try:
                self._look_at(vm)
            except Exception:
                log.exception("%s: looking at it failed", name)
                vm.fail("internal", "internal error", "the daemon's log has the traceback")
            self._note(vm)
        self.publish()

    def _clock_was_set(self, seconds: float) -> None:
        """Put all times right that were told by the clock as it was."""
        log.warning("the clock was set by %+.0f s: times told before are put right", seconds)
        self.reload_success_timestamp += seconds
        self.observer.clock_was_set(seconds)
        for vm in self._fleet.vms.values():
            shift_vm(vm, seconds)

    def _to_look_at(self, now: float) -> set[str]:
        """The VMs that aren't as they were when they were last looked at, and those due; or all."""
        vms, desired = self._fleet.vms, self._fleet.desired
        if self._all_due <= now or self._asked is not desired:
            self._all_due = now + LONGEST_PASS_SECONDS
            if self._asked is not desired:
                self._spilling = frozenset(
                    n for n, spec in desired.specs.items() if can_spill(spec)
                )
            self._asked, self._found = desired, self.observer.found
            return {*vms, *desired.names}
        looked_at = self._looked_at
        names = {name for name, vm in vms.items() if looked_at.get(name) is not vm.revision}
        names |= {name for name, due in self._due.items() if due <= now}
        if self._found is not self.observer.found:
            self._found = self.observer.found
            names |= {n for n, spec in desired.specs.items() if spec.source in _FOUND_RUNNING}
        return names

    def _note(self, vm: ManagedVm) -> None:
        """Remember how a VM was left, and when to look at it again if nothing happens to it."""
        self._due.pop(vm.name, None)
        if self._fleet.vms.get(vm.name) is not vm:
            self._looked_at.pop(vm.name, None)
            return
        self._looked_at[vm.name] = vm.revision
        now, due = time.monotonic(), 0.0
        if vm.busy:
            due = now + PROGRESS_SECONDS if vm.work is not Work.AUDIT else 0.0
        elif vm.regions:
            if self._fleet.desired.specs.get(vm.name) not in (vm.spec, vm.pending_spec):
                due = vm.retry_at
        elif vm.state is VmState.FAILED and vm.spec is not None:
            due = vm.retry_at
        if due > now:
            self._due[vm.name] = due

    def _is_left_over(self, name: str) -> bool:
        """Whether a VM's spec came with a call to an earlier daemon: nobody waits for it now."""
        inline = self._is_inline(self._fleet.desired.specs.get(name))
        return inline and not self._fleet.wanted[name]

    def _host_is_read(self, _: asyncio.Task[None]) -> None:
        self._host_task = None

    def _in_order_of_admission(self, names: Iterable[str]) -> list[str]:
        """VMs by name, those whose memory can go elsewhere behind those whose can't."""
        return sorted(names, key=lambda name: (name in self._spilling, name))

    def _pause_seconds(self) -> float:
        """How long nothing is due."""
        due = [time.monotonic() + self._longest_pause_seconds, self._all_due, *self._due.values()]
        if self._host_task is None:
            due.append(self._fleet.host_due)
        return max(SHORTEST_PAUSE_SECONDS, min(due) - time.monotonic())

    def _look_at(self, vm: ManagedVm) -> None:
        """Start what one VM needs next, if anything."""
        desired = self._fleet.desired
        spec = desired.specs.get(vm.name)
        vm.problem = desired.broken.get(vm.name)
        vm.inline = self._is_inline(spec or vm.spec)
        if vm.busy:
            outdated = vm.work is Work.PROVISION and not vm.regions and spec != vm.spec
            if outdated or (vm.work is Work.AUDIT and vm.release_wanted):
                vm.cancel.set()
        elif vm.release_wanted:
            self._lifecycle.start(vm, Work.RELEASE, self._lifecycle.release(vm))
        elif vm.lost and vm.held and not vm.regions:
            self._fleet.enter(vm, VmState.DEGRADED, vm.lost, LOST_HINT)
        elif not desired.has(vm.name):
            self._let_go(vm)
        elif spec is None:
            self._without_good_spec(vm)
        elif vm.regions:
            self._keep(vm, spec)
        elif spec.source is Source.OBSERVE:
            self._observe(vm, spec)
        elif spec.source is Source.CREATE:
            self._bring_about(vm, spec)
        else:
            self._await_its_vmm(vm, spec)

    def _without_good_spec(self, vm: ManagedVm) -> None:
        if not vm.regions:
            vm.ask(None)
        if vm.problem is not None:
            vm.enter(VmState.FAILED, str(vm.problem), vm.problem.hint or "")

    def _observe(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Tell what a VM waits for that isn't running; of one that is, the observer tells."""
        if spec != vm.spec:
            vm.ask(spec)
        if self.observer.runs(vm.name):
            vm.enter(VmState.READY)
        else:
            self._fleet.enter(vm, VmState.WAITING, *self.observer.waiting(spec))

    def _await_its_vmm(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Tell what a VM waits for whose VMM makes the memory."""
        if spec != vm.spec:
            vm.ask(spec)
        if vm.failure:
            return
        words = (waiting_reason(spec) or "", "")
        if spec.source is Source.ADOPT:
            seen = self.observer.waiting(spec)
            if vm.unadopted[0]:
                words = vm.unadopted
            elif vm.left_alone and not seen[0]:
                words = (LEFT_ALONE.format(pid=vm.left_alone), f"`gmemd adopt {vm.name}` does")
            elif seen[0]:
                words = seen
        self._fleet.enter(vm, VmState.WAITING, *words)

    def _bring_about(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Provision a VM that has no memory yet, unless it was released and nobody wants it."""
        if spec != vm.spec:
            vm.ask(spec)
        if vm.dormant and not self._fleet.wanted[vm.name]:
            self._fleet.enter(vm, VmState.WAITING, RELEASED)
            return
        if not vm.failure:
            self._fleet.enter(vm, VmState.PROVISIONING)
        if vm.retry_at <= time.monotonic():
            self._lifecycle.start(vm, Work.PROVISION, self._lifecycle.provision(vm, spec))

    def _let_go(self, vm: ManagedVm) -> None:
        """Give back a VM that no file asks for any more, then forget it; never what is held."""
        if vm.regions and vm.holder is not None:
            vm.pending = NO_SPEC if vm.held else NO_SPEC_KEPT
            return
        if vm.regions:
            self._lifecycle.start(vm, Work.RELEASE, self._lifecycle.release(vm))
            return
        self._fleet.counters.forget(vm.name)
        del self._fleet.vms[vm.name]
        log.info("%s: %s", vm.name, "no spec any more" if self.observer.runs(vm.name) else "gone")

    def _keep(self, vm: ManagedVm, spec: VmSpec) -> None:
        """Apply what changed in a VM that has memory."""
        if spec == vm.spec:
            vm.pending, vm.pending_spec = "", None
        elif spec != vm.pending_spec:
            change = compare(vm.spec, spec) if vm.spec is not None else Change()
            if change.shape:
                way_out = AFTER_ITS_VMM if vm.holder is not None else RELEASE_FIRST
                vm.postpone(spec, f"{', '.join(change.shape)} changed; {way_out}")
            elif vm.retry_at <= time.monotonic():
                self._lifecycle.start(vm, Work.APPLY, self._lifecycle.apply(vm, spec))
