"""A sample costs the same whatever the VM's size, and holds the VM up less than numastat does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.observing import Row, compare
from tests.bench.target import build

if TYPE_CHECKING:
    from pathlib import Path

SMALL_MIB = 256
LARGE_MIB = 2048


def test_sampling_a_running_vm(tmp_path: Path) -> None:
    program = build(tmp_path)
    small = _by_way(compare(program, SMALL_MIB, phase_seconds=1))
    large = _by_way(compare(program, LARGE_MIB, phase_seconds=1))
    growth = large["gmemd, sample"].seconds / small["gmemd, sample"].seconds
    assert growth < 3, "a process eight times as large takes eight times as long to look at"
    sampled, others = large["gmemd, sample"], large["numastat -p"]
    assert sampled.seconds < others.seconds
    # numastat holds the process' lock while the kernel counts its pages: milliseconds.
    assert sampled.latency.p99_ns < others.latency.p99_ns


def _by_way(rows: list[Row]) -> dict[str, Row]:
    return {row.way: row for row in rows}
