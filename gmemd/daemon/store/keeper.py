"""Keeps what the daemon has past its own life: written down, and its descriptors in the store.

What should be kept is compared with what is, again and again: a commit writes the state, puts what
lacks in the store, removes what is too much, and waits until systemd has taken it. Whoever asks
meanwhile waits for the next one. All state lives on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gmemd.daemon.store import statefile
from gmemd.daemon.store.committing import Commit, Committer
from gmemd.daemon.store.fdstore import FdStore, holder_name, region_name
from gmemd.daemon.store.manager import NotToldError, ask, own_unit
from gmemd.daemon.store.records import encode_state
from gmemd.daemon.store.telling import Lines, fds_of
from gmemd.daemon.vm import Work
from gmemd.export.snapshot import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.store.recovery import Recovered
    from gmemd.daemon.vm import ManagedVm

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

COMMIT_SECONDS = 30.0
"""Between two commits that nobody asks for: audits change what is known."""

RETRY_SECONDS = 30.0
"""Before what was refused is put again."""

CHECK_SECONDS = 2.0
"""After a commit, before systemd is asked what it has: others may follow."""

RECHECK_SECONDS = 300.0
DROPPED = "systemd dropped {count} that it was sent, its log says why (journalctl -u gmemd)"
FULL = "it is full: raise FileDescriptorStoreMax= of the unit, which is {limit}"


class Keeper:
    """Keeps a fleet's memory; `take_on` has it go on from where an earlier daemon was."""

    def __init__(self, fleet: Fleet, directory: Path, store: FdStore, boot_id: str) -> None:
        self._fleet = fleet
        self._store = store
        self._boot_id = boot_id
        self._committer = Committer(store, directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keep")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="ask")
        self._sequence = 0
        self._slot_again = False
        self._next_holder = 1
        self._stored: dict[str, str] = {}
        self._dropped: dict[str, str] = {}
        self._unclaimed: set[str] = set()
        self._refused: dict[str, str] = {}
        self._retry_at = 0.0
        self._lines = Lines()
        self._waiting: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._check_at = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._unit = ""
        self._problems: tuple[str, ...] = ()
        self._untold = False
        self._running = False
        self._finished = False
        self._committing = False
        self._commits = 0
        self._doubtful: set[str] = set()
        self._limit = store.limit

    @property
    def kept(self) -> Kept | None:
        """How the store stands; None where there is none."""
        if not self._store.available:
            return None
        return Kept(
            stored=len(self._stored) + len(self._unclaimed),
            limit=self._limit or None,
            missing=len(self._refused),
            unclaimed=len(self._unclaimed),
        )

    def keeps(self, vm: ManagedVm) -> bool:
        """Whether all of a VM's memory outlives this process."""
        return self._store.available and all(name in self._stored for name, _ in fds_of(vm))

    def take_on(self, recovered: Recovered) -> None:
        """Go on from where an earlier daemon was."""
        self._committer.go_on(recovered.memory, recovered.set_aside)
        self._sequence = recovered.sequence
        self._next_holder = max(self._next_holder, recovered.next_holder)
        owners = {
            region_name(region.inode): vm.record.vm for vm in recovered.vms for region in vm.regions
        }
        self._stored = {name: owners.get(name, "") for name in recovered.stored}
        self._unclaimed = set(recovered.unclaimed)
        if self._stored:
            self._wanted.set()  # what is nobody's is removed at once

    async def secure(self) -> None:
        """Return once all that VMs have now is written down, and is in the store.

        What can't be is told by the VMs' warnings, and tried again.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wanted.set()
        await waiter

    async def finish(self) -> None:
        """Secure for the last time: what is closed from then on stays in the store as it was.

        Where it doesn't run, as the start failed, the store is left as it is.
        """
        if self._running:
            await self.secure()
        self._finished = True

    async def run(self) -> None:
        """Commit whatever is asked for, until cancelled."""
        self._running = True
        try:
            await self._run()
        finally:
            self._running = False

    async def _run(self) -> None:
        self._unit = await _in(self._asking, own_unit) if self._store.available else ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            try:
                if not self._finished:
                    await self._commit()
            except Exception:
                log.exception("keeping what the daemon has failed")
                self._retry_at = time.monotonic() + RETRY_SECONDS
            finally:
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_result(None)
            self._check()

    async def close(self) -> None:
        """End the threads."""
        if self._checking is not None:
            self._checking.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._thread.shutdown()
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._committer.close()

    def _pause_seconds(self) -> float:
        now = time.monotonic()
        due = [now + COMMIT_SECONDS]
        if self._check_at and self._checking is None:
            due.append(self._check_at)
        if self._refused or self._problems:
            due.append(self._retry_at)
        return max(0.0, min(due) - now)

    async def _commit(self) -> None:
        commit = self._prepare()
        self._committing = True
        try:
            done = await _in(self._thread, self._committer.carry_out, commit)
        finally:
            self._committing = False
        self._slot_again = done.unwritten
        owners = dict(self._names())
        self._commits += bool(done.put or done.removed)
        self._doubtful.update(done.put)
        for name in done.put:
            self._stored[name] = owners.get(name, "")
            self._refused.pop(name, None)
            self._dropped.pop(name, None)
        for name in done.removed:
            self._stored.pop(name, None)
            self._dropped.pop(name, None)
            self._unclaimed.discard(name)
        if done.failed or done.problems:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self._refused |= done.failed
        if done.put or done.removed:
            self._check_at = time.monotonic() + CHECK_SECONDS
        self._say(tuple(done.problems))
        self._tell_vms()

    def _prepare(self) -> Commit:
        """What is to be written, and how the store differs from what should be in it."""
        self._name_holders()
        wanted = {name: fd for vm in self._fleet.vms.values() for name, fd in fds_of(vm)}
        self._unclaimed -= wanted.keys()
        self._sequence += 2 if self._slot_again else 1  # the other slot's is the last whole one
        data = encode_state(
            list(self._lines.of(self._fleet.vms.values())),
            boot_id=self._boot_id,
            sequence=self._sequence,
            next_holder=self._next_holder,
            unclaimed=sorted(self._unclaimed),
        )
        if not self._store.available:
            return Commit(data, self._sequence, {}, puts_state=False, removes=())
        self._refused = {name: why for name, why in self._refused.items() if name in wanted}
        owners = {name for name, vm in self._fleet.vms.items() if _in_flux(vm)}
        removes = tuple(
            name
            for name, owner in (self._stored | self._dropped).items()
            if name not in wanted and name != statefile.NAME and owner not in owners
        )
        return Commit(
            data,
            self._sequence,
            self._puts(wanted, sum(1 for name in removes if name in self._stored)),
            puts_state=statefile.NAME not in self._stored,
            removes=removes,
        )

    def _puts(self, wanted: Mapping[str, int], leaving: int) -> dict[str, int]:
        """What of the wanted descriptors isn't in the store and may be put there now: copies."""
        room = len(wanted)
        if self._limit:
            room = self._limit + leaving - len(self._stored) - len(self._unclaimed)
            room -= statefile.NAME not in self._stored
        waits = self._refused if time.monotonic() < self._retry_at else {}
        puts: dict[str, int] = {}
        for name, fd in wanted.items():
            if name in self._stored or name in waits:
                continue
            if len(puts) >= room:
                self._refuse(name, FULL.format(limit=self._limit))
                continue
            try:
                puts[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
            except OSError as error:
                self._refuse(name, f"no copy of it could be made: {error.strerror}")
        return puts

    def _refuse(self, name: str, why: str) -> None:
        self._refused[name] = why
        self._retry_at = max(self._retry_at, time.monotonic() + RETRY_SECONDS)

    def _name_holders(self) -> None:
        """Give holders that are new their names in the store."""
        for vm in self._fleet.vms.values():
            holder = vm.holder
            if holder is None or not holder.alive or holder.stored_as:
                continue
            holder.stored_as = self._new_name()
            if holder.opener_pidfd >= 0:
                holder.opener_stored_as = self._new_name()

    def _new_name(self) -> str:
        name = holder_name(self._next_holder)
        self._next_holder += 1
        return name

    def _check(self) -> None:
        """Ask systemd what it has, if it is time; beside everything else."""
        due = self._check_at and self._check_at <= time.monotonic()
        if due and self._checking is None and self._store.available:
            later = RETRY_SECONDS if self._refused else RECHECK_SECONDS
            self._check_at = time.monotonic() + later
            self._checking = asyncio.create_task(self._compare())
            self._checking.add_done_callback(self._checked)

    def _checked(self, _: asyncio.Task[None]) -> None:
        self._checking = None

    async def _compare(self) -> None:
        """Find out whether systemd has as many as it was given.

        It says how many, not which. Where some lack, all that were put since it had as many as it
        was given are taken for missing, and put again: what it has already it leaves as it is.
        """
        before, believed = self._commits, len(self._stored) + len(self._unclaimed)
        try:
            told = await _in(self._asking, ask, self._unit)
        except NotToldError as error:
            if not self._untold:
                log.warning("what is in the fd store can't be verified: %s", error.message)
            self._untold = True
            return
        self._untold = False
        self._limit = self._limit or told.limit
        if before != self._commits or self._committing:  # it told of another moment
            self._check_at = time.monotonic() + CHECK_SECONDS
            return
        if told.stored >= believed:
            self._doubtful.clear()
        else:
            for name in self._doubtful & self._stored.keys() or set(self._stored):
                self._dropped[name] = self._stored.pop(name)
                self._refused[name] = DROPPED.format(count=believed - told.stored)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._tell_vms()

    def _names(self) -> Iterator[tuple[str, str]]:
        """Names in the store, and whose they are."""
        for vm in self._fleet.vms.values():
            for name, _ in fds_of(vm):
                yield name, vm.name

    def _tell_vms(self) -> None:
        """Have each VM tell what of it isn't in the store, if anything should be."""
        for vm in self._fleet.vms.values():
            reasons = [self._refused[name] for name, _ in fds_of(vm) if name in self._refused]
            unstored = (len(reasons), reasons[0]) if reasons else (0, "")
            if vm.unstored != unstored:
                vm.unstored = unstored
                self._fleet.news()

    def _say(self, problems: tuple[str, ...]) -> None:
        """Log what is wrong, once."""
        for problem in problems:
            if problem not in self._problems:
                log.error("what VMs have can't be kept past a crash: %s", problem)
        self._problems = problems


async def _in(
    pool: ThreadPoolExecutor, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    return await asyncio.get_running_loop().run_in_executor(
        pool, partial(function, *args, **kwargs)
    )


def _in_flux(vm: ManagedVm) -> bool:
    """Whether its regions may be on their way from one list to another."""
    return vm.busy and vm.work is Work.PLACE
