"""What tests look at: a process that does as it is told, and huge pages for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE_PAGES = 8


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as process:
        yield process


@pytest.fixture
def huge_pool() -> Iterator[None]:
    """Eight free huge pages of 2 MiB for whoever asks, given back at the end."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = int(pool.read_text()) if pool.exists() else 0
    try:
        pool.write_text(f"{before + HUGE_PAGES}\n")
    except OSError as error:
        pytest.skip(f"no pool of huge pages can be made: {error}")
    try:
        if int(pool.read_text()) < before + HUGE_PAGES:
            pytest.skip("too little memory in one piece for eight huge pages")
        yield
    finally:
        pool.write_text(f"{before}\n")
