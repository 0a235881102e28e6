"""Scans where pages are on several nodes, poisoned, or huge."""

import ctypes
import faulthandler
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy, get_task_policy, set_task_policy
from gmemd.kernel.pages import ABSENT, cachestat, scan_huge_window, scan_window

PAGE = 4096
SIZE = 4 << 20
HUGE = 2 << 20
MADV_HWPOISON = 100
EHWPOISON = 133


def test_each_page_has_its_node(fd: int) -> None:
    for node in range(4):
        bind_range(fd, node * 256 * PAGE, 256 * PAGE, MemPolicy("bind", frozenset({node})))
    allocate(fd, 0, SIZE)
    punch_hole(fd, 100 * PAGE, 3 * PAGE)
    before = cachestat(fd, 0, SIZE)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        scan = scan_window(window, 0, SIZE, per_page=True)
    assert scan.by_node == {0: 253, 1: 256, 2: 256, 3: 256}
    expected = [page // 256 for page in range(1024)]
    expected[100:103] = [ABSENT] * 3
    assert list(scan.nodes or []) == expected
    assert cachestat(fd, 0, SIZE) == before


def poison(fd: int, page: int) -> None:
    """Poisons a page in a process that dies of it."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        with Mapping(fd, page * PAGE, PAGE, protection="read-write") as window:
            window.populate_read(0, PAGE)
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.madvise(ctypes.c_void_p(window.address), PAGE, MADV_HWPOISON)
            os._exit(ctypes.get_errno() if failed else 0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        pytest.skip(f"no page can be poisoned here: {os.strerror(os.WEXITSTATUS(status))}")


def test_a_poisoned_page_is_counted_and_hides_no_other(memfd: int) -> None:
    """Of a memfd: a page of guest_memfd isn't on an LRU list, and can't be poisoned (EBUSY)."""
    fd = memfd
    bind_range(fd, 0, SIZE, MemPolicy("bind", frozenset({2})))
    allocate(fd, 0, SIZE)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        window.populate_read(0, SIZE)
    for page in (3, 700):
        poison(fd, page)
    before = cachestat(fd, 0, SIZE)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        scan = scan_window(window, 0, SIZE, per_page=True)
    assert cachestat(fd, 0, SIZE) == before
    assert scan.by_node == {2: 1022}
    assert scan.errors == {EHWPOISON: 2}
    assert [page for page, node in enumerate(scan.nodes or []) if node != 2] == [3, 700]


@pytest.fixture
def pools() -> Iterator[Callable[[int, int], None]]:
    """Makes pools of 2 MiB pages on nodes."""
    files: list[Path] = []

    def make(node: int, pages: int) -> None:
        pool = Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
        files.append(pool)
        pool.write_text(str(pages))
        assert int(pool.read_text()) == pages

    yield make
    for pool in files:
        pool.write_text("0")


def test_huge_pages_on_several_nodes(pools: Callable[[int, int], None]) -> None:
    pools(1, 4)
    pools(3, 4)
    fd = create_memfd("huge", 16 * HUGE, page_size=HUGE)
    before = get_task_policy()
    try:
        for node, page in ((1, 2), (3, 9)):
            set_task_policy(MemPolicy("bind", frozenset({node})))
            allocate(fd, page * HUGE, 3 * HUGE)
    finally:
        set_task_policy(before)
    punch_hole(fd, 3 * HUGE, HUGE)
    scan = scan_huge_window(fd, 0, 16 * HUGE, HUGE, per_page=True)
    assert (scan.resident_pages, scan.by_node) == (5, {1: 2, 3: 3})
    found = {page: node for page, node in enumerate(scan.nodes or []) if node != ABSENT}
    assert found == {2: 1, 4: 1, 9: 3, 10: 3, 11: 3}
    assert os.fstat(fd).st_blocks * 512 == 5 * HUGE
    os.close(fd)
