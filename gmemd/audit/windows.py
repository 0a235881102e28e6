"""What the windows of a region were when they were looked at, and whose turn it is next. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gmemd.audit.model import PolicyRead
    from gmemd.audit.rolling import RollingRegion


@dataclass(frozen=True, slots=True)
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
    """A region's windows: those that stay mapped, and the others, each kind by its age.

    ``missing`` weren't looked at yet; what the others were adds up to ``totals``. When each was
    looked at is on the ``monotonic`` clock (0.0: never). Nobody has used an idle region since
    ``idle_since``.
    """

    key: Hashable
    region: RollingRegion
    window_bytes: int
    idle_since: float = 0.0
    windows: list[Seen | None] = field(init=False)
    missing: int = field(init=False)
    monotonic: array[float] = field(init=False)
    totals: Totals = field(default_factory=Totals)
    _is_mapped: bytearray = field(init=False)
    _behind: array[int] = field(init=False)  # of each window in its line; -1: none
    _first: dict[bool, int] = field(init=False)
    _last: dict[bool, int] = field(init=False)

    def __post_init__(self) -> None:
        self.missing = n_windows = -(-self.region.size_bytes // self.window_bytes)
        self.windows = [None] * n_windows
        self.monotonic = array("d", bytes(8 * n_windows))
        self._is_mapped = bytearray(n_windows)
        self._behind = array("q", range(1, n_windows + 1))
        self._first, self._last = {False: -1, True: -1}, {False: -1, True: -1}
        if n_windows:
            self._behind[-1] = -1
            self._first[False], self._last[False] = 0, n_windows - 1

    def next(self, *, mapped: bool) -> int | None:
        """The oldest window of one kind; None if there is none."""
        first = self._first[mapped]
        return first if first >= 0 else None

    def policies(self) -> list[PolicyRead]:
        """All policies that were found, that of the first window first."""
        first = self.windows[0].policies if self.windows and self.windows[0] is not None else ()
        return list(dict.fromkeys((*first, *(+self.totals.policies))))

    def oldest(self) -> int:
        """The oldest window of all."""
        return min(
            (index for index in self._first.values() if index >= 0),
            key=lambda index: self.monotonic[index],
        )

    def note(self, index: int, seen: Seen, *, at: float, mapped: bool) -> None:
        """Take on what the oldest window of its kind was seen to be: it is the newest now."""
        before = self.windows[index]
        seen = self._alike(index, seen)
        if before is not seen:
            if before is not None:
                self.totals.add(before, -1)
            self.totals.add(seen)
        self.missing -= before is None
        self.windows[index] = seen
        self.monotonic[index] = at
        self._line_up(index, mapped=mapped)

    def _alike(self, index: int, seen: Seen) -> Seen:
        """The same, as the window before or the one beside has it: most are alike."""
        for other in (self.windows[index], self.windows[index - 1]):
            if other == seen:
                return other
            if other is not None and other.policies == seen.policies:
                seen = replace(seen, policies=other.policies)
        return seen

    def _line_up(self, index: int, *, mapped: bool) -> None:
        """Have the first of its line be the last of the line of its kind."""
        was = bool(self._is_mapped[index])
        self._first[was] = self._behind[index]
        if self._first[was] < 0:
            self._last[was] = -1
        self._is_mapped[index], self._behind[index] = mapped, -1
        last = self._last[mapped]
        if last >= 0:
            self._behind[last] = index
        else:
            self._first[mapped] = index
        self._last[mapped] = index
