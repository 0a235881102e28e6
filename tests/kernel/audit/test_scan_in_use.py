"""A memfd that a VMM uses: no look at it makes a page, whatever the VMM does meanwhile."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.scan import PUNCHED_MEANWHILE, scan_region
from gmemd.kernel.errors import injected_failure
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat
from tests.kernel.audit.conftest import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.audit.model import RegionAudit
    from tests.kernel.target import Target

pytestmark = pytest.mark.needs("cachestat")

SIZE = 16 * MIB
HUGE = 2 * MIB


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("in-use", SIZE)
    yield fd
    os.close(fd)


def look(fd: int, *, size_bytes: int = SIZE, page_size: int = PAGE, **more: object) -> RegionAudit:
    found = scan_region(
        fd,
        guest_node=0,
        index=0,
        size_bytes=size_bytes,
        page_size=page_size,
        **({"idle": False} | more),
    )
    assert sum(found.by_node.values()) + found.unknown_bytes == found.resident_bytes
    return found


def test_it_is_exact_and_makes_nothing(memfd: int) -> None:
    rng = random.Random(4)
    expected: set[int] = set()
    for _ in range(200):
        first, count = rng.randrange(4000), rng.choice([1, 2, 3, 40, 90])
        if rng.random() < 0.3:
            punch_hole(memfd, first * PAGE, count * PAGE)
            expected -= set(range(first, first + count))
        elif rng.random() < 0.5:
            allocate(memfd, first * PAGE, count * PAGE)
            expected |= set(range(first, first + count))
        else:
            os.pwrite(memfd, b"x" * (count * PAGE), first * PAGE)
            expected |= set(range(first, first + count))
    before = cachestat(memfd, 0, SIZE).pages
    found = look(memfd, window_bytes=2 * MIB)
    assert cachestat(memfd, 0, SIZE).pages == before == len(expected)
    assert found.resident_bytes == sum(found.by_node.values()) == len(expected) * PAGE
    assert (found.errors, found.exact) == ({}, True)


def test_what_was_written_is_still_there(memfd: int) -> None:
    content = os.urandom(MIB)
    os.pwrite(memfd, content, 3 * MIB)
    allocate(memfd, 8 * MIB, MIB)
    look(memfd)
    assert os.pread(memfd, MIB, 3 * MIB) == content
    assert os.pread(memfd, MIB, 8 * MIB) == bytes(MIB)


def punched_under(fd: int, size_bytes: int, scan: Callable[[], RegionAudit]) -> tuple[int, int]:
    """Pages left when all were punched one by one under a scan, and how many punches it noticed."""
    allocate(fd, 0, size_bytes)
    started = threading.Event()

    def punch() -> None:
        started.set()
        for page in range(size_bytes // PAGE):
            punch_hole(fd, page * PAGE, PAGE)

    punching = threading.Thread(target=punch)
    noticed = 0
    punching.start()
    started.wait()
    while punching.is_alive():
        noticed += scan().errors.get(PUNCHED_MEANWHILE, 0)
    punching.join()
    return cachestat(fd, 0, size_bytes).pages, noticed


def test_pages_that_are_punched_meanwhile_stay_punched(memfd: int) -> None:
    noticed = 0
    for _ in range(20):
        left, told = punched_under(memfd, 2 * MIB, lambda: look(memfd, size_bytes=2 * MIB))
        assert left == 0
        noticed += told
    assert noticed, "no page was punched between two looks: this shows nothing"


def test_pages_behind_a_userfaultfd_are_waited_for_by_their_owner_alone(target: Target) -> None:
    theirs = target.call("memfd", SIZE)
    address = target.call("map_file", theirs, SIZE)
    target.call("await_pages", address, SIZE)
    target.call("read", address, 10)
    fd = os.open(f"/proc/{target.pid}/fd/{theirs}", os.O_RDWR)
    try:
        found = look(fd)
        assert found.resident_bytes == sum(found.by_node.values()) == 10 * PAGE
        assert cachestat(fd, 0, SIZE).pages == 10
    finally:
        os.close(fd)
    contents = [page % 251 + 1 for page in range(30)]
    assert target.call("read", address, 30) == contents
    assert target.call("served") == list(range(30))


def test_without_userfaultfd_nothing_is_seen_and_nothing_made(memfd: int) -> None:
    allocate(memfd, 0, 5 * MIB)
    with injected_failure("scan of a memfd in use", errno.EPERM):
        found = look(memfd, window_bytes=SIZE)
    assert found.resident_bytes == found.unknown_bytes == 5 * MIB
    assert found.errors == {"eperm": 1}
    assert "userfaultfd" in found.unknown_reason
    assert "seccomp" in found.unknown_reason
    assert cachestat(memfd, 0, SIZE).pages == 5 * MIB // PAGE


def test_a_reason_is_told_once(memfd: int) -> None:
    """A userfaultfd takes no file that isn't open for writing, window by window."""
    allocate(memfd, 0, SIZE)
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    try:
        found = look(read_only, window_bytes=MIB)
    finally:
        os.close(read_only)
    assert found.unknown_bytes == SIZE
    assert found.unknown_reason.count("EPERM") == 1
    assert found.errors == {"eperm": 16}


