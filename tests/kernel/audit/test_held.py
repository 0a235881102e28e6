"""A sample of memory that gmemd holds: as many resident pages as asked for, and none made."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.held import sample_region
from gmemd.audit.scan import AuditStoppedError
from gmemd.drift.interval import pages_between
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.audit.model import RegionAudit
    from gmemd.kernel.kvm import KvmVm

SIZE = 256 * MIB
PAGES = SIZE // PAGE
WANTED = 500
TRIALS = 50


def sample(fd: int, seed: int = 1, **options: object) -> RegionAudit:
    before = cachestat(fd, 0, SIZE).pages
    tables = page_tables()
    options = {"guest_node": 0, "index": 0, "size_bytes": SIZE, "sample_pages": WANTED} | options
    found = sample_region(fd, rng=Random(seed), **options)
    assert sum(found.by_node.values()) + found.unknown_bytes == found.resident_bytes
    assert cachestat(fd, 0, SIZE).pages == before
    assert page_tables() <= tables + 64 * 1024
    return found


def page_tables() -> int:
    """Bytes of this process' page tables."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE"))


@pytest.fixture
def memory(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SIZE)


def test_of_full_memory_as_many_as_asked_for(memory: Memory) -> None:
    memory.allocate(0, PAGES)
    found = sample(memory.fd)
    assert found.sample is not None
    assert (found.sample.population, found.sample.drawn) == (PAGES, WANTED)
    assert sum(found.sample.by_node.values()) == WANTED
    assert (found.resident_bytes, found.exact, found.errors) == (SIZE, False, {})
    assert found.policy is not None


def test_of_memory_with_holes_as_many_too(memory: Memory) -> None:
    for first in range(0, PAGES, 80):
        memory.allocate(first, 4)  # there, and never touched
        memory.touch(first + 8, 4)
    found = sample(memory.fd)
    assert found.sample is not None
    hits = sum(found.sample.by_node.values())
    assert WANTED <= hits <= 1.2 * WANTED
    assert hits < found.sample.drawn <= 16 * WANTED


def test_where_little_is_there_it_gives_up(memory: Memory) -> None:
    memory.touch(70, 20)
    found = sample(memory.fd)
    assert found.sample is not None
    assert found.sample.drawn == 16 * WANTED
    assert found.resident_bytes <= 200 * 16 * PAGE
    assert sample(memory.fd, most_draws=1).sample.drawn == WANTED


def test_the_interval_holds_what_is_there(memory: Memory) -> None:
    """In trial after trial; of 50 at 95 % fewer than 44 hold in one of 300 runs, and seeds stay."""
    for first in range(0, PAGES, 64):
        memory.touch(first, 21)
    resident = memory.cached()
    held = 0
    for seed in range(TRIALS):
        found = sample(memory.fd, seed).sample
        assert found is not None
        fewest, most = pages_between(sum(found.by_node.values()), found.drawn, PAGES)
        held += fewest <= resident <= most
    assert held >= 44


def test_small_memory_is_looked_at_whole(memory: Memory) -> None:
    memory.touch(0, 300)
    found = sample(memory.fd, size_bytes=4 * WANTED * PAGE)
    assert found.exact
    assert (found.sample, found.resident_bytes) == (None, 300 * PAGE)


def test_a_region_may_start_within_its_file(memory: Memory) -> None:
    memory.allocate(PAGES // 2, PAGES // 2)
    found = sample(memory.fd, offset=SIZE // 2, size_bytes=SIZE // 2)
    assert found.resident_bytes == SIZE // 2
    assert sample(memory.fd, size_bytes=SIZE // 2).resident_bytes == 0


@pytest.mark.parametrize("idle", [True, False])
def test_memfds_are_sampled_too(idle: bool) -> None:  # noqa: FBT001
    fd = create_memfd("sampled", SIZE)
    allocate(fd, 0, SIZE // 2)
    found = sample(fd, idle=idle)
    os.close(fd)
    assert found.sample is not None
    assert found.resident_bytes == pytest.approx(SIZE // 2, rel=0.2)


def test_what_cannot_be_mapped_is_counted(vm: KvmVm) -> None:
    fd = vm.create_guest_memfd(SIZE, 0)
    allocate(fd, 0, 5 * MIB)
    found = sample(fd)
    os.close(fd)
    assert found.resident_bytes == found.unknown_bytes == 5 * MIB
    assert "without the MMAP flag" in found.unknown_reason


def test_it_stops(memory: Memory) -> None:
    memory.allocate(0, PAGES)
    stop = threading.Event()
    stop.set()
    with pytest.raises(AuditStoppedError):
        sample(memory.fd, stop=stop)
