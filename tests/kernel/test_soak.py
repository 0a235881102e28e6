"""The daemon after a hundred VMs' lives; ``python -m tests.kernel.soak`` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.soak import MOST_GROWTH_BYTES, Holds, grown

REPOSITORY = Path(__file__).parents[2]
HOLDS = Holds(memory_bytes=35 << 20, fds=9, mappings=0, threads=12, children=0)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm here")
def test_nothing_grows_over_a_hundred_cycles() -> None:
    command = [sys.executable, "-m", "tests.kernel.soak", "--cycles", "100"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_has_grown_is_told() -> None:
    assert grown(HOLDS, HOLDS, MOST_GROWTH_BYTES) == []
    more = replace(HOLDS, memory_bytes=HOLDS.memory_bytes + 2000 * 1024, fds=10, mappings=1)
    assert grown(HOLDS, more, MOST_GROWTH_BYTES) == [
        "memory by 2000 KiB",
        "fds from 9 to 10",
        "mappings from 0 to 1",
    ]
