"""Memory that gmemd made, into a VMM's hands and back: acquire, hand over, release.

All of it runs on the event loop; one process at a time holds a VM's memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncvarlink.serviceerrors import InvalidParameter, PermissionDenied

from gmemd.daemon.holding import cpuset_warnings
from gmemd.daemon.steps import step
from gmemd.daemon.varlink.errors import (
    AlreadyOwned,
    FdRejected,
    NoSuchVM,
    NotReady,
    ProvisioningFailed,
)
from gmemd.daemon.varlink.told import does_not_fit, provisioning_failed
from gmemd.daemon.vm import LOST_HINT
from gmemd.export.snapshot import VmState
from gmemd.host.vms.holders import has_exited
from gmemd.memory.errors import ProvisionError
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.holding import Holder
    from gmemd.daemon.lifecycle import Lifecycle
    from gmemd.daemon.reconcile import Reconciler
    from gmemd.daemon.vm import ManagedVm
    from gmemd.memory.progress import Progress

PEER = "peer"

_INSTEAD = {
    Source.REGISTER: "its VMM makes the memory, and calls Register",
    Source.ADOPT: "its VMM makes the memory: start that, and gmemd takes the memory in",
    Source.OBSERVE: "its VMM makes the memory, and gmemd only looks at it",
}


@dataclass(frozen=True, slots=True)
class PassedCgroup:
    """A cgroup that a caller lets pay: its cgroup.procs, open for writing, and its directory."""

    procs_fd: int
    directory: Path


class Handing:
    """Gives memory to its holders, and takes it back."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle, reconciler: Reconciler) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._possession = reconciler.possession
        self._being_given: set[str] = set()

    def vm(self, name: str) -> ManagedVm:
        """The VM of that name; raises NoSuchVM."""
        vm = self._fleet.vms.get(name)
        if vm is None:
            raise NoSuchVM(vm=name)
        return vm

    async def acquire(
        self, name: str, holder: Holder, payer: PassedCgroup | None
    ) -> AsyncIterator[ManagedVm]:
        """Give the VM again and again as it changes, until its memory is the holder's.

        Raises the varlink errors of Acquire but for Timeout. The holder is taken over only if the
        iterator ends by itself.
        """
        failures = self._begin(self.vm(name))
        self._fleet.wanted[name] += 1
        try:
            while True:
                seen = self._fleet.changes
                if await self._take(vm := self.vm(name), holder, payer):
                    return
                _raise_for_failure(vm, failures)
                yield vm
                await self._fleet.change(seen)
        finally:
            self._fleet.wanted -= Counter((name,))

    def _begin(self, vm: ManagedVm) -> int:
        """Have a failed VM try again now; gives how often it has failed so far."""
        vm.retry_at = 0.0
        self._fleet.changed(vm)
        return vm.failures

    async def _take(self, vm: ManagedVm, holder: Holder, payer: PassedCgroup | None) -> bool:
        """Give the memory to the holder if it is to be had now."""
        adopted = vm.spec is not None and vm.spec.source is Source.ADOPT
        if adopted or not (vm.regions or vm.held):
            _refuse_what_never_comes(vm)
        if vm.name in self._being_given:
            return False
        if vm.held and vm.holder is not None:
            if vm.holder.is_process(holder.pid):
                _refuse_in_part(vm)
                holder.close()
                return True
            if vm.bereft:
                return False
            raise AlreadyOwned(vm=vm.name, holder_pid=vm.holder.pid)
        if not vm.steady:
            return False
        if _awaits_its_payer(vm):
            if payer is None:
                raise FdRejected(
                    index=-1,
                    reason="its spec says `cgroup: peer`, and no cgroup.procs came with the call "
                    "(`gmemd run` passes its own where it may: as root, on cgroup v2)",
                )
            await self._prefault(vm, payer)
            return False
        await self._hand_out(vm, holder)
        return True

    async def _hand_out(self, vm: ManagedVm, holder: Holder) -> None:
        """Have the memory be the holder's, and that outlive the daemon before anything is sent."""
        _refuse_in_part(vm)
        if has_exited(holder.pidfd):
            raise InvalidParameter(parameter="holder")
        before = vm.holder
        self._being_given.add(vm.name)
        self._possession.give_to(vm, holder)
        if vm.state is VmState.PROVISIONING:  # its first audit is still to come
            vm.settle()
        try:
            await self._warn(vm, holder)
            await self._fleet.keeper.secure()
            _refuse_what_is_gone(vm, holder)
        except BaseException:  # whoever asked is gone, or was given nothing
            if vm.holder is holder:
                self._possession.take_back(vm, before)
            raise
        finally:
            self._being_given.discard(vm.name)
            self._fleet.tell()
        step("acquire.held")

    async def _prefault(self, vm: ManagedVm, payer: PassedCgroup) -> None:
        """Allocate the memory at the cost of the caller's cgroup; raises ProvisioningFailed."""
        host = await self._fleet.known_host()

        def note(progress: Progress) -> None:
            vm.progress = progress

        async def work() -> None:
            self._fleet.enter(vm, VmState.PROVISIONING)
            try:
                await self._fleet.workers.prefault_acquired(
                    vm.regions,
                    vm=vm.name,
                    host=host,
                    reserve=self._fleet.reserve,
                    progress=note,
                    cancel=vm.cancel,
                    payer_fd=payer.procs_fd,
                    payer=payer.directory,
                )
            except ProvisionError as error:
                self._possession.release_soon(vm)
                raise provisioning_failed(vm.name, error) from error
            finally:
                vm.progress = None
            vm.prefaulted = True
            await self._fleet.keeper.secure()
            self._fleet.audit_soon(vm)
            vm.settle()

        await self._lifecycle.do(vm, work)

    async def _warn(self, vm: ManagedVm, holder: Holder) -> None:
        """Say what of the holder's cpuset stands against its memory's policies."""
        host = await self._fleet.known_host()
        warnings = [
            f"guest node {region.plan.guest_node}: {warning}"
            for region in vm.regions
            for warning in cpuset_warnings(region.plan, holder.facts, host)
        ]
        vm.holder_warnings = tuple(dict.fromkeys(warnings))

    def require_hand_over(self, name: str, caller_pid: int, *, may: bool) -> None:
        """Raise PermissionDenied unless the caller may hand over a VM's memory.

        ``may`` is who may do so to any VM; besides, the holder and who opened it for it.
        """
        before = self.vm(name).holder
        allowed = before is not None and (
            before.is_process(caller_pid) or before.was_opened_by(caller_pid)
        )
        if not (may or allowed):
            raise PermissionDenied

    async def hand_over(self, name: str, holder: Holder) -> None:
        """Make another process the holder; raises NotReady."""
        vm = self.vm(name)
        before = vm.holder
        if before is None or not vm.regions or vm.release_wanted:
            raise NotReady(
                vm=name, state=str(vm.state), message="nobody holds its memory", hint="acquire it"
            )
        if has_exited(holder.pidfd):
            raise InvalidParameter(parameter="holder")
        self._possession.give_to(vm, holder)
        await self._warn(vm, holder)
        await self._fleet.keeper.secure()
        step("hand_over.held")

    async def release(self, name: str, caller_pid: int, *, may: bool, force: bool) -> ManagedVm:
        """Give back what memory a VM has, or is about to have, and wait for it.

        What others who wait for it make it have afterwards is theirs. Raises PermissionDenied,
        AlreadyOwned.
        """
        vm = self.vm(name)
        _refuse_to_release(vm, caller_pid, may=may, force=force)
        vm.dormant = True
        if vm.busy and not vm.regions and vm.task is not None:
            vm.cancel.set()
            await asyncio.wait([vm.task])
            _refuse_to_release(vm, caller_pid, may=may, force=force)
        if vm.regions or vm.lost:
            self._possession.release_soon(vm)
        while vm.release_wanted:
            await self._fleet.change()
        return vm


