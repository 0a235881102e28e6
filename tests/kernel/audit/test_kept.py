"""What stays mapped is known to be where it was; what fell out is found, exactly, and read anew."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.kept import KeptWindows, Look, cost_bytes
from gmemd.kernel.errors import injected_failure
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 16 * MIB
PAGES = SIZE // PAGE
AMPLE = 64 * MIB


@pytest.fixture
def kept() -> Iterator[KeptWindows]:
    with KeptWindows(AMPLE) as windows:
        yield windows


@pytest.fixture
def memory(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SIZE)


def look(kept: KeptWindows, memory: Memory) -> Look:
    found = kept.look(memory.fd, 0, SIZE)
    assert found is not None
    scan = found.scan
    assert scan.resident_pages == sum(scan.by_node.values()) + sum(scan.errors.values())
    return found


def page_tables() -> int:
    """Bytes of this process' page tables."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("[kvm-gmem]")


def test_a_second_look_reads_nothing(kept: KeptWindows, memory: Memory) -> None:
    memory.touch(0, 1000)
    memory.allocate(2000, 500)
    first, second = look(kept, memory), look(kept, memory)
    assert (first.read_pages, second.read_pages) == (1500, 0)
    assert second.scan.by_node == first.scan.by_node
    assert (second.lost_pages, second.runs) == (0, ())
    assert memory.cached() == 1500


def test_exactly_what_was_punched_and_made_again_is_found(
    kept: KeptWindows, memory: Memory
) -> None:
    rng = random.Random(20261121)
    memory.touch(0, PAGES)
    look(kept, memory)
    changed = set(rng.sample(range(PAGES), 700))
    for page in changed:
        memory.punch(page, 1)
        rng.choice([memory.touch, memory.allocate, memory.guest_write])(page, 1)
    before = memory.cached()
    found = look(kept, memory)
    assert before == memory.cached() == PAGES
    assert found.scan.resident_pages == PAGES
    assert found.read_pages == found.lost_pages == len(changed)
    assert {page + n for page, count in found.runs for n in range(count)} == changed


def test_it_goes_on_telling_what_a_scan_tells(kept: KeptWindows, memory: Memory) -> None:
    rng = random.Random(3)
    for _ in range(60):
        first, count = rng.randrange(PAGES - 200), rng.choice([1, 2, 17, 200])
        kind = rng.choice([memory.touch, memory.allocate, memory.guest_write, memory.punch])
        kind(first, count)
        before = memory.cached()
        found = kept.look(memory.fd, 0, SIZE)
        assert found is not None
        assert memory.cached() == before == found.scan.resident_pages
    exact = memory.scan()
    assert found.scan.by_node == {node: held // PAGE for node, held in exact.by_node.items()}


def test_a_scan_of_kept_windows_is_a_scan(kept: KeptWindows, memory: Memory) -> None:
    memory.touch(100, 3000)
    plain = memory.scan(window_bytes=4 * MIB)
    assert memory.scan(window_bytes=4 * MIB, kept=kept) == plain
    assert memory.scan(window_bytes=4 * MIB, kept=kept) == plain
    memory.punch(200, 5)
    memory.allocate(202, 1)
    assert memory.scan(window_bytes=4 * MIB, kept=kept) == memory.scan()


def test_a_page_that_goes_right_then_is_an_error_there_too(
    kept: KeptWindows, memory: Memory
) -> None:
    memory.touch(0, 10)
    memory.scan(kept=kept)
    memory.touch(10, 1)
    found = memory.scan(kept=kept, progress=lambda _: memory.punch(10, 1))
    assert found.errors == {"residency_changed": 1}


def test_page_tables_are_counted(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(256 * MIB)
    memory.allocate(0, 256 * MIB // PAGE)
    before = page_tables()
    with KeptWindows(AMPLE) as kept:
        memory.scan(kept=kept)
        grown = page_tables() - before
        of_nodes = 256 * MIB // PAGE * 2
        assert kept.used_bytes == 8 * cost_bytes(32 * MIB)
        assert grown <= kept.used_bytes - of_nodes + 64 * 1024
        assert grown >= (kept.used_bytes - of_nodes) * 0.9
    assert page_tables() <= before + 64 * 1024


def test_no_more_is_kept_than_the_budget_allows(memory: Memory) -> None:
    memory.touch(0, PAGES)
    before = mappings()
    with KeptWindows(3 * cost_bytes(2 * MIB)) as kept:
        found = memory.scan(kept=kept, window_bytes=2 * MIB)
        assert found.resident_bytes == SIZE
        assert (kept.n_windows, kept.used_bytes) == (3, kept.budget_bytes)
        assert memory.scan(kept=kept, window_bytes=2 * MIB) == found
        assert mappings() == before + 3


def test_what_is_forgotten_is_unmapped(kept: KeptWindows, memory: Memory) -> None:
    memory.touch(0, PAGES)
    before = mappings()
    memory.scan(kept=kept, window_bytes=4 * MIB)
    assert mappings() == before + 4
    kept.forget(memory.fd)
    assert (mappings() - before, kept.n_windows, kept.used_bytes) == (0, 0, 0)
    kept.forget(memory.fd)
    assert look(kept, memory).read_pages == PAGES


def test_empty_windows_cost_nothing(kept: KeptWindows, memory: Memory) -> None:
    assert look(kept, memory).scan.resident_pages == 0
    assert (kept.n_windows, kept.used_bytes, memory.cached()) == (0, 0, 0)


def test_a_window_that_fails_is_looked_at_as_ever(kept: KeptWindows, memory: Memory) -> None:
    memory.touch(0, 100)
    before = mappings()
    plain = memory.scan(kept=kept)
    with injected_failure("re-scan", errno.ENOTTY):
        assert memory.scan(kept=kept) == plain
    assert kept.n_windows == 0
    with injected_failure("scan", errno.ENOMEM):
        failed = memory.scan(kept=kept)
    assert (failed.unknown_bytes, failed.errors) == (100 * PAGE, {"enomem": 1})
    assert (kept.n_windows, mappings()) == (0, before)


def test_pages_that_can_move_are_not_kept(kept: KeptWindows) -> None:
    fd = create_memfd("movable", SIZE)
    allocate(fd, 0, SIZE)
    assert kept.look(fd, 0, SIZE) is None
    os.close(fd)
