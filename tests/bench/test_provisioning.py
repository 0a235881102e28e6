"""Prefaulting allocates about as fast as bare system calls do, and the VM waits less than QEMU's.

The sizes are small and the machine may be busy, so the margins are wide; `python -m tests.bench`
measures.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.bench.__main__ import main
from tests.bench.provisioning import QEMU, Case, build, compare

if TYPE_CHECKING:
    from pathlib import Path

# The start of a helper and the looks of the guards count fully against so little to allocate.
MIB = 512
LEAST_THROUGHPUT = 0.4
MOST_CPU = 1.8


needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm")


@needs_kvm
@pytest.mark.parametrize("threads", [1, 2])
def test_guest_memfd_beside_the_floor(tmp_path: Path, threads: int) -> None:
    _floor, ours = compare(
        build(tmp_path), Case("guest_memfd", MIB, threads), qemu=False, repeats=3
    )
    assert ours.cpu_ratio < MOST_CPU, ours
    assert ours.throughput_ratio > LEAST_THROUGHPUT, ours


def test_memfd_beside_the_floor_and_qemu(tmp_path: Path) -> None:
    with_qemu = shutil.which(QEMU) is not None
    rows = compare(build(tmp_path), Case("memfd", MIB // 4, 1), qemu=with_qemu, repeats=3)
    _floor, ours, *others = rows
    assert ours.throughput_ratio > LEAST_THROUGHPUT, ours
    assert all(ours.throughput_ratio > other.throughput_ratio for other in others), rows


@needs_kvm
def test_the_command_tells_all_ways_and_what_they_are_measured_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.bench.provisioning.REPEATS", 1)
    monkeypatch.setattr("sys.argv", ["bench", "provisioning", "--mib", "16", "--json"])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 1
    rows = told["provisioning"]
    assert {row["way"] for row in rows} >= {"C floor", "gmemd"}
    assert {row["backend"] for row in rows} == {"guest_memfd", "memfd"}
    assert all(row["throughput_ratio"] == 1 for row in rows if row["way"] == "C floor")
    assert all(row["seconds"] > 0 for row in rows)
