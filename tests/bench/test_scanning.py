"""Looking at pages costs gmemd little more than the kernel, and what is kept next to nothing.

The bounds leave room for a busy machine; `python -m tests.bench` tells what it is on a quiet one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel.errors import KernelError
from tests.bench.scanning import CHANGED, EVERY_PAGE, KEPT, SAMPLE, build, compare

if TYPE_CHECKING:
    from pathlib import Path

SMALL_MIB = 256
LARGE_MIB = 1024


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no KVM here")
def test_scanning_a_guest_memfd(tmp_path: Path) -> None:
    program = build(tmp_path)
    try:
        small, large = (
            {row.way: row for row in compare(program, mebibytes)}
            for mebibytes in (SMALL_MIB, LARGE_MIB)
        )
    except KernelError as error:
        pytest.skip(f"no guest_memfd that can be mapped: {error}")
    assert large[EVERY_PAGE].ratio < 1.3
    assert large[KEPT].ratio < 0.8
    assert large[CHANGED].ratio < 1.15
    assert large[SAMPLE].ratio < 1.8
    assert large[SAMPLE].seconds < 2 * small[SAMPLE].seconds
    assert small[EVERY_PAGE].seconds * 2 < large[EVERY_PAGE].seconds
