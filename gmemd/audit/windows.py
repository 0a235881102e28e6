"""What the windows of a region were when they were looked at, and whose turn it is next. Pure."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gmemd.audit.model import PolicyRead
    from gmemd.audit.rolling import RollingRegion


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Seen:
    """What a window was. Most are alike, and share one: tuples, so that they can be told."""

    by_node: tuple[tuple[int, int], ...]
    unknown_bytes: int
    errors: tuple[tuple[str, int], ...]
    reasons: tuple[str, ...]
    policies: tuple[PolicyRead, ...]
    exact: bool


@dataclass(slots=True)
class Totals:
    """What the windows of a region add up to; of words and policies, how many have them."""

    by_node: Counter[int] = field(default_factory=Counter)
    unknown_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    policies: Counter[PolicyRead] = field(default_factory=Counter)
    inexact: int = 0

    def add(self, seen: Seen, sign: int = 1) -> None:
        """Count a window; with -1 as sign, no more."""
        for node, held in seen.by_node:
            self.by_node[node] += sign * held
        self.unknown_bytes += sign * seen.unknown_bytes
        for reason, times in seen.errors:
            self.errors[reason] += sign * times
        for reason in seen.reasons:
            self.reasons[reason] += sign
        for policy in seen.policies:
            self.policies[policy] += sign
        self.inexact += sign * (not seen.exact)


@dataclass(slots=True)
class Windows:
    """A region's windows: those that stay mapped, by their age, and the others, in turn.

    ``missing`` weren't looked at yet; what the others were adds up to ``totals``. When each was
    looked at is there as seconds since the epoch, and on the monotonic clock (0.0: never).
    """

    key: Hashable
    region: RollingRegion
    window_bytes: int
    windows: list[Seen | None] = field(init=False)
    missing: int = field(init=False)
    timestamps: array[float] = field(init=False)
    monotonic: array[float] = field(init=False)
    totals: Totals = field(default_factory=Totals)
    _in_turn: int = 0
    _mapped: deque[int] = field(default_factory=deque)
    _is_mapped: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.missing = n_windows = -(-self.region.size_bytes // self.window_bytes)
        self.windows = [None] * n_windows
        self.timestamps = array("d", bytes(8 * n_windows))
        self.monotonic = array("d", bytes(8 * n_windows))
        self._is_mapped = bytearray(n_windows)

    def _next_in_turn(self) -> int | None:
        if len(self._mapped) == len(self.windows):
            return None
        while self._is_mapped[self._in_turn]:
            self._in_turn = (self._in_turn + 1) % len(self.windows)
        return self._in_turn

    def next(self, *, mapped: bool) -> int | None:
        """The oldest window of one kind; None if there is none."""
        if not mapped:
            return self._next_in_turn()
        return self._mapped[0] if self._mapped else None

    def policies(self) -> list[PolicyRead]:
        """All policies that were found, that of the first window first."""
        first = self.windows[0].policies if self.windows and self.windows[0] is not None else ()
        return list(dict.fromkeys((*first, *(+self.totals.policies))))

    def oldest(self) -> int:
        """The oldest window of all."""
        oldest = [self.next(mapped=mapped) for mapped in (True, False)]
        return min(
            (index for index in oldest if index is not None),
            key=lambda index: self.monotonic[index],
        )

    def note(self, index: int, seen: Seen, *, at: float, mapped: bool) -> None:
        """Take on what a window was seen to be."""
        before = self.windows[index]
        if before is not seen:
            if before is not None:
                self.totals.add(before, -1)
            self.totals.add(seen)
        self.missing -= before is None
        self.windows[index] = seen
        self.timestamps[index] = time.time()
        self.monotonic[index] = at
        if self._is_mapped[index]:
            self._mapped.popleft()
        else:
            self._in_turn = (index + 1) % len(self.windows)
        self._is_mapped[index] = mapped
        if mapped:
            self._mapped.append(index)
