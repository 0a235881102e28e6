"""A scan that never ends: window by window, the oldest look first, for a share of one CPU.

What a window was when it was looked at last is kept until it is looked at again, with the time; the
windows of a region together are its audit, as old as the oldest of them. A region may come or go at
any time, and nothing is looked at twice before everything else was looked at again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from typing import TYPE_CHECKING

from gmemd.audit.scan import (
    RESIDENCY_CHANGED,
    WINDOW_BYTES,
    Tally,
    has_changed,
    huge_bytes,
    looker,
)
from gmemd.kernel.memfd import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from threading import Event

    from gmemd.audit.kept import KeptWindows
    from gmemd.audit.model import PolicyRead, RegionAudit

MOST_WINDOWS = 1 << 15
"""Of one region, remembered: of one above 1 TiB they are larger than `WINDOW_BYTES`."""

CREDIT_SECONDS = 10.0
"""What wasn't used is made up for as long as this, so that a busy host costs no accuracy."""

IDLE_SECONDS = 1.0
"""How long to wait where there is nothing to look at."""


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
    """A region as of its windows' last looks: ``oldest_timestamp`` is the first of these."""

    audit: RegionAudit
    oldest_timestamp: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a window was; pairs instead of dictionaries, as there are many."""

    timestamp: float
    by_node: tuple[tuple[int, int], ...]
    unknown_bytes: int
    errors: tuple[tuple[str, int], ...]
    reasons: tuple[str, ...]
    policies: tuple[PolicyRead, ...]
    pages_seen: int
    exact: bool


@dataclass(slots=True)
class _Rolling:
    region: RollingRegion
    window_bytes: int
    windows: list[_Seen | None]
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.windows)


class RollingScan:
    """Looks at regions' windows for ``share`` of one CPU, in CPU time of the thread that steps.

    `step` is for one thread, the other methods are for any. Windows are ``kept`` as long as its
    budget lasts. A region's file must stay open until `remove` has returned.
    """

    def __init__(
        self,
        share: float,
        *,
        kept: KeptWindows | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.share = share
        self.cpu_seconds = 0.0
        self.windows_looked_at = 0
        self._kept = kept
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._window_bytes = window_bytes
        self._next = clock()
        self._order = count()
        self._queue: list[tuple[float, int, Hashable, int, _Rolling]] = []
        self._regions: dict[Hashable, _Rolling] = {}
        self._looking_at: _Rolling | None = None
        self._lock = Condition()

    def add(self, key: Hashable, region: RollingRegion) -> None:
        """Look at a region from now on; one of the same key is replaced."""
        window_bytes = max(self._window_bytes, region.page_size)
        while region.size_bytes > window_bytes * MOST_WINDOWS:
            window_bytes *= 2
        n_windows = -(-region.size_bytes // window_bytes)
        rolling = _Rolling(region, window_bytes, [None] * n_windows)
        with self._lock:
            self._regions[key] = rolling
            for index in range(n_windows):
                heappush(self._queue, (0.0, next(self._order), key, index, rolling))

    def remove(self, key: Hashable) -> None:
        """Look at a region no more, and keep nothing of it mapped; a look under way ends first."""
        with self._lock:
            rolling = self._regions.pop(key, None)
            self._lock.wait_for(lambda: rolling is None or self._looking_at is not rolling)
        if rolling is not None and self._kept is not None:
            self._kept.forget(rolling.region.fd)

    def verified(self, key: Hashable) -> Verified | None:
        """Give a region as it was seen last; None until all of it was."""
        with self._lock:
            rolling = self._regions.get(key)
            if rolling is None or rolling.missing or not rolling.windows:
                return None
            seen = [window for window in rolling.windows if window is not None]
        region = rolling.region
        tally = Tally(region.page_size)
        for window in seen:
            tally.by_node.update(dict(window.by_node))
            tally.unknown_bytes += window.unknown_bytes
            tally.errors.update(dict(window.errors))
            tally.reasons.update(dict.fromkeys(window.reasons))
            tally.policies.update(dict.fromkeys(window.policies))
            tally.pages_seen += window.pages_seen
            tally.exact = tally.exact and window.exact
        if region.page_size != PAGE_SIZE and tally.reasons:
            allocated = huge_bytes(region.fd, region.size_bytes)
            tally.unknown_bytes = max(0, allocated - tally.by_node.total())
        return Verified(
            audit=tally.as_audit(region.guest_node, region.index, region.size_bytes),
            oldest_timestamp=min(window.timestamp for window in seen),
        )

    def step(self) -> float:
        """Look at one window if the budget allows; give the seconds until the next one may be.

        Raises what a look raises that isn't of the memory, and leaves that window out from then on.
        """
        now = self._clock()
        if now < self._next:
            return self._next - now
        self._next = max(self._next, now - CREDIT_SECONDS)
        cpu = self._cpu_clock()
        try:
            looked = self._look_at_oldest(now)
        finally:
            used = self._cpu_clock() - cpu
            self.cpu_seconds += used
            self._next += used / self.share
        if not looked:
            return IDLE_SECONDS
        self.windows_looked_at += 1
        return max(0.0, self._next - self._clock())

    def run(self, stop: Event) -> None:
        """Step until ``stop`` is set; errors are `step`'s."""
        while not stop.wait(self.step()):
            pass

    def _look_at_oldest(self, now: float) -> bool:
        with self._lock:
            chosen = self._oldest()
            self._looking_at = chosen[2] if chosen else None
        if chosen is None:
            return False
        key, index, rolling = chosen
        seen = None
        try:
            seen = self._look(rolling, index)
        finally:
            with self._lock:
                self._looking_at = None
                self._lock.notify_all()
                if self._regions.get(key) is rolling and seen is not None:
                    rolling.missing -= rolling.windows[index] is None
                    rolling.windows[index] = seen
                    heappush(self._queue, (now, next(self._order), key, index, rolling))
        return True

    def _oldest(self) -> tuple[Hashable, int, _Rolling] | None:
        while self._queue:
            _, _, key, index, rolling = heappop(self._queue)
            if self._regions.get(key) is rolling:
                return key, index, rolling
        return None

    def _look(self, rolling: _Rolling, index: int) -> _Seen:
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
        if region.idle and has_changed(region.fd, read):
            tally.errors[RESIDENCY_CHANGED] += 1
        return _Seen(
            timestamp=time.time(),
            by_node=tuple(tally.by_node.items()),
            unknown_bytes=tally.unknown_bytes,
            errors=tuple((+tally.errors).items()),
            reasons=tuple(tally.reasons),
            policies=tuple(tally.policies),
            pages_seen=tally.pages_seen,
            exact=tally.exact,
        )
