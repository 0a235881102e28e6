"""A share of one CPU that several spend from, each in CPU time of its own thread.

Time passes and pays back what was spent: whoever has spent more than the share waits until it is
paid. What wasn't used is made up for, for a while.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CREDIT_SECONDS = 10.0
"""What wasn't used is made up for as long as this, so that a busy host costs no accuracy."""


class CpuBudget:
    """``share`` of one CPU: 0.01 is a hundredth. All methods are for any thread.

    What is spent of one that is ``part_of`` another is spent of that too. The part is there
    whatever others have spent of the whole; with ``or_spare`` its spenders may have what nobody
    else spends of the whole besides.
    """

    def __init__(
        self,
        share: float,
        *,
        part_of: CpuBudget | None = None,
        or_spare: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self._part_of = part_of
        self._or_spare = or_spare
        self._clock = clock
        self._lock = Lock()
        self._paid_at = clock()
        self._spent_seconds = 0.0

    @property
    def spent_seconds(self) -> float:
        """CPU seconds spent so far."""
        return self._spent_seconds

    def resize(self, share: float) -> None:
        """Have another share from now on; what is to be paid yet is paid at that rate."""
        with self._lock:
            now = self._clock()
            self._paid_at = now + (self._paid_at - now) * self.share / share
            self.share = share

    def spend(self, cpu_seconds: float) -> None:
        """Count what was used."""
        with self._lock:
            self._paid_at = max(self._paid_at, self._clock() - CREDIT_SECONDS)
            self._paid_at += cpu_seconds / self.share
            self._spent_seconds += cpu_seconds
        if self._part_of is not None:
            self._part_of.spend(cpu_seconds)

    def wait_seconds(self) -> float:
        """How long it takes until what was spent is paid; 0 where it is."""
        with self._lock:
            own = max(0.0, self._paid_at - self._clock())
        if self._part_of is not None and self._or_spare:
            return min(own, self._part_of.wait_seconds())
        return own
