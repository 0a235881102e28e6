"""A scan that never ends: window by window, the oldest look first, for a share of one CPU.

What a window was when it was looked at last is kept until it is looked at again, with the time; the
windows of a region together are its audit, as old as the oldest of them. A region may come or go at
any time, and nothing is looked at twice before everything else was looked at again. But windows
that stay mapped, which cost next to nothing, have a turn of their own and don't wait for the rest.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from threading import Condition, Lock
from typing import TYPE_CHECKING

from gmemd.audit.scan import (
    RESIDENCY_CHANGED,
    WINDOW_BYTES,
    Tally,
    has_changed,
    huge_bytes,
    looker,
)
from gmemd.audit.windows import Seen, Windows
from gmemd.kernel.memfd import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from threading import Event

    from gmemd.audit.budget import CpuBudget
    from gmemd.audit.kept import KeptWindows
    from gmemd.audit.model import RegionAudit

IDLE_SECONDS = 1.0
"""How long to wait at the most where there is nothing to look at."""


MEMORY_SECONDS = 0.1
"""CPU seconds that one kind of windows, mapped or not, may be ahead of the other."""


@dataclass(frozen=True, slots=True)
class RollingRegion:
    """A region to look at again and again; the fields are `scan_region`'s."""

    fd: int
    guest_node: int
    index: int
    size_bytes: int
    page_size: int
    offset: int = 0
    readable: bool = True
    policy_kept: bool = True
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """A region as of its windows' last looks, the first of which was ``age_seconds`` ago.

    The audit's ``verified_timestamp`` is that of the first. ``lasts``: nobody has used it since.
    """

    audit: RegionAudit
    age_seconds: float
    lasts: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """What a rolling scan has done: CPU seconds, pages whose node it saw, what went wrong."""

    cpu_seconds: float
    pages_seen: int
    errors: dict[str, int]