def _refuse_to_release(vm: ManagedVm, caller_pid: int, *, may: bool, force: bool) -> None:
    """Raise PermissionDenied or AlreadyOwned unless the caller may release a VM's memory now."""
    if vm.holder is not None and vm.holder.is_process(caller_pid):
        return
    if not may:
        raise PermissionDenied
    if vm.held and vm.holder is not None and not force:
        raise AlreadyOwned(vm=vm.name, holder_pid=vm.holder.pid)


def _refuse_in_part(vm: ManagedVm) -> None:
    """Raise NotReady for memory that isn't all there any more."""
    if vm.lost:
        raise NotReady(vm=vm.name, state=str(vm.state), message=vm.lost, hint=LOST_HINT)


def _refuse_what_is_gone(vm: ManagedVm, holder: Holder) -> None:
    """Raise NotReady where memory that a process was about to get is its no more."""
    if vm.holder is not holder or vm.release_wanted or not vm.regions:
        raise NotReady(
            vm=vm.name,
            state=str(vm.state),
            message="its memory was given back or handed over meanwhile",
            hint="acquire it again",
        )


def _awaits_its_payer(vm: ManagedVm) -> bool:
    """Whether its pages are to be paid for by whom acquires it, and aren't yet."""
    spec = vm.spec
    return (
        spec is not None
        and spec.cgroup == PEER
        and not vm.prefaulted
        and any(region.plan.prefault for region in vm.regions)
    )


def _refuse_what_never_comes(vm: ManagedVm) -> None:
    """Raise NotReady for a VM whose memory isn't gmemd's to make."""
    spec = vm.spec
    if spec is not None and spec.source is Source.CREATE:
        return
    if spec is None and vm.problem is None:  # not looked at yet
        return
    if spec is not None:
        raise NotReady(
            vm=vm.name,
            state=str(vm.state),
            message=f"its spec says source: {spec.source}",
            hint=_INSTEAD[spec.source],
        )
    raise NotReady(
        vm=vm.name,
        state=str(vm.state),
        message=vm.message or "its file is broken",
        hint=vm.hint or None,
    )


def _raise_for_failure(vm: ManagedVm, failures: int) -> None:
    """Raise what a new failure of the VM means."""
    if vm.failures == failures or vm.busy or vm.state is not VmState.FAILED:
        return
    cause = vm.cause
    if cause is not None and cause.refusals:
        raise does_not_fit(vm.name, cause.refusals)
    if cause is not None and cause.error is not None:
        raise provisioning_failed(vm.name, cause.error)
    raise ProvisioningFailed(
        vm=vm.name,
        reason=vm.failure,
        host_node=None,
        needed_bytes=0,
        available_bytes=0,
        message=vm.message,
        hint=vm.hint or None,
    )
