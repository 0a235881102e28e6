"""All VMs under the daemon's care and the host that they share: what its parts have in common.

It lives on the event loop's thread, and nothing in it blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from operator import is_
from typing import TYPE_CHECKING

from gmemd.daemon.desired import Desired
from gmemd.daemon.hostnews import make_up, news, out_of_reach
from gmemd.daemon.store.unkept import Unkept
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.plan.ledger import total
from gmemd.spec.config import AuditConfig

if TYPE_CHECKING:
    from gmemd.daemon.store.unkept import Keeping
    from gmemd.daemon.vm import ManagedVm
    from gmemd.daemon.work import Workers
    from gmemd.export.instruments import Counters
    from gmemd.host.model import Host
    from gmemd.plan.admission import Reserve
    from gmemd.plan.ledger import Commitments
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

_SETTLED = frozenset({VmState.READY, VmState.DEGRADED})

NEWS_SECONDS = 2.0
"""Between two publications of what only audits find out."""


class Fleet:
    """The VMs by name, the specs in force, and the host's figures as last read.

    ``wake`` is set where something is to be looked at now: VMs that changed, and what is due.
    ``audit_wanted`` is set where an audit is due
    sooner than it was; ``host_due`` is on the monotonic clock.
    ``sample_pages`` of a guest node are drawn where an audit draws. ``audit_budget_ratio`` and
    ``page_table_bytes`` are the snapshot's.
    ``wanted`` counts who waits for a VM's memory, ``changes`` how often all were told of one.
    ``stopping``: nothing is begun any more. ``keeper`` has memory outlive the daemon.
    """

    def __init__(
        self,
        workers: Workers,
        counters: Counters,
        *,
        reserve: Reserve,
        audit_interval_seconds: float,
    ) -> None:
        self.workers = workers
        self.counters = counters
        self.reserve = reserve
        self.audit_interval_seconds = audit_interval_seconds
        self.sample_pages = AuditConfig().sample_pages
        self.audit_budget_ratio = AuditConfig().budget_ratio
        self.page_table_bytes = 0
        self.keeper: Keeping = Unkept()
        self.desired = Desired()
        self.vms: dict[str, ManagedVm] = {}
        self.host: Host | None = None
        self.host_due = 0.0
        self.wake = asyncio.Event()
        self.audit_wanted = asyncio.Event()
        self.wanted: Counter[str] = Counter()
        self.stopping = False
        self.changes = 0
        self._told: set[asyncio.Future[None]] = set()
        self._promised: tuple[list[Commitments], Commitments] = [], total(())
        self._told_at = 0.0
        self._news: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """Wake all who wait for something to change."""
        self.changes += 1
        self._told_at = time.monotonic()
        waiting, self._told = self._told, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def change(self, since: int | None = None) -> None:
        """Wait until something has changed, which may be anything.

        ``since`` is what ``changes`` was when the caller looked, if it did anything since.
        """
        if since not in (None, self.changes):
            return
        future = asyncio.get_running_loop().create_future()
        self._told.add(future)
        try:
            await future
        finally:
            self._told.discard(future)

    def changed(self, vm: ManagedVm) -> None:
        """Have a VM looked at now, as something happened to it."""
        vm.touch()
        self.wake.set()

    def news(self) -> None:
        """Have what is new published soon: nobody waits for it, and more may come."""
        if self._news is None:
            rest = max(0.0, self._told_at + NEWS_SECONDS - time.monotonic())
            self._news = asyncio.get_running_loop().call_later(rest, self._tell_news)

    def _tell_news(self) -> None:
        self._news = None
        self.wake.set()

    def enter(self, vm: ManagedVm, state: VmState, message: str = "", hint: str = "") -> None:
        """Have a VM go to a state, and log it if it is news."""
        if vm.enter(state, message, hint):
            log.info("%s: %s%s", vm.name, state, f": {message}" if message else "")

    def audit_soon(self, vm: ManagedVm) -> None:
        """Have a VM audited before all others."""
        vm.audit_due = 0.0
        self.audit_wanted.set()

    def retry_failed(self) -> None:
        """Let failed VMs try again now, as something that may heal them happened."""
        for vm in self.vms.values():
            vm.retry_at = 0.0
        self.wake.set()

    def specs_in_force(self) -> dict[str, VmSpec | None]:
        """The specs by which VMs are what they are, or would be; None: no good one is known."""
        specs: dict[str, VmSpec | None] = dict(self.desired.specs)
        specs |= {name: vm.spec for name, vm in self.vms.items() if name not in specs}
        return specs

    def holder_pids(self) -> frozenset[int]:
        """Processes whose memory is shown by VMs of the fleet.

        Not those that an owner merely names: it could hide another VM's VMM so.
        """
        holders = (vm.holder for vm in self.vms.values() if vm.holder is not None)
        return frozenset(each.pid for each in holders if each.alive and each.vouched)

    def commitments(self) -> Commitments:
        """What all VMs were promised and don't have yet."""
        parts = [vm.commitments() for vm in self.vms.values()]
        before, promised = self._promised
        if len(parts) != len(before) or not all(map(is_, parts, before)):
            promised = total(parts)
            self._promised = parts, promised
        return promised

    async def known_host(self) -> Host:
        """The host's figures as last read, or now."""
        return self.host or await self.read_host()

    async def read_host(self) -> Host:
        """The host's figures, read now."""
        host = await self.workers.read_host()
        before, self.host = self.host, host
        for line in news(before, host):
            log.warning("%s", line)
        if before is not None and make_up(before) != make_up(host):
            self._host_is_another(host)
        return host

    def _host_is_another(self, host: Host) -> None:
        """Have all VMs know of nodes and limits that came or went, and try again what failed."""
        for vm in self.vms.values():
            if vm.spec is not None and vm.steady and vm.state in _SETTLED:
                vm.out_of_reach = out_of_reach(vm.spec, host)
                if vm.settle():
                    log.warning("%s: %s: %s", vm.name, vm.state, vm.message)
            vm.pending_spec = None
        self.retry_failed()

    async def refresh_host(self) -> None:
        """Read the host's figures for the snapshot."""
        try:
            await self.read_host()
        except GmemdError as error:
            log.error("reading the host: %s", error.in_one_line)  # noqa: TRY400
        finally:
            self.host_due = time.monotonic() + self.audit_interval_seconds
            self.wake.set()