class RollingScan:
    """Looks at regions' windows as a budget allows, in CPU time of the thread that steps.

    Nothing is looked at again before ``rest_seconds`` have passed. Windows are ``kept`` as long as
    there is room for them. ``completed`` is called with a region's key, by the thread that steps,
    when all of it was looked at for the first time. `step` is for one thread, the other methods
    are for any. A region's file must stay open until `remove` has returned.
    """

    def __init__(
        self,
        budget: CpuBudget,
        *,
        rest_seconds: float = 0.0,
        kept: KeptWindows | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.rest_seconds = rest_seconds
        self.windows_looked_at = 0
        self.completed: Callable[[Hashable], None] = lambda _: None
        self._budget = budget
        self._kept = kept
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._window_bytes = window_bytes
        self._order = count()
        self._queues: dict[bool, list[tuple[float, int, Windows]]] = {True: [], False: []}
        self._used = {True: 0.0, False: 0.0}
        self._regions: dict[Hashable, Windows] = {}
        self._looking_at: Windows | None = None
        self._lock = Condition()
        self._stepping = Lock()
        self._in_use: set[Hashable] = set()
        self._cpu_seconds = 0.0
        self._pages_seen = 0
        self._errors: Counter[str] = Counter()

    def add(self, key: Hashable, region: RollingRegion) -> None:
        """Look at a region from now on; one of the same key is replaced, unless it is the same.

        One that only is idle now, or isn't any more, is the same. None is idle of which it is known
        that it is in use.
        """
        with self._lock:
            region = replace(region, idle=region.idle and key not in self._in_use)
            known = self._regions.get(key)
            if known is not None and replace(known.region, idle=region.idle) == region:
                if region.idle and not known.region.idle:
                    known.idle_since = self._clock()
                known.region = region
                return
            rolling = Windows(key, region, max(self._window_bytes, region.page_size))
            self._regions[key] = rolling
            if rolling.missing:
                heappush(self._queues[False], (0.0, next(self._order), rolling))
            self._lock.notify_all()

    def note_use(self, key: Hashable) -> None:
        """Take note that somebody uses a region from now on: what changes in it is no error."""
        with self._lock:
            self._in_use.add(key)
            rolling = self._regions.get(key)
            if rolling is not None:
                rolling.region = replace(rolling.region, idle=False)

    def note_idle(self, key: Hashable) -> None:
        """Take note that nobody uses a region any more, whatever it was used for until now."""
        with self._lock:
            self._in_use.discard(key)

    def remove(self, key: Hashable) -> None:
        """Look at a region no more, and keep nothing of it mapped; a look under way ends first."""
        self.forget(key)
        self.note_idle(key)

    def forget(self, key: Hashable) -> None:
        """As `remove`, of a region that stays: what was seen of it is no longer so."""
        with self._lock:
            rolling = self._regions.pop(key, None)
            self._lock.wait_for(lambda: self._looking_at is None or self._looking_at.key != key)
        if rolling is not None and self._kept is not None:
            self._kept.forget(rolling.region.fd)

    def verified(self, key: Hashable) -> Verified | None:
        """Give a region as it was seen last; None until all of it was."""
        with self._lock:
            rolling = self._regions.get(key)
            if rolling is None or rolling.missing or not rolling.windows:
                return None
            region, totals = rolling.region, rolling.totals
            tally = Tally(
                region.page_size,
                by_node=+totals.by_node,
                unknown_bytes=totals.unknown_bytes,
                errors=+totals.errors,
                reasons=dict.fromkeys(+totals.reasons),
                policies=dict.fromkeys(rolling.policies()),
                exact=not totals.inexact,
            )
            oldest = rolling.oldest()
            looked_at = rolling.monotonic[oldest]
            lasts = region.idle and looked_at >= rolling.idle_since
        tally.pages_seen = tally.by_node.total() // region.page_size
        if region.page_size != PAGE_SIZE and tally.reasons:
            allocated = huge_bytes(region.fd, region.size_bytes)
            tally.unknown_bytes = max(0, allocated - tally.by_node.total())
        audit = tally.as_audit(region.guest_node, region.index, region.size_bytes)
        age_seconds = self._clock() - looked_at
        timestamp = time.time() - age_seconds  # by the clock as it is now: it may have been set
        return Verified(
            audit=replace(
                audit, verified_timestamp=timestamp if audit.in_sight else None, rolled=True
            ),
            age_seconds=age_seconds,
            lasts=lasts,
        )

    def scan_now(self, key: Hashable, stop: Event | None = None) -> None:
        """Look at what wasn't looked at yet of a region, budget or not; in the caller's thread.

        Ends early where it is removed meanwhile, or ``stop`` is set. The CPU time is the caller's.
        """
        while stop is None or not stop.is_set():
            with self._stepping:
                with self._lock:
                    rolling = self._regions.get(key)
                    if rolling is None or not rolling.missing:
                        return
                    self._looking_at = rolling
                self._look_at(rolling, mapped=False)

    def is_verified(self, key: Hashable) -> bool:
        """Whether all of a region was looked at."""
        with self._lock:
            rolling = self._regions.get(key)
            return rolling is not None and not rolling.missing

    def take_looked(self) -> Looked:
        """Give what was done since the last call."""
        with self._lock:
            looked = Looked(self._cpu_seconds, self._pages_seen, dict(self._errors))
            self._cpu_seconds, self._pages_seen = 0.0, 0
            self._errors.clear()
        return looked

    def step(self) -> float:
        """Look at one window if the budget allows; give the seconds until the next one may be.

        Raises what a look raises that isn't of the memory; that region is looked at no more then,
        until it is added again.
        """
        if wait := self._budget.wait_seconds():
            return wait
        cpu = self._cpu_clock()
        try:
            rest = self._look_at_next()
        finally:
            used = self._cpu_clock() - cpu
            self._budget.spend(used)
            with self._lock:
                self._cpu_seconds += used
        return rest or self._budget.wait_seconds()

    def run(self, stop: Event) -> None:
        """Step until ``stop`` is set; errors are `step`'s."""
        while not stop.wait(self.step()):
            pass

    def _look_at_next(self) -> float:
        """Look at the window whose turn it is; gives how long to rest where there is none."""
        with self._stepping:
            with self._lock:
                rest, mapped, rolling = self._choose(self._clock())
                self._looking_at = rolling
            if rolling is None:
                return rest
            self._look_at(rolling, mapped=mapped)
        return 0.0

    def _look_at(self, rolling: Windows, *, mapped: bool) -> None:
        """Look at a region's next window of one kind, and take on what it is."""
        now, looked, index = self._clock(), None, rolling.next(mapped=mapped)
        cpu = self._cpu_clock()
        try:
            if index is not None:
                looked = self._look(rolling, index)
        finally:
            if looked is None and self._kept is not None:
                self._kept.forget(rolling.region.fd)
            with self._lock:
                self._count_use(self._cpu_clock() - cpu, mapped=mapped)
                self._looking_at = None
                self._lock.notify_all()
                if looked is None and self._regions.get(rolling.key) is rolling:
                    del self._regions[rolling.key]
        if looked is not None and index is not None:
            seen, stays = looked
            self._take_on(rolling, index, seen, stays=stays, now=now, mapped=mapped)

    def _take_on(
        self, rolling: Windows, index: int, seen: Seen, *, stays: bool, now: float, mapped: bool
    ) -> None:
        """Note what a window was, of a region that is still there, and line it up again."""
        with self._lock:
            if self._regions.get(rolling.key) is not rolling:
                return
            missing = rolling.missing
            rolling.note(index, seen, at=now, mapped=stays)
            self._queue(rolling, mapped=mapped)
            if stays is not mapped:
                self._queue(rolling, mapped=stays)
            self.windows_looked_at += 1
        if missing and not rolling.missing:
            self.completed(rolling.key)

    def _queue(self, rolling: Windows, *, mapped: bool) -> None:
        """Line a region up by the age of its oldest window of that kind, if there is one."""
        index = rolling.next(mapped=mapped)
        if index is not None:
            at = rolling.monotonic[index]
            heappush(self._queues[mapped], (at, next(self._order), rolling))

    def _choose(self, now: float) -> tuple[float, bool, Windows | None]:
        """Choose what is due; if nothing is, say for how long.

        Of both kinds the one that has used less: what stays mapped is cheap, and so comes first.
        """
        due = {mapped: self._due(mapped=mapped) for mapped in self._queues}
        ready = [mapped for mapped, at in due.items() if at <= now]
        if not ready:
            return min(IDLE_SECONDS, min(due.values()) - now), False, None
        mapped = min(ready, key=lambda mapped: self._used[mapped])
        return 0.0, mapped, heappop(self._queues[mapped])[2]

    def _due(self, *, mapped: bool) -> float:
        """When the first window of a kind is due; never, where there is none."""
        queue = self._queues[mapped]
        while queue and not self._is_in_line(queue[0], mapped=mapped):
            heappop(queue)
        if not queue:
            return math.inf
        looked_at = queue[0][0]
        return looked_at + self.rest_seconds if looked_at else 0.0

    def _count_use(self, cpu_seconds: float, *, mapped: bool) -> None:
        """Count what a kind of windows has used; what it didn't need long ago is forgotten."""
        other = self._used[not mapped]
        self._used[mapped] = max(self._used[mapped], other - MEMORY_SECONDS) + cpu_seconds

    def _is_in_line(self, entry: tuple[float, int, Windows], *, mapped: bool) -> bool:
        """Whether a region is still there, and its next window that of the entry."""
        looked_at, _, rolling = entry
        if self._regions.get(rolling.key) is not rolling:
            return False
        index = rolling.next(mapped=mapped)
        return index is not None and rolling.monotonic[index] == looked_at

    def _look(self, rolling: Windows, index: int) -> tuple[Seen, bool]:
        """Look at a window; gives what it was, and whether it stays mapped."""
        region = rolling.region
        start = index * rolling.window_bytes
        at = region.offset + start
        length = min(rolling.window_bytes, region.size_bytes - start)
        tally = Tally(region.page_size)
        how = looker(
            region.fd,
            region.page_size,
            readable=region.readable,
            policy_kept=region.policy_kept,
            idle=region.idle,
            kept=self._kept,
        )
        read = how.look(at, length, tally)
        if region.idle and has_changed(region.fd, read) and rolling.region.idle:
            tally.errors[RESIDENCY_CHANGED] += 1
        seen = Seen(
            by_node=tuple(sorted(tally.by_node.items())),
            unknown_bytes=tally.unknown_bytes,
            errors=tuple(sorted((+tally.errors).items())),
            reasons=tuple(tally.reasons),
            policies=tuple(tally.policies),
            exact=tally.exact,
        )
        with self._lock:
            self._pages_seen += tally.pages_seen
            self._errors.update(tally.errors)
        stays = self._kept is not None and self._kept.has(region.fd, at, length)
        return seen, stays
