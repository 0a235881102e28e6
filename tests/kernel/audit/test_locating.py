"""Where in its region a page is: to the page, of held memory and of others'; none is made."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.locating import locate_mapped, locate_region, locate_vm
from gmemd.audit.scan import AuditStoppedError
from gmemd.audit.vm import AuditedRegion, audit_vm
from gmemd.kernel.errors import KernelError
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat
from gmemd.plan.layout import Extent
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.kernel.audit.conftest import MIB, PAGE, Memory
from tests.kernel.target import HUGE, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.audit.model import Where

SIZE = 16 * MIB
ELSEWHERE = 9
"""A host node that no page of these tests is on: all are misplaced."""


def plan(size_bytes: int = SIZE, **changes: object) -> RegionPlan:
    made = RegionPlan(
        vm="vm",
        guest_node=0,
        index=0,
        size_bytes=size_bytes,
        backend=Backend.MEMFD,
        page_size=PAGE,
        policy=PolicyMode.BIND,
        host_nodes=frozenset({ELSEWHERE}),
        strategy=Strategy.INODE_POLICY,
        reason="",
        prefault=False,
    )
    return replace(made, **changes)


def pages(where: Where | None) -> list[tuple[int, int, int]]:
    """Misplaced ranges in pages: the first, how many with holes, how many without."""
    assert where is not None
    return [
        (found.offset // PAGE, found.size_bytes // PAGE, found.misplaced_bytes // PAGE)
        for found in where.misplaced
    ]


def held(where: Where | None) -> int:
    assert where is not None
    return sum(
        sum(cell.by_node.values()) + cell.unknown_bytes
        for stretch in where.stretches
        for cell in stretch.cells
    )


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("located", SIZE)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("window_bytes", [64 * PAGE, SIZE])
def test_pages_of_a_memfd(memfd: int, window_bytes: int, *, idle: bool) -> None:
    allocate(memfd, 100 * PAGE, 50 * PAGE)
    punch_hole(memfd, 120 * PAGE, 10 * PAGE)
    region = AuditedRegion(memfd, plan())
    where = locate_region(region, idle=idle, window_bytes=window_bytes)
    assert pages(where) == [(100, 50, 40)]
    assert held(where) == 40 * PAGE
    assert cachestat(memfd, 0, SIZE).pages == 40


def test_a_region_that_begins_within_its_file(memfd: int) -> None:
    allocate(memfd, 8 * MIB, MIB)
    region = AuditedRegion(memfd, plan(8 * MIB), offset=7 * MIB)
    where = locate_region(region, extents=(Extent(4 << 30, 0, 8 * MIB),))
    assert where is not None
    (found,) = where.misplaced
    assert (found.offset, found.size_bytes, found.gpa) == (MIB, MIB, (4 << 30) + MIB)


@pytest.mark.usefixtures("huge_pool")
def test_huge_pages_are_one_page_each() -> None:
    fd = create_memfd("huge", 6 * HUGE, page_size=HUGE)
    try:
        allocate(fd, 1 * HUGE, 2 * HUGE)
        allocate(fd, 5 * HUGE, HUGE)
        where = locate_region(AuditedRegion(fd, plan(6 * HUGE, page_size=HUGE)))
    finally:
        os.close(fd)
    assert where is not None
    assert [(found.offset, found.size_bytes) for found in where.misplaced] == [(HUGE, 5 * HUGE)]
    assert [sum(cell.by_node.values()) for cell in where.stretches[0].cells] == [
        0, HUGE, HUGE, 0, 0, HUGE,
    ]  # fmt: skip


def test_nothing_is_misplaced_where_nothing_is_declared(memfd: int) -> None:
    allocate(memfd, 0, MIB)
    undeclared = plan(policy=PolicyMode.DEFAULT, host_nodes=frozenset())
    where = locate_region(AuditedRegion(memfd, undeclared))
    assert (pages(where), held(where)) == ([], MIB)


@pytest.mark.needs("kvm", "guest_memfd_mmap")
def test_pages_of_a_guest_memfd(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(SIZE)
    memory.touch(3, 2)
    memory.allocate(1000, 1)
    memory.guest_write(2000, 3)
    for idle in (True, False):
        region = AuditedRegion(memory.fd, plan(backend=Backend.GUEST_MEMFD))
        assert pages(locate_region(region, idle=idle)) == [(3, 2000, 6)]
    assert memory.cached() == 6


def test_an_audit_gets_it_and_takes_longer(memfd: int) -> None:
    allocate(memfd, 0, 2 * MIB)
    regions = [AuditedRegion(memfd, plan())]
    audit = audit_vm("vm", regions)
    steps: list[tuple[int, int]] = []
    located = locate_vm(audit, regions, layout={}, progress=lambda *step: steps.append(step))
    (seen,) = located.regions
    assert pages(seen.where) == [(0, 512, 512)]
    assert replace(seen, where=None) == audit.regions[0]
    assert located.duration_seconds > audit.duration_seconds
    assert steps[-1] == (SIZE, SIZE)


@pytest.mark.parametrize("idle", [True, False])
def test_pages_that_come_meanwhile_are_an_error_of_idle_regions(memfd: int, *, idle: bool) -> None:
    allocate(memfd, 0, MIB)
    regions = [AuditedRegion(memfd, plan())]
    audit = audit_vm("vm", regions, idle=idle)
    still = locate_vm(audit, regions, layout={}, idle=idle)
    assert still.regions[0].errors == {}

    def touch(_done: int, _total: int) -> None:
        allocate(memfd, 8 * MIB, PAGE)

    grown = locate_vm(audit, regions, layout={}, idle=idle, progress=touch)
    assert grown.regions[0].errors == ({"residency_changed": 1} if idle else {})


def test_what_is_out_of_sight_has_no_place(memfd: int) -> None:
    allocate(memfd, 0, MIB)
    regions = [AuditedRegion(memfd, plan())]
    audit = audit_vm("vm", regions, readable=False)
    steps: list[tuple[int, int]] = []
    located = locate_vm(audit, regions, layout={}, progress=lambda *step: steps.append(step))
    assert located.regions[0].where is None
    assert steps == [(SIZE, SIZE)]
    unreadable = AuditedRegion(os.open("/dev/null", os.O_RDONLY), plan())
    assert locate_region(unreadable) is None
    os.close(unreadable.fd)


def test_memory_that_it_takes_does_not_grow_with_the_region() -> None:
    size = 64 << 30
    step = size // 1000 // PAGE * PAGE
    fd = create_memfd("large", size)
    for number in range(1000):
        allocate(fd, number * step, PAGE)
    tracemalloc.start()
    try:
        where = locate_region(AuditedRegion(fd, plan(size)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        os.close(fd)
    assert held(where) == 1000 * PAGE
    assert peak < MIB


def test_it_stops_when_asked(memfd: int) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(AuditStoppedError):
        locate_region(AuditedRegion(memfd, plan()), stop=stop)
    with pytest.raises(AuditStoppedError):
        locate_mapped(os.getpid(), [(PAGE, PAGE)], plan(), page_size=PAGE, stop=stop)


def test_pages_that_another_process_maps() -> None:
    """Several mappings are one region; what was read and never written is a hole."""
    with Target() as target:
        first = target.call("anonymous", SIZE)
        second = target.call("anonymous", MIB)
        target.call("touch", first + 600 * PAGE, 30, PAGE)
        target.call("read", first, 10, PAGE)
        target.call("touch", second, 1, PAGE)
        ranges = [(first, SIZE), (second, MIB)]
        before = target.resident(*ranges)
        done: list[int] = []
        where = locate_mapped(target.pid, ranges, plan(), page_size=PAGE, progress=done.append)
        assert target.resident(*ranges) == before
        assert pages(where) == [(600, SIZE // PAGE - 600 + 1, 31)]
        assert held(where) == 31 * PAGE
        assert sum(done) == SIZE + MIB
        assert where.stretches[0].size_bytes == SIZE + MIB
        pid = target.pid
    with pytest.raises(KernelError):
        locate_mapped(pid, ranges, plan(), page_size=PAGE)
