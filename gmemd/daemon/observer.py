"""Running VMs in the daemon: found every audit interval, looked at one by one, published.

All state lives on the event loop's thread; finding and looking run in a thread of their own, and
are spread over the interval. A look that somebody asks for has another thread, as it may take
minutes. Whatever goes wrong with one VM is that VM's alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from gmemd.audit.asked import Asked
from gmemd.audit.observed import Effort
from gmemd.audit.scan import AuditStoppedError
from gmemd.daemon.clock import shifted
from gmemd.daemon.observing import Finder, Found, see
from gmemd.daemon.on_demand import daemon_stops
from gmemd.daemon.watched import (
    Wanted,
    Watched,
    in_a_daemons_words,
    remedy,
    same_process,
    why_waiting,
)
from gmemd.errors import GmemdError
from gmemd.spec.model import Source
from gmemd.spec.problems import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from gmemd.daemon.observing import FoundVm
    from gmemd.daemon.work import Workers
    from gmemd.export.instruments import Counters
    from gmemd.export.snapshot import VmStatus
    from gmemd.host.model import Host
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

_R = TypeVar("_R")

LONGEST_PAUSE_SECONDS = 0.25
NEWCOMERS_PAUSE_SECONDS = 0.02
"""Between VMs that were looked at before, and between those that nothing is known of yet."""

SLOW_SECONDS = 30.0
"""Longer than any look takes but one at every page, unless a process is stuck in the kernel."""

_LOOKED_FOR = ("it is being looked for", "")


class Observer:
    """Holds the VMs that were found running.

    ``unseen_processes`` may hold more of them; ``hidden_processes`` says why there may be more yet.
    ``changed`` is called whenever there is something to publish; ``host`` gives the host. ``held``
    gives the pids of processes that are shown otherwise, and ``adoptable`` gets the spec and the
    VMM (None: there is none) of each VM that is to be adopted. ``found`` is another object whenever
    other VMs run, or others are waited for.
    """

    def __init__(
        self,
        workers: Workers,
        counters: Counters,
        *,
        host: Callable[[], Awaitable[Host]],
        changed: Callable[[], None],
        held: Callable[[], frozenset[int]],
        adoptable: Callable[[VmSpec, FoundVm | None], None],
        new_finder: Callable[[], Finder] = Finder,
    ) -> None:
        self.unseen_processes: int | None = None
        self.hidden_processes = ""
        self.found: object = None
        self._workers = workers
        self._counters = counters
        self._host = host
        self._changed = changed
        self._held = held
        self._adoptable = adoptable
        self._new_finder = new_finder
        self._finder: Finder | None = None
        self._wanted = Wanted()
        self._vms: dict[str, Watched] = {}
        self._waiting: dict[str, tuple[str, str]] = {}
        self._merged: dict[str, tuple[VmStatus, VmStatus, VmStatus]] = {}
        self._wake = asyncio.Event()
        self._stop = Event()
        self._asked: set[Event] = set()
        self._failure = ""

    def want(self, wanted: Wanted) -> None:
        """Observe other VMs, or otherwise, from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    def runs(self, name: str) -> bool:
        """Whether a VM of that name was found running."""
        return name in self._vms

    def clock_was_set(self, seconds: float) -> None:
        """Put the times right that were told by a clock which was set by so much."""
        for vm in self._vms.values():
            if vm.seen is not None:
                vm.seen = shifted(vm.seen, seconds)

    def waiting(self, spec: VmSpec) -> tuple[str, str]:
        """Why there is no running VM for a spec, and what to do."""
        return self._waiting.get(spec.vm, _LOOKED_FOR)

    def beside(self, managed: Iterable[VmStatus]) -> tuple[VmStatus, ...]:
        """All VMs by name, the observed ones and those that have a spec; a spec's words count."""
        found = {name: vm.status for name, vm in self._vms.items()}
        merged = {name: status for name, status in found.items() if status is not None}
        for status in managed:
            seen = merged.get(status.vm)
            if seen is None or status.source is not Source.OBSERVE:
                merged[status.vm] = status
            else:
                merged[status.vm] = self._merge(status, seen)
        return tuple(merged[name] for name in sorted(merged))

    def _merge(self, status: VmStatus, seen: VmStatus) -> VmStatus:
        """What is seen of a VM, with its spec's words; the same object for the same two."""
        known = self._merged.get(status.vm)
        if known is None or known[0] is not status or known[1] is not seen:
            warnings = (*status.warnings, *seen.warnings)
            told = replace(seen, spec_error=status.spec_error, warnings=warnings)
            self._merged[status.vm] = known = status, seen, told
        return known[2]

    async def run(self) -> None:
        """Find and look, round by round, until cancelled."""
        while True:
            self._wake.clear()
            began = time.monotonic()
            try:
                await self._round(self._wanted)
                self._failure = ""
            except Exception as error:  # noqa: BLE001  it is told, and the next round may do better
                self._failed(error)
            await self._pause(began + self._wanted.interval_seconds - time.monotonic())

    def _failed(self, error: Exception) -> None:
        """Tell, with each VM that is looked for, that nothing was found out this time."""
        words, hint = f"looking for running VMs failed: {error}", getattr(error, "hint", None) or ""
        if self._failure != words:
            bug = None if isinstance(error, GmemdError) else error
            log.error("%s%s", words, f" (hint: {hint})" if hint else "", exc_info=bug)
        self._failure = words
        self._counters.add_audit_error("discovery")
        missed = (spec.vm for spec in self._wanted.specs if spec.vm not in self._vms)
        self._waiting |= dict.fromkeys(missed, (words, hint))
        self.found = object()
        self._changed()

    def stop(self) -> None:
        """End what runs in the threads, at its next chance."""
        for stop in (self._stop, *self._asked):
            stop.set()

    async def audit_now(self, name: str, asked: Asked) -> VmStatus | None:
        """Look at one VM now; None where none of that name runs (any more).

        Where nothing else is asked, as is done again and again; what a sample tells that was asked
        for is for the caller alone. Raises GmemdError where looking at it failed; what was known of
        it still is. Where the caller is cancelled the look ends.
        """
        vm = self._vms.get(name)
        if vm is None:
            return None
        host = await self._host()
        try:
            if asked.sampled:
                return await self._see_now(vm.found, host, asked)
            await self._look(vm, host, asked)
        except AuditStoppedError as error:
            raise daemon_stops() from error
        if vm.failure:
            raise GmemdError(vm.failure)
        return vm.status if self._vms.get(name) is vm else None

    async def _pause(self, seconds: float) -> None:
        """Wait, unless something else is wanted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()

    async def _round(self, wanted: Wanted) -> None:
        """Find all, then look at each: new ones first, the others spread over half the interval.

        Where the budget doesn't suffice for all, those that weren't looked at are the first in the
        next round.
        """
        until = time.monotonic() + wanted.interval_seconds
        budget = self._workers.scanning
        found = Found()
        if wanted.discovery or wanted.specs:
            with _noting("looking for running VMs"):
                found, cpu_seconds = await self._workers.observe(_timed, lambda: self._find(wanted))
            budget.whole.spend(cpu_seconds)
        self._take(found, wanted)
        self._changed()
        host = await self._host()
        spread = wanted.interval_seconds / 2 / max(1, len(self._vms))
        for vm in sorted(self._vms.values(), key=lambda vm: (not vm.news, vm.looked_at)):
            if not vm.news and time.monotonic() + budget.looks.wait_seconds() > until:
                return
            rest = NEWCOMERS_PAUSE_SECONDS if vm.news else LONGEST_PAUSE_SECONDS
            if not vm.news:
                await self._pause(budget.looks.wait_seconds())
            if self._vms.get(vm.found.name) is vm:
                await self._look(vm, host)
                await self._pause(min(rest, spread))
            if self._wake.is_set():
                return

    def _find(self, wanted: Wanted) -> Found:
        """In the thread: find all VMs, by the names that they have here."""
        return self._known_finder().find(wanted.specs, wanted.taken)

    def _known_finder(self) -> Finder:
        """The finder of the one thread, which remembers what it has seen."""
        if self._finder is None:
            self._finder = self._new_finder()
        return self._finder

    def _take(self, found: Found, wanted: Wanted) -> None:
        """Take on what was found: know the new VMs, and those that are gone no more."""
        self.found = object()
        before, self._vms = self._vms, {}
        held = self._held()
        for vm in found.vms:
            if vm.vmm.pid in held or (vm.spec is None and not wanted.discovery):
                continue
            if vm.spec is not None and vm.spec.source is Source.ADOPT:
                continue
            known = before.get(vm.name)
            if known is None or not same_process(known.found, vm):
                self._vms[vm.name] = new = Watched(vm)
                program = printable(vm.vmm.program)
                log.info("%s: found running, as pid %d of %s", new.name, vm.vmm.pid, program)
                continue
            known.news = known.news or known.found.spec != vm.spec
            known.found = vm
            self._vms[vm.name] = known
        for name, known in before.items():
            if name not in self._vms:
                self._merged.pop(name, None)
                self._log_gone(known)
        self._waiting = {spec.vm: why_waiting(spec, found) for spec in wanted.specs}
        self._offer(found, wanted, held)
        if wanted.discovery and found.unseen_processes and not self.unseen_processes:
            log.info(
                "processes that can't be looked into, and may hold VMs: %d (hint: %s)",
                found.unseen_processes,
                remedy(),
            )
        if wanted.discovery and found.hidden_processes and not self.hidden_processes:
            log.warning("there may be more VMs: %s", found.hidden_processes)
        self.unseen_processes = found.unseen_processes if wanted.discovery else None
        self.hidden_processes = found.hidden_processes if wanted.discovery else ""

    def _offer(self, found: Found, wanted: Wanted, held: frozenset[int]) -> None:
        """Tell of the VMMs that are to be adopted, and of those that are gone."""
        there = {vm.spec.vm: vm for vm in found.vms if vm.spec is not None}
        for spec in wanted.specs:
            vm = there.get(spec.vm)
            if spec.source is Source.ADOPT and (vm is None or vm.vmm.pid not in held):
                self._adoptable(spec, vm)

    async def _look(self, vm: Watched, host: Host, asked: Asked | None = None) -> None:
        """Look at one VM, and take on what was seen; raises AuditStoppedError if that was asked."""
        found = vm.found
        try:
            if asked is None:
                seen = await self._see_in_turn(vm, host)
            else:
                seen = await self._see_now(found, host, asked)
            vm.looked_at = time.monotonic()
        except AuditStoppedError:
            if asked is not None:
                raise
            return
        except Exception as error:
            if not vm.failure:
                traceback = None if isinstance(error, GmemdError) else error
                log.error(  # noqa: TRY400  a traceback is for what nobody expected
                    "%s: looking at it failed: %s", vm.name, error, exc_info=traceback
                )
            self._counters.add_audit_error("failed")
            vm.failure = str(error) or type(error).__name__
        else:
            if seen is None:
                self._drop(vm)
                return
            if self._vms.get(found.name) is not vm:
                return
            vm.failure = ""
            self._note(vm, seen)
        vm.news = vm.found.spec != found.spec
        self._changed()

    async def _see_in_turn(self, vm: Watched, host: Host) -> VmStatus | None:
        """How a VM is, seen for little; None where it isn't what it was found to be any more."""
        found, effort = vm.found, self._effort(Asked(), self._stop)
        with _noting(f"looking at {vm.name}"):
            seen, cpu_seconds = await self._workers.observe(
                _timed, lambda: see(self._known_finder(), found, host, effort)
            )
        if not vm.news:
            self._workers.scanning.looks.spend(cpu_seconds)
        return seen

    async def _see_now(self, found: FoundVm, host: Host, asked: Asked) -> VmStatus | None:
        """The same as was asked for, until nobody waits for it any more."""
        if self._stop.is_set():
            raise AuditStoppedError("the daemon stops")
        stop = Event()
        effort = self._effort(asked, stop)
        self._asked.add(stop)
        try:
            return await self._workers.look(lambda: see(self._new_finder(), found, host, effort))
        finally:
            stop.set()
            self._asked.discard(stop)

    def _effort(self, asked: Asked, stop: Event) -> Effort:
        return Effort(
            None if asked.every_page else asked.sample_pages or self._wanted.sample_pages,
            random.Random(),  # noqa: S311  a sample, no secret
            stop,
            where=asked.where,
            confidence=asked.confidence,
            margin=asked.margin,
            jobs=asked.jobs,
        )

    def _drop(self, vm: Watched) -> None:
        """Know a VM no more that ended while it was looked at."""
        if self._vms.get(vm.found.name) is vm:
            del self._vms[vm.found.name]
            self.found = object()
            self._log_gone(vm)
            if vm.found.spec is not None:
                self._waiting[vm.found.name] = why_waiting(vm.found.spec, Found())
            self._changed()

    def _note(self, vm: Watched, seen: VmStatus) -> None:
        """Take on what was seen of a VM; say so where it is news."""
        before = vm.seen
        if before is not None:
            since = before.since if before.state is seen.state else time.time()
            seen = replace(seen, since=since)
        vm.seen = seen = in_a_daemons_words(seen)
        if seen.audit is not None:
            self._counters.add_audit(seen.audit)
        if before is not None and before.state is seen.state:
            return
        if seen.drifting:
            log.warning("%s: drifts: %s", vm.name, seen.message)
        elif seen.message:
            log.info("%s: %s", vm.name, seen.message)
        elif before is not None:
            log.info("%s: %s", vm.name, seen.state)

    def _log_gone(self, vm: Watched) -> None:
        self._counters.forget(vm.found.name)
        log.info("%s: gone", vm.name)


def _timed(work: Callable[[], _R]) -> tuple[_R, float]:
    """In the thread: what the work gives, and the CPU seconds that it took."""
    began = time.thread_time()
    result = work()
    return result, time.thread_time() - began


@contextmanager
def _noting(what: str) -> Iterator[None]:
    """Say so if something takes very long: all that is behind it waits."""
    words = "%s takes more than %d s: a process may be stuck in the kernel"
    slow = asyncio.get_running_loop().call_later(
        SLOW_SECONDS, log.warning, words, what, SLOW_SECONDS
    )
    try:
        yield
    finally:
        slow.cancel()
