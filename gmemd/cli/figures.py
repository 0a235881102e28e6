"""Figures as people read them: shares, spans of time, lists of nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_BINARY = (1 << 50, 1 << 40, 1 << 30, 1 << 20, 1 << 10)
_LEAST_SHOWN = 0.1
_ONE_DECIMAL_WITHIN = 10


def percent(ratio: float | None) -> str:
    """A ratio as percent: never 0% for something nor 100% for less than all; ``?`` for None."""
    if ratio is None:
        return "?"
    points = max(0.0, min(100.0, ratio * 100))
    if 0 < points < _LEAST_SHOWN:
        return f"<{_LEAST_SHOWN}%"
    if 100 - _LEAST_SHOWN < points < 100:  # noqa: PLR2004  percent
        return f">{100 - _LEAST_SHOWN}%"
    near_an_end = min(points, 100 - points) < _ONE_DECIMAL_WITHIN
    return f"{points:.{1 if near_an_end else 0}f}".removesuffix(".0") + "%"


def estimate(size_bytes: int) -> str:
    """A size that a sample tells, with no more digits than it can: ``~1.9GiB``."""
    unit = next((unit for unit in _BINARY if size_bytes >= unit), 1)
    digits = 2 if size_bytes < 10 * unit else 1 if size_bytes < 100 * unit else 0
    return f"~{format_size(round(round(size_bytes / unit, digits) * unit))}"


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
