"""Figures as people read them: shares, spans of time, lists of nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_ONE_DECIMAL_BELOW = 10


def percent(ratio: float | None) -> str:
    """A ratio as percent: never 0% for something nor 100% for less than all; ``?`` for None."""
    if ratio is None:
        return "?"
    if ratio <= 0:
        return "0%"
    if ratio >= 1:
        return "100%"
    points = ratio * 100
    if points < 0.1:  # noqa: PLR2004  what one decimal can show
        return "<0.1%"
    if points > 99.9:  # noqa: PLR2004  as above
        return ">99.9%"
    if points < _ONE_DECIMAL_BELOW or points > 100 - _ONE_DECIMAL_BELOW:
        return f"{points:.1f}".removesuffix(".0") + "%"
    return f"{points:.0f}%"


def span(seconds: float) -> str:
    """A span of time in its two largest units: ``3 min 5 s``, ``2 d 4 h``."""
    left = max(0, round(seconds))
    for position, (length, unit) in enumerate(_UNITS):
        if left >= length:
            count, rest = divmod(left, length)
            if position + 1 == len(_UNITS):
                return f"{count} {unit}"
            next_length, next_unit = _UNITS[position + 1]
            smaller = rest // next_length
            return f"{count} {unit} {smaller} {next_unit}" if smaller else f"{count} {unit}"
    return "0 s"


def ago(timestamp: float) -> str:
    """How long ago a time, in seconds since the epoch, was."""
    return f"{span(time.time() - timestamp)} ago"


def nodes(host_nodes: Iterable[int]) -> str:
    """Host nodes as a nodeset, ``-`` for none."""
    return format_nodeset(frozenset(host_nodes)) or "-"
