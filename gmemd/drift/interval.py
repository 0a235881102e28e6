"""What a sample leaves possible: intervals of shares, of pages, and of a ratio over regions. Pure.

Sources: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927);
L. D. Brown, T. T. Cai, A. DasGupta, Interval estimation for a binomial proportion, Statistical
Science 16 (2001), which also gives the bounds of counts near none and near all, where Wilson's
own interval holds less often than it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gmemd.audit.model import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FEW_HITS = 4
"""Wilson's lower bound for one hit excludes rates at which one hit isn't rare. For fewer hits than
these the bound is the Poisson rate at which as many or more come as seldom as the truth may be
missed: 5 % of the time for an interval of 95 %."""

_HALVINGS = 100  # more than the digits of a float


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``lower`` to ``upper``, both possible."""

    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of something: how large it may be, and the share of it that is of interest."""

    size: Interval
    share: Interval


def wilson(hits: float, drawn: float, confidence: float = CONFIDENCE) -> Interval:
    """Give the interval of a share of which ``hits`` of ``drawn`` were found; 0 to 1 of none.

    ``confidence`` is how often it is to hold the truth. A sample without repetition is a little
    closer to the truth than this says. Counts that aren't whole are those of a sample that tells
    less than its pages do (`drift.design`).
    """
    if not drawn:
        return Interval(0.0, 1.0)
    lower = _lower(hits, drawn, confidence)
    return Interval(lower, 1.0 - _lower(drawn - hits, drawn, confidence))


def pages_within(share: Interval, hits: int, drawn: int, population: int) -> tuple[int, int]:
    """Give how many of ``population`` pages may be such as ``hits`` of those ``drawn`` were.

    Never fewer than were seen, and never those that were seen to be otherwise.
    """
    return (
        max(hits, math.floor(share.lower * population)),
        min(population - (drawn - hits), math.ceil(share.upper * population)),
    )


def pages_between(
    hits: int, drawn: int, population: int, confidence: float = CONFIDENCE
) -> tuple[int, int]:
    """As `pages_within`, of pages that were drawn each by itself."""
    return pages_within(wilson(hits, drawn, confidence), hits, drawn, population)


@cache
def quantile(confidence: float) -> float:
    """Give where the normal distribution has so much between it and its negative."""
    return _where_it_rises_to(confidence, lambda z: math.erf(z / math.sqrt(2)))


def combined_share(parts: Sequence[Part]) -> Interval | None:
    """Give the share over all parts, whatever the sizes and shares are within their intervals.

    None where there is nothing to have a share of.
    """
    least = _least_share([(part.share.lower, part.size) for part in parts])
    most = _least_share([(1.0 - part.share.upper, part.size) for part in parts])
    return None if least is None or most is None else Interval(least, 1.0 - most)


def _lower(hits: float, drawn: float, confidence: float) -> float:
    """Wilson's lower bound, and the Poisson one where hits are few."""
    if hits < 1:
        return 0.0
    z = quantile(confidence)
    share, square = min(hits / drawn, 1.0), z * z
    middle = share + square / (2 * drawn)
    half = z * math.sqrt(share * (1 - share) / drawn + square / (4 * drawn * drawn))
    bound = (middle - half) / (1 + square / drawn)
    if hits < _FEW_HITS:
        bound = min(bound, _rare_rate(int(hits), confidence) / drawn)
    return max(0.0, bound)


@cache
def _rare_rate(hits: int, confidence: float) -> float:
    """Give the Poisson rate at which as many or more come 1 - ``confidence`` of the time."""

    def as_many_or_more(rate: float) -> float:
        fewer = sum(rate**n / math.factorial(n) for n in range(hits))
        return 1.0 - fewer * math.exp(-rate)

    return _where_it_rises_to(1.0 - confidence, as_many_or_more)


def _where_it_rises_to(value: float, function: Callable[[float], float]) -> float:
    """Give where a function that rises reaches a value, between 0 and 16."""
    low, high = 0.0, 16.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high


def _least_share(parts: Sequence[tuple[float, Interval]]) -> float | None:
    """Give the least weighted mean: low shares as large as can be, high ones as small."""
    ordered = sorted(parts, key=lambda part: part[0])
    best: float | None = None
    for cut in range(len(ordered) + 1):
        sizes = [
            part.upper if index < cut else part.lower for index, (_, part) in enumerate(ordered)
        ]
        total = sum(sizes)
        if total:
            found = (
                sum(share * size for (share, _), size in zip(ordered, sizes, strict=True)) / total
            )
            best = found if best is None else min(best, found)
    return best
