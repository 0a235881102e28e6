"""A share of one CPU that several spend from, each in CPU time of its own thread.

Time passes and pays back what was spent: whoever has spent more than the share waits until it is
paid. What wasn't used is made up for, for a while; what was spent beyond measure is forgiven after
a while, too, so that a burst at the start doesn't silence everything for an hour.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CREDIT_SECONDS = 10.0
"""What wasn't used is made up for as long as this, so that a busy host costs no accuracy."""

DEBT_SECONDS = 60.0
"""Nobody waits longer than this for what was spent before."""


class CpuBudget:
    """``share`` of one CPU: 0.01 is a hundredth. All methods are for any thread.

    What is spent of one that is ``part_of`` another is spent of that too, but only the own share
    has its spenders wait.
    """

    def __init__(
        self,
        share: float,
        *,
        part_of: CpuBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self._part_of = part_of
        self._clock = clock
        self._lock = Lock()
        self._paid_at = clock()
        self._spent_seconds = 0.0

    @property
    def spent_seconds(self) -> float:
        """CPU seconds spent so far."""
        return self._spent_seconds

    def spend(self, cpu_seconds: float) -> None:
        """Count what was used."""
        with self._lock:
            now = self._clock()
            paid_at = max(self._paid_at, now - CREDIT_SECONDS) + cpu_seconds / self.share
            self._paid_at = min(paid_at, now + max(DEBT_SECONDS, cpu_seconds / self.share))
            self._spent_seconds += cpu_seconds
        if self._part_of is not None:
            self._part_of.spend(cpu_seconds)

    def wait_seconds(self) -> float:
        """How long it takes until what was spent is paid; 0 where it is."""
        with self._lock:
            return max(0.0, self._paid_at - self._clock())
