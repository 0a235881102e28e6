"""What a sample leaves possible: intervals of shares, of pages, and of a ratio over regions. Pure.

Sources: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927);
L. D. Brown, T. T. Cai, A. DasGupta, Interval estimation for a binomial proportion, Statistical
Science 16 (2001), which also gives the bounds of counts near none and near all, where Wilson's
own interval holds less often than it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile: between it and its negative lie 95 %."""
Z_9999 = 3.890591886413094
"""The 99.995 % quantile, for what is tested again and again where it is usually so."""

# Wilson's lower bound for one hit excludes rates at which one hit isn't rare. For so few hits the
# bound is the Poisson rate at which as many or more come 5 % of the time.
_RARE_HITS = {1: 0.05129329438755, 2: 0.35536151069866, 3: 0.81769144716395}


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


def wilson(hits: int, drawn: int, z: float = Z_95) -> Interval:
    """Give the interval of a share of which ``hits`` of ``drawn`` were found; 0 to 1 of none.

    ``z`` is the quantile that it reaches to. A sample without repetition is a little closer to the
    truth than this says.
    """
    if not drawn:
        return Interval(0.0, 1.0)
    return Interval(_lower(hits, drawn, z), 1.0 - _lower(drawn - hits, drawn, z))


def pages_between(hits: int, drawn: int, population: int) -> tuple[int, int]:
    """Give how many of ``population`` pages may be such as ``hits`` of those ``drawn`` were.

    Never fewer than were seen, and never those that were seen to be otherwise.
    """
    share = wilson(hits, drawn)
    return (
        max(hits, math.floor(share.lower * population)),
        min(population - (drawn - hits), math.ceil(share.upper * population)),
    )


def combined_share(parts: Sequence[Part]) -> Interval | None:
    """Give the share over all parts, whatever the sizes and shares are within their intervals.

    None where there is nothing to have a share of.
    """
    least = _least_share([(part.share.lower, part.size) for part in parts])
    most = _least_share([(1.0 - part.share.upper, part.size) for part in parts])
    return None if least is None or most is None else Interval(least, 1.0 - most)


def _lower(hits: int, drawn: int, z: float) -> float:
    """Wilson's lower bound, and the Poisson one where hits are few."""
    if hits == 0:
        return 0.0
    share, square = hits / drawn, z * z
    middle = share + square / (2 * drawn)
    half = z * math.sqrt(share * (1 - share) / drawn + square / (4 * drawn * drawn))
    bound = (middle - half) / (1 + square / drawn)
    return max(0.0, min(bound, _RARE_HITS.get(hits, math.inf) / drawn))


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
