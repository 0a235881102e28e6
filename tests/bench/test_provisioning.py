"""Prefaulting allocates about as fast as bare system calls do, and the VM waits less than QEMU's.

The sizes are small and the machine may be busy, so the margins are wide; `python -m tests.bench`
measures.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.provisioning import QEMU, Case, build, compare

# The start of a helper and the looks of the guards count fully against so little to allocate.
MIB = 512
LEAST_THROUGHPUT = 0.4
MOST_CPU = 1.8


@pytest.mark.parametrize("threads", [1, 2])
def test_guest_memfd_beside_the_floor(tmp_path: Path, threads: int) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("no /dev/kvm")
    _floor, ours = compare(build(tmp_path), Case("guest_memfd", MIB, threads), repeats=5)
    assert ours.cpu_ratio < MOST_CPU, ours
    assert ours.throughput_ratio > LEAST_THROUGHPUT, ours


def test_memfd_beside_the_floor_and_qemu(tmp_path: Path) -> None:
    with_qemu = shutil.which(QEMU) is not None
    rows = compare(build(tmp_path), Case("memfd", MIB // 4, 1), qemu=with_qemu, repeats=3)
    _floor, ours, *others = rows
    assert ours.throughput_ratio > LEAST_THROUGHPUT, ours
    assert all(ours.throughput_ratio > other.throughput_ratio for other in others), rows
