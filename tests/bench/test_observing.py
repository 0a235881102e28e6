"""A sample costs the same whatever the VM's size, and holds the VM up less than numastat does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.observing import MEANWHILE, SAMPLE, measure
from tests.bench.target import build

if TYPE_CHECKING:
    from pathlib import Path

SMALL_MIB = 128
LARGE_MIB = 2048


def test_sampling_a_running_vm(tmp_path: Path) -> None:
    program = build(tmp_path)
    small, large = (
        {row.what: row for row in measure(program, mebibytes, repeats=3)}
        for mebibytes in (SMALL_MIB, LARGE_MIB)
    )
    growth = large[SAMPLE].ours / small[SAMPLE].ours
    assert growth < 3, "a process 16 times as large takes as many times as long to look at"
    assert (large[SAMPLE].ratio or 9) < 1
    # numastat holds the process' lock while the kernel counts its pages: milliseconds.
    assert (large[f"{SAMPLE}, {MEANWHILE}"].ratio or 9) < 1
