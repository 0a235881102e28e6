"""The periodic audits of memory that gmemd holds: one VM after the other, within a CPU budget.

Whose audit is due the longest comes first. Where all VMs together can't be sampled as often as is
asked for, the samples get smaller, down to a size that still tells something; and where that isn't
enough, audits come less often, which each VM's last audit tells.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING

from gmemd.audit.sampling import LEAST_PAGES
from gmemd.daemon.vm import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.vm import ManagedVm
    from gmemd.spec.config import AuditConfig

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 30.0
ORDER_PART = 0.1
"""Of the interval: how long the order in which audits are due is gone by."""

BURST_PART = 0.03
"""Of the interval: audits that are due within it are done together, and paid for together. One at a
time with a rest after each they took three times as long, with nothing in the CPU's caches."""

LONGEST_WAIT_SECONDS = 5.0
"""Between two looks at the budget, which a reload may change."""

BUSY_SECONDS = 1.0
"""How long a VM that is due waits while something else is done for it."""

FIRST_PAGE_SECONDS = 3e-6
"""CPU time of a page wanted, with all that goes with it, until it is known: 1.5 to 3 us here."""

NEWS_WEIGHT = 0.1
"""How much one audit says of what a page costs."""


class Auditor:
    """Starts the audits that are due, and takes note of what the rolling scan has done."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle, config: AuditConfig) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._scanning = fleet.workers.scanning
        self._config = config
        self._page_seconds = FIRST_PAGE_SECONDS
        self._order: list[tuple[float, ManagedVm]] = []
        self._ordered_until = 0.0
        self._waiting = 0.0
        self._pays = False
        self._guest_nodes = 0
        self.configure(config)

    def configure(self, config: AuditConfig) -> None:
        """Take on an interval, a sample's size and a budget."""
        self._config = config
        self._scanning.configure(config)
        self._fleet.audit_interval_seconds = config.interval_seconds
        self._fleet.audit_budget_ratio = config.budget_ratio
        self._fleet.sample_pages = config.sample_pages
        latest = time.monotonic() + config.interval_seconds
        for vm in self._fleet.vms.values():
            vm.audit_due = min(vm.audit_due, latest)
        self._fleet.host_due = min(self._fleet.host_due, latest)
        self._fleet.audit_wanted.set()
        self._fleet.wake.set()

    async def run(self) -> None:
        """Audit until cancelled."""
        loop = asyncio.get_running_loop()
        self._scanning.rolling.completed = lambda key: _call(loop, self._seen_whole, key)
        while True:
            try:
                await self._next()
            except Exception:
                log.exception("a periodic audit failed")
                await asyncio.sleep(BUSY_SECONDS)

    async def _next(self) -> None:
        """Audit the VM that is due, or wait for one."""
        burst = BURST_PART * self._config.interval_seconds
        wait = self._scanning.looks.wait_seconds()
        self._pays = wait > burst or (self._pays and wait > 0)
        if self._pays:
            await asyncio.sleep(min(wait, LONGEST_WAIT_SECONDS))
            return
        anew = self._fleet.audit_wanted.is_set()
        self._fleet.audit_wanted.clear()
        vm, due = self._most_due(anew=anew)
        if vm is None or due > time.monotonic() + burst:
            # Another one may be there by the time that they are put in order again.
            await self._pause(min(due, self._ordered_until) - time.monotonic())
        else:
            await self._audit(vm)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(0.0, seconds), LONGEST_PAUSE_SECONDS)):
                await self._fleet.audit_wanted.wait()

    def _most_due(self, *, anew: bool) -> tuple[ManagedVm | None, float]:
        """Give the VM whose audit is due first, and when; of those that nothing is done for.

        It costs as much as there are VMs to put them in order: now and then, and where it is asked
        for ``anew``.
        """
        now = time.monotonic()
        if anew or min(self._ordered_until, self._waiting) <= now:
            self._put_in_order(now)
            self._note_scan()
        while self._order:
            due, vm = self._order[-1]
            if vm.audit_due == due and not vm.busy and self._is_auditable(vm):
                return (vm, due) if due <= self._waiting else (None, self._waiting)
            self._order.pop()
        return None, self._waiting

    def _put_in_order(self, now: float) -> None:
        """Find out whose audit is due when, the first one last, and until when nobody's is."""
        vms = [vm for vm in self._fleet.vms.values() if self._is_auditable(vm)]
        waiting = [max(vm.audit_due, now + BUSY_SECONDS) for vm in vms if vm.busy]
        self._waiting = min(waiting, default=now + LONGEST_PAUSE_SECONDS)
        order = [(vm.audit_due, vm) for vm in vms if not vm.busy]
        self._order = sorted(order, key=itemgetter(0), reverse=True)
        self._guest_nodes = sum(len(vm.spec.guest_nodes) for vm in vms if vm.spec is not None)
        self._ordered_until = now + ORDER_PART * self._config.interval_seconds

    def _is_auditable(self, vm: ManagedVm) -> bool:
        """Whether there is memory to look at, which isn't about to be given back."""
        planned = vm.spec is not None and vm.plan is not None
        return bool(vm.regions) and planned and not vm.release_wanted

    async def _audit(self, vm: ManagedVm) -> None:
        fleet = self._fleet
        fleet.sample_pages = wanted = self._sample_pages()
        before = vm.audit
        self._lifecycle.start(vm, Work.AUDIT, self._lifecycle.looks.watch(vm, charged=True))
        if vm.task is not None:
            await asyncio.wait([vm.task])
        audit = vm.audit
        if audit is None or audit is before:
            return
        sampled = {region.guest_node for region in audit.regions if region.sample is not None}
        if sampled:
            seconds = audit.cpu_seconds / (wanted * len(sampled))
            self._page_seconds += NEWS_WEIGHT * (seconds - self._page_seconds)

    def _sample_pages(self) -> int:
        """Pages of a guest node that can be drawn, if all are to be audited as often as asked."""
        seconds = self._scanning.looks.share * self._config.interval_seconds
        affordable = int(seconds / (self._page_seconds * max(1, self._guest_nodes)))
        return max(LEAST_PAGES, min(self._config.sample_pages, affordable))

    def _note_scan(self) -> None:
        looked = self._scanning.take_looked()
        self._fleet.counters.add_scan(looked.cpu_seconds, looked.pages_seen, looked.errors)
        if self._fleet.page_table_bytes != self._scanning.page_table_bytes:
            self._fleet.page_table_bytes = self._scanning.page_table_bytes
            self._fleet.news()

    def _seen_whole(self, key: Hashable) -> None:
        """Audit the VM whose regions were all seen whole now, as it can be told exactly."""
        rolling = self._scanning.rolling
        for vm in self._fleet.vms.values():
            keys = [(region.fd, region.offset) for region in vm.regions]
            if key in keys and all(map(rolling.is_verified, keys)):
                self._fleet.audit_soon(vm)


def _call(
    loop: asyncio.AbstractEventLoop, function: Callable[[Hashable], None], key: Hashable
) -> None:
    """Have the loop call it, if there still is one."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, key)
