"""What looking at a running VM costs: gmemd, and what it does to the VM, beside `numastat -p`."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gmemd.audit.observed import Effort
from gmemd.daemon.observing import Finder
from gmemd.host.reading import read_host
from tests.bench.rows import Step, compared, repeats_for
from tests.bench.target import build, running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.bench.rows import Row
    from tests.bench.target import Latency, Target

SECTION = "looking at a running VM's anonymous memory"
MEANWHILE = "meanwhile, the VM's mmap + munmap"
LATENCY = "ms, p99.9"
SAMPLE_PAGES = 4096
SAMPLE = f"gmemd audit, {SAMPLE_PAGES} pages"
FULL = "gmemd audit --full"
OTHER = "numastat -p"
TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Turn:
    """One way to look, one turn: the median seconds, and the VM's own latency meanwhile."""

    seconds: float
    latency: Latency


def steps(folder: Path, sizes: Sequence[int]) -> list[Step]:
    """What is measured, in order."""
    program = build(folder)
    return [Step(SECTION, f"{size} MiB", partial(measure, program, size)) for size in sizes]


def measure(program: Path, mebibytes: int, *, repeats: int = 0) -> list[Row]:
    """What a look takes, and what it does to the VM, beside numastat."""
    turns = compare(program, mebibytes, repeats or repeats_for(mebibytes))

    def row(way: str, what: str, unit: str, figure: Callable[[Turn], float]) -> Row:
        return compared(
            [
                (figure(mine), figure(other))
                for mine, other in zip(turns[way], turns[OTHER], strict=True)
            ],
            section=SECTION,
            what=what,
            mebibytes=mebibytes,
            beside=OTHER,
            unit=unit,
        )

    return [
        each
        for way in (SAMPLE, FULL)
        for each in (
            row(way, way, "ms", lambda turn: turn.seconds),
            row(way, f"{way}, {MEANWHILE}", LATENCY, lambda turn: turn.latency.p999_ns / 1e9),
        )
    ]


def compare(program: Path, mebibytes: int, repeats: int) -> dict[str, list[Turn]]:
    """Turn by turn, on a process with so much touched memory."""
    with running(program, mebibytes) as target:
        ways = {
            SAMPLE: _look(target, SAMPLE_PAGES),
            FULL: _look(target, None),
            OTHER: lambda: _numastat(target),
        }
        turns: dict[str, list[Turn]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, look in ways.items():
                turns[way].append(_turn(target, look))
    return turns


def _turn(target: Target, look: Callable[[], None]) -> Turn:
    """Look again and again for a while, once at least."""
    taken: list[float] = []
    target.latency()
    end = time.monotonic() + TURN_SECONDS
    while not taken or time.monotonic() < end:
        begun = time.perf_counter()
        look()
        taken.append(time.perf_counter() - begun)
    return Turn(statistics.median(taken), target.latency())


def _look(target: Target, sample_pages: int | None) -> Callable[[], None]:
    """An audit of a VM that was found already, as the daemon's and the command's are."""
    host = read_host(probe=False)
    finder = Finder()
    found = finder.find_pid(target.pid)
    assert found is not None
    effort = Effort(sample_pages, random.Random(7))

    def look() -> None:
        status = finder.observe(found, host, effort)
        assert status.audit is not None
        assert status.audit.regions

    return look


def _numastat(target: Target) -> None:
    subprocess.run(["numastat", "-p", str(target.pid)], check=True, stdout=subprocess.DEVNULL)