@pytest.mark.parametrize("idle", [True, False])
def test_a_file_that_gets_shorter_meanwhile_kills_nobody(memfd: int, idle: bool) -> None:  # noqa: FBT001
    allocate(memfd, 0, SIZE)
    done = threading.Event()

    def cut() -> None:
        while not done.is_set():
            os.ftruncate(memfd, PAGE)
            os.ftruncate(memfd, SIZE)
            allocate(memfd, 0, SIZE)

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        for _ in range(40):
            look(memfd, idle=idle)
    finally:
        done.set()
        cutting.join()
    os.ftruncate(memfd, PAGE)
    assert look(memfd).resident_bytes == PAGE


def test_a_file_that_has_no_such_page_any_more(memfd: int) -> None:
    os.pwrite(memfd, b"x" * SIZE, 0)
    os.ftruncate(memfd, 5 * PAGE)
    assert look(memfd).resident_bytes == 5 * PAGE
    assert look(memfd, offset=8 * MIB, size_bytes=MIB).resident_bytes == 0


def test_huge_pages_of_a_file_that_got_shorter(huge_pool: None) -> None:  # noqa: ARG001
    fd = create_memfd("huge", 8 * HUGE, page_size=HUGE)
    allocate(fd, 0, 8 * HUGE)
    os.ftruncate(fd, 3 * HUGE)
    found = look(fd, size_bytes=8 * HUGE, page_size=HUGE)
    os.close(fd)
    assert (found.resident_bytes, found.errors) == (3 * HUGE, {})


@pytest.mark.parametrize("idle", [True, False])
def test_a_region_may_start_within_its_file(memfd: int, idle: bool) -> None:  # noqa: FBT001
    allocate(memfd, 0, 4 * MIB)
    allocate(memfd, 5 * MIB, MIB)
    allocate(memfd, 8 * MIB, 8 * MIB)
    seen: list[int] = []
    found = look(
        memfd,
        offset=4 * MIB,
        size_bytes=4 * MIB,
        idle=idle,
        window_bytes=MIB,
        progress=seen.append,
    )
    assert found.resident_bytes == sum(found.by_node.values()) == MIB
    assert found.size_bytes == sum(seen) == 4 * MIB
    assert found.errors == {}


def test_huge_pages_of_a_region_within_its_file(huge_pool: None) -> None:  # noqa: ARG001
    fd = create_memfd("huge", 8 * HUGE, page_size=HUGE)
    allocate(fd, 0, 3 * HUGE)
    allocate(fd, 5 * HUGE, HUGE)
    found = look(fd, offset=2 * HUGE, size_bytes=4 * HUGE, page_size=HUGE)
    os.close(fd)
    assert found.resident_bytes == sum(found.by_node.values()) == 2 * HUGE


def test_open_files_are_as_many_afterwards(memfd: int) -> None:
    allocate(memfd, 0, SIZE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        look(memfd, window_bytes=MIB)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
