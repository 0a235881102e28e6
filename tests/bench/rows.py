"""What is measured: one kind of row for all, the table that they make, and how cost grows."""

from __future__ import annotations

import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MARGIN_MIB = 1024
"""What a measurement leaves of the memory that is available."""

COST_UNITS = frozenset({"ms", "CPU ms"})


@dataclass(frozen=True)
class Row:
    """One thing that gmemd does, beside another's way to do it; figures are medians.

    ``ratio`` is gmemd's figure as a multiple of the other's, the median of pairs that were measured
    in turn. ``target`` is what it has to be; ``mebibytes`` None where no size matters.
    """

    section: str
    what: str
    mebibytes: int | None
    ours: float
    unit: str
    theirs: float | None = None
    ratio: float | None = None
    beside: str = ""
    target: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """A part of a measurement that is worth to be named while it runs."""

    section: str
    label: str
    run: Callable[[], Sequence[Row]]


@dataclass(frozen=True)
class Growth:
    """How a way's cost grows with size: ``exponent`` 1 is in proportion, 0 not at all."""

    section: str
    way: str
    unit: str
    costs: dict[int, float]
    exponent: float

    @property
    def factor(self) -> float:
        """How many times the cost of the smallest size that of the largest is."""
        return self.costs[max(self.costs)] / self.costs[min(self.costs)]

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"factor": self.factor}


def compared(
    pairs: Sequence[tuple[float, float]],
    *,
    section: str,
    what: str,
    mebibytes: int | None,
    beside: str,
    unit: str = "ms",
    target: str = "",
) -> Row:
    """A row of seconds, gmemd's and the other's in turn."""
    ours, theirs = zip(*pairs, strict=True)
    return Row(
        section=section,
        what=what,
        mebibytes=mebibytes,
        ours=statistics.median(ours) * 1000,
        unit=unit,
        theirs=statistics.median(theirs) * 1000,
        ratio=statistics.median(mine / other for mine, other in pairs),
        beside=beside,
        target=target,
    )


def repeats_for(mebibytes: int) -> int:
    """How often a size is measured: large ones take long, and vary less."""
    return max(3, min(7, 20 * 1024 // max(1, mebibytes)))


def exponent(costs: dict[int, float]) -> float | None:
    """The power of the size that costs grow with; None of fewer than two sizes."""
    if len(costs) < 2:
        return None
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def growths(rows: Iterable[Row]) -> list[Growth]:
    """Cost against size, of every way that was measured at more sizes than one."""
    costs: dict[tuple[Row, bool], dict[int, float]] = {}
    for row in rows:
        if row.mebibytes is None or row.unit not in COST_UNITS:
            continue
        way = Row(row.section, row.what, None, 0, row.unit)
        costs.setdefault((way, False), {})[row.mebibytes] = row.ours
        if row.theirs is not None:
            other = replace(way, beside=row.beside)
            costs.setdefault((other, True), {})[row.mebibytes] = row.theirs
    found = []
    for (way, others), of in costs.items():
        slope = exponent(of)
        if slope is not None:
            name = f"  {way.beside}" if others else way.what
            found.append(Growth(way.section, name, way.unit, of, slope))
    return found


def machine() -> str:
    """What this was measured on: CPUs and their model, memory, kernel."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    total = meminfo_mib("MemTotal") / 1024
    cpus = len(os.sched_getaffinity(0))
    return f"{cpus} CPUs ({model}), {total:.0f} GiB, Linux {platform.release()}"


def meminfo_mib(name: str) -> int:
    """A line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) >> 10
    raise KeyError(name)


def fitting(sizes: Iterable[int]) -> tuple[list[int], list[int]]:
    """The sizes (MiB) that the memory which is available can hold, and those that it can't."""
    room = meminfo_mib("MemAvailable") - MARGIN_MIB
    wanted = sorted(set(sizes))
    return [size for size in wanted if size <= room], [size for size in wanted if size > room]


def table(rows: Sequence[Row]) -> str:
    """All rows as one text."""
    width = max((len(row.what) for row in rows), default=0) + 2
    head = f"{'':{width}}{'MiB':>6} {'gmemd':>9} {'beside':>9} {'':12}{'ratio':>6}  {'target':8}"
    lines = [f"{head}beside what"]
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            lines += [section]
        size = "" if row.mebibytes is None else str(row.mebibytes)
        theirs = "" if row.theirs is None else _figure(row.theirs)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"  {row.what:{width - 2}}{size:>6} {_figure(row.ours):>9} {theirs:>9} {row.unit:12}"
            f"{ratio:>6}  {row.target:8}{row.beside}".rstrip()
        )
    return "\n".join(lines)


def growth_table(found: Sequence[Growth]) -> str:
    """Cost against size as text."""
    sizes = sorted({size for growth in found for size in growth.costs})
    width = max((len(growth.way) for growth in found), default=0) + 2
    head = "".join(f"{f'{size} MiB':>11}" for size in sizes)
    lines = [f"{'cost against size':{width}}{head} {'':7}{'exponent':>9}"]
    section = None
    for growth in found:
        if growth.section != section:
            section = growth.section
            lines += [section]
        figures = "".join(
            f"{_figure(growth.costs[size]) if size in growth.costs else '':>11}" for size in sizes
        )
        lines.append(f"  {growth.way:{width - 2}}{figures} {growth.unit:7}{growth.exponent:>9.2f}")
    return "\n".join(lines)


def _figure(number: float) -> str:
    """Three digits that say something."""
    if number == 0 or abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
