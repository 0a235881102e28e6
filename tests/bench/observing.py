"""What looking at a running VM costs: gmemd, and what it does to the VM, beside `numastat -p`."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gmemd.audit.observed import Effort
from gmemd.daemon.observing import Finder
from gmemd.host.reading import read_host
from tests.bench.target import Latency, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.target import Target

SAMPLE_PAGES = 4096
REPEATS = 5
HEADING = "mmap+munmap in us:"


@dataclass(frozen=True)
class Row:
    """One way to look, at one process: seconds each time, and the process' latency meanwhile."""

    way: str
    mebibytes: int
    seconds: float
    latency: Latency

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def compare(program: Path, mebibytes: int, *, phase_seconds: float = 3.0) -> list[Row]:
    """Medians of interleaved repeats, on a process with so much touched memory."""
    with running(program, mebibytes) as target:
        ways = {
            "nothing": lambda: time.sleep(0.05),
            "gmemd, sample": _look(target, SAMPLE_PAGES),
            "gmemd, every page": _look(target, None),
            "numastat -p": lambda: _numastat(target),
        }
        return _interleaved(target, ways, mebibytes, phase_seconds)


def _interleaved(
    target: Target, ways: dict[str, Callable[[], None]], mebibytes: int, phase_seconds: float
) -> list[Row]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    latencies: dict[str, list[Latency]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, look in ways.items():
            target.latency()
            end = time.monotonic() + phase_seconds / REPEATS
            while True:
                begun = time.perf_counter()
                look()
                seconds[way].append(time.perf_counter() - begun)
                if time.monotonic() > end:
                    break
            latencies[way].append(target.latency())
    return [
        Row(way, mebibytes, statistics.median(seconds[way]), _median(latencies[way]))
        for way in ways
    ]


def _median(latencies: list[Latency]) -> Latency:
    return Latency(
        sum(each.count for each in latencies),
        *(
            int(statistics.median(getattr(each, name) for each in latencies))
            for name in ("median_ns", "p99_ns", "p999_ns", "worst_ns")
        ),
    )


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


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'way to look':18} {'MiB':>6} {'ms':>9}   {HEADING:20}"
        + "".join(f"{word:>9}" for word in ("median", "p99", "p99.9", "worst"))
    ]
    for row in rows:
        of = row.latency
        figures = [of.median_ns, of.p99_ns, of.p999_ns, of.worst_ns]
        cells = "".join(f"{ns / 1000:>9.1f}" for ns in figures)
        lines.append(f"{row.way:18} {row.mebibytes:>6} {row.seconds * 1000:>9.2f}   {'':20}{cells}")
    return "\n".join(lines)
