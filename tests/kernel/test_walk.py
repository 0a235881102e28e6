"""A VM's life, one call after the other failing. ``python -m tests.kernel.walk`` is the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.walk.scenarios import NAMES

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm here")
def test_whatever_call_fails_it_is_told_and_nothing_is_left_behind() -> None:
    """The first and the last use of each call, beside each other as most of it is waiting."""
    walks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.walk", name, "--extent", "brief"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in NAMES
    ]
    told = [walk.communicate()[0] for walk in walks]
    assert [walk.returncode for walk in walks] == [0] * len(NAMES), "\n".join(told)
