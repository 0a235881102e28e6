"""Looking at pages costs gmemd little more than the kernel, and what is kept next to nothing.

What is wanted stands in the table (`python -m tests.bench`): at most 1.10 times the floor for every
page, 1.15 for kept ones, 1.50 for a sample, and 1.3 times from 1 to 16 GiB; 0.9 to 1.1 % of a CPU.
The bounds here leave room for a busy machine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel.errors import KernelError
from tests.bench.scanning import (
    CHANGED,
    EVERY_PAGE,
    KEPT,
    SAMPLE,
    build,
    compare,
    idle,
    rolling,
)

if TYPE_CHECKING:
    from tests.bench.rows import Row

SMALL_MIB = 128
LARGE_MIB = 512

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no KVM here")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Row], dict[str, Row]]:
    """Each way, of a small and of a larger guest_memfd; which pages it found is asserted there."""
    program = build(tmp_path_factory.mktemp("floor"))
    try:
        small, large = (
            {row.what: row for row in compare(program, mebibytes, repeats=5)}
            for mebibytes in (SMALL_MIB, LARGE_MIB)
        )
    except KernelError as error:
        pytest.skip(f"no guest_memfd that can be mapped: {error}")
    return small, large


@pytest.mark.parametrize(
    ("way", "most"), [(EVERY_PAGE, 1.3), (KEPT, 0.8), (CHANGED, 1.15), (SAMPLE, 1.8)]
)
def test_a_look_beside_the_system_calls_alone(
    measured: tuple[dict[str, Row], dict[str, Row]], way: str, most: float
) -> None:
    _, large = measured
    assert large[way].ratio is not None
    assert large[way].ratio < most, large[way]


def test_a_sample_costs_what_its_pages_do_and_a_scan_what_all_do(
    measured: tuple[dict[str, Row], dict[str, Row]],
) -> None:
    small, large = measured
    assert large[SAMPLE].ours < 2 * small[SAMPLE].ours
    assert large[EVERY_PAGE].ours > 2 * small[EVERY_PAGE].ours


def test_no_audit_of_idle_memory_makes_a_page() -> None:
    row = idle(64)
    assert row.ours == 0, row
    assert row.beside.startswith("10 audits")


def test_a_rolling_scan_takes_the_share_of_a_cpu_that_it_was_allowed() -> None:
    row = rolling(3.0)
    assert 0.9 <= row.ours <= 1.1, row
