"""An audit that somebody asks for: it is begun in its turn, and it alone is answered for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gmemd.audit.scan import AuditStoppedError
from gmemd.daemon.vm import Work
from gmemd.errors import GmemdError

if TYPE_CHECKING:
    from gmemd.audit.asked import Asked
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.vm import ManagedVm

ATTEMPTS = 3
"""How often an audit is begun that makes way for what can't wait."""


def daemon_stops() -> GmemdError:
    """Why nothing is looked at any more."""
    return GmemdError("the daemon stops", hint="ask again once it runs again")


async def audit_on_demand(fleet: Fleet, lifecycle: Lifecycle, vm: ManagedVm, asked: Asked) -> None:
    """Audit a VM once nothing else is done or due; one without memory is left as it is.

    Where it makes way for something else it is begun again after that. Where the caller is
    cancelled it is stopped, or doesn't begin. Raises GmemdError where the VM wasn't audited.
    """
    for _ in range(ATTEMPTS):
        await _await_turn(fleet, vm)
        if not vm.regions:
            return
        error = await _audit(lifecycle, vm, asked)
        if error is None:
            return
        if not isinstance(error, AuditStoppedError):
            raise error
        await asyncio.sleep(0)  # whom it made way for goes first
    raise GmemdError(
        f"it made way {ATTEMPTS} times for what else was done to the VM's memory", hint="ask again"
    )


async def _await_turn(fleet: Fleet, vm: ManagedVm) -> None:
    """Wait until nothing is done for a VM or due, or never will be again."""
    while not (vm.untouched or fleet.stopping) and fleet.vms.get(vm.name) is vm:
        if vm.busy and vm.task is not None:
            await asyncio.wait([vm.task])
        else:
            await fleet.change()


async def _audit(lifecycle: Lifecycle, vm: ManagedVm, asked: Asked) -> GmemdError | None:
    """Audit a VM; gives why it wasn't, if it wasn't."""
    ended: list[GmemdError | None] = []

    async def audit() -> None:
        ended.append(await lifecycle.looks.audit(vm, asked))

    task = lifecycle.start(vm, Work.AUDIT, audit())
    if task is None:
        return daemon_stops()
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if vm.task is task:
            vm.cancel.set()
        raise
    internal = GmemdError("internal error", hint="the daemon's log has the traceback")
    return ended[0] if ended else internal
