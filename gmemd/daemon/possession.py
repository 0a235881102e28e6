"""Who has a VM's memory from when to when: given, taken back, left behind by who exits.

All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING

from gmemd.daemon.vm import Work
from gmemd.spec.model import OnVmmExit, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.holding import Holder
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.vm import ManagedVm

log = logging.getLogger(__name__)

EXEC_SECONDS = 2.0
"""How long after it was given memory a process is looked at again, to see what it has become."""


class Possession:
    """Has memory change hands. ``publish`` has everybody see it at once."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle, publish: Callable[[], None]) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._publish = publish
        self._looks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Look at no holder any more."""
        for look in self._looks:
            look.cancel()

    def give_to(self, vm: ManagedVm, holder: Holder) -> None:
        """Have a process hold a VM's memory from now on; another holder before it is forgotten."""
        if vm.holder is not None and vm.holder is not holder:
            vm.holder.close()
        vm.holder = holder
        self._fleet.workers.scanning.note_use(vm.regions)
        holder.watch(lambda: self._exited(vm, holder))
        log.info("%s: held by pid %d (%s)", vm.name, holder.pid, holder.facts.program)
        self._looks.add(task := asyncio.create_task(self._look_again(vm), context=Context()))
        task.add_done_callback(self._looks.discard)
        self._fleet.changed(vm)
        self._publish()  # who asks next is told of it

    def take_back(self, vm: ManagedVm, before: Holder | None) -> None:
        """Have a VM's memory be nobody's again that was given to a process and never sent to it.

        ``before`` is who left it behind, if somebody did.
        """
        if vm.holder is not None:
            vm.holder.close()
        vm.holder = before
        self._fleet.workers.scanning.note_idle(vm.regions)
        self._fleet.changed(vm)

    def have_again(self, vm: ManagedVm, *, exited: bool) -> None:
        """Look after a VM that an earlier daemon had; ``exited``: its holder has since."""
        holder = vm.holder
        if holder is not None and holder.alive:
            self._fleet.workers.scanning.note_use(vm.regions)
            holder.watch(lambda: self._exited(vm, holder))
        elif holder is not None and exited:
            self._exited(vm, holder)
        self._fleet.audit_soon(vm)

    async def _look_again(self, vm: ManagedVm) -> None:
        """See what a holder is once it has become it: launchers exec."""
        await asyncio.sleep(EXEC_SECONDS)
        await self._lifecycle.looks.look_at_holder(vm)
        self._fleet.changed(vm)

    def _exited(self, vm: ManagedVm, holder: Holder) -> None:
        """Keep or release a VM's memory, as its spec says."""
        if vm.holder is not holder:
            return
        self._fleet.workers.scanning.note_idle(vm.regions)
        spec = vm.spec
        keeps = spec is not None and spec.on_vmm_exit is OnVmmExit.KEEP
        if keeps and vm.regions and spec is not None and spec.source is not Source.ADOPT:
            log.info("%s: pid %d exited, its memory is kept", vm.name, holder.pid)
        else:
            log.info("%s: pid %d exited, its memory is given back", vm.name, holder.pid)
            self.release_soon(vm)
        self._fleet.changed(vm)

    def release_soon(self, vm: ManagedVm) -> None:
        """Give a VM's memory back as soon as nothing else is done for it."""
        vm.release_wanted = True
        if vm.work is Work.AUDIT:
            vm.cancel.set()
        self._fleet.changed(vm)
