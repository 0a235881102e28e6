"""Looks at a VM's memory, and what is made of them. Coroutines on the event loop."""

from __future__ import annotations

import logging
import os
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from gmemd.audit.scan import AuditStoppedError
from gmemd.audit.vm import EVERY_PAGE, no_less_lately_verified, without_holders_pages
from gmemd.audit.watching import Watch
from gmemd.daemon.hostnews import out_of_reach
from gmemd.daemon.steps import step
from gmemd.drift.compute import compute_drift
from gmemd.errors import GmemdError
from gmemd.export.snapshot import VmState
from gmemd.host.vms.holders import read_facts
from gmemd.plan.layout import lay_out
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gmemd.audit.asked import Asked
    from gmemd.audit.model import VmAudit
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.vm import ManagedVm
    from gmemd.plan.layout import Extent
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

FRESH_INTERVALS = 2
"""What the rolling scan saw so many audit intervals ago is taken for what is now."""

AT_ONCE_BYTES = 256 << 20
"""A VM that is new and no larger is looked at whole at once, which takes some 0.1 s of a CPU."""


class Look(Protocol):
    """One way to look at a VM's memory, which ``payer``'s cgroup pays for."""

    async def __call__(self, spec: VmSpec, payer: Path | None, *, idle: bool) -> VmAudit:
        """Give what was seen."""


class Looks:
    """Looks at the VMs of a fleet, and judges what is seen."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._workers = fleet.workers

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


def layout_of(vm: ManagedVm) -> Mapping[tuple[int, int], tuple[Extent, ...]]:
    """Where in the guest's address space its regions are, of memory that is handed out so."""
    if vm.spec is None or vm.spec.source is not Source.CREATE:
        return {}
    return lay_out([region.plan for region in vm.regions], os.uname().machine)
