"""The daemon with 500 VMs, its scrape and the commands, as rows beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import size, size_commands, size_scrape
from tests.bench.rows import Row, Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECTION = f"the daemon with {size.VMS} VMs of {size.GUEST_NODES} guest nodes"
SCRAPE = f"a scrape of {size_scrape.VMS} VMs x {size_scrape.GUEST_NODES} x {size_scrape.HOST_NODES}"
COMMANDS = "commands, from start to end"
ALONE = ", two at once"
TARGETS = {
    "gmemd --help": "< 3",
    "gmemd status --json": "< 10",
    "every VM is new, two at once": "< 2",
    "a quarter is new, two at once": "< 2",
    "every VM is new": "< 250 ms",
    "a quarter is new": "< 250 ms",
}


def steps(_folder: Path, _sizes: Sequence[int]) -> list[Step]:
    """What is measured, in order."""
    return [
        Step(SECTION, "start, doing nothing, reload, calls", _daemon),
        Step(SCRAPE, "beside an audit and a prefault", _scrapes),
        Step(COMMANDS, "beside an interpreter that does nothing", _commands),
    ]


def _daemon() -> list[Row]:
    return [Row(SECTION, row.what, None, row.figure, row.unit) for row in size.measure()]


def _scrapes() -> list[Row]:
    measured = {row.way: row for row in size_scrape.compare()}
    return [_scrape(row, measured.get(way.removesuffix(ALONE))) for way, row in measured.items()]


def _scrape(row: size_scrape.Row, alone: size_scrape.Row | None) -> Row:
    beside = alone if alone is not row else None
    return Row(
        SCRAPE,
        row.way,
        None,
        row.seconds * 1000,
        "ms",
        theirs=beside.seconds * 1000 if beside else None,
        ratio=row.ratio if beside else None,
        beside="one alone" if beside else "",
        target=TARGETS.get(row.way, ""),
    )


def _commands() -> list[Row]:
    measured = {row.command: row for row in size_commands.compare()}
    nothing = measured.pop(size_commands.NOTHING)
    return [
        Row(
            COMMANDS,
            row.command,
            None,
            row.seconds * 1000,
            "ms",
            theirs=nothing.seconds * 1000,
            ratio=row.ratio,
            beside=size_commands.NOTHING,
            target=TARGETS.get(row.command, ""),
        )
        for row in measured.values()
    ]
