import ctypes
import errno
import os
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmemd.kernel.errors import KernelError, injected_failure
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_MMAP, KvmVm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import (
    ABSENT,
    cachestat,
    mincore_is_honest,
    move_pages_move,
    move_pages_query,
    query_range,
    scan_huge_window,
    scan_window,
)

pytestmark = pytest.mark.needs("cachestat")

PAGE = 4096
HUGE = 2 << 20
SIZE = 16 << 20
LIBC = ctypes.CDLL(None)
MADV_PAGEOUT = 21
PAGES = SIZE // PAGE


def resident(fd: int, **options: bool) -> set[int]:
    """The pages that a scan of the whole file finds; cachestat is the same afterwards."""
    before = cachestat(fd, 0, SIZE)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        scan = scan_window(window, 0, SIZE, per_page=True, **options)
    assert cachestat(fd, 0, SIZE) == before
    assert scan.nodes is not None
    assert sum(scan.by_node.values()) == scan.resident_pages
    assert scan.errors == {}
    found = {page for page, node in enumerate(scan.nodes) if node != ABSENT}
    assert len(found) == scan.resident_pages
    return found


def touch(fd: int, page: int, count: int) -> None:
    with Mapping(fd, page * PAGE, count * PAGE, protection="read-write") as window:
        window.populate_write(0, count * PAGE)


def fill(fd: int, page: int, count: int) -> None:
    allocate(fd, page * PAGE, count * PAGE)


def punch(fd: int, page: int, count: int) -> None:
    punch_hole(fd, page * PAGE, count * PAGE)


def test_an_empty_file_has_no_resident_page(fd: int) -> None:
    assert resident(fd) == set()
    assert resident(fd, use_cachestat=False) == set()


@pytest.mark.parametrize("act", [touch, fill])
def test_a_full_file_is_all_resident(fd: int, act: Callable[[int, int, int], None]) -> None:
    act(fd, 0, PAGES)
    assert resident(fd) == set(range(PAGES))


def test_pages_never_touched_are_seen_by_cachestat_alone(fd: int) -> None:
    touch(fd, 0, 3)
    fill(fd, 100, 7)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        by_mincore = scan_window(window, 0, SIZE, use_cachestat=False)
        assert (by_mincore.method, by_mincore.resident_pages) == ("mincore", 3)
        by_cachestat = scan_window(window, 0, SIZE)
        assert (by_cachestat.method, by_cachestat.resident_pages) == ("cachestat", 10)


steps = st.lists(
    st.tuples(
        st.sampled_from([touch, fill, punch]),
        st.integers(0, PAGES - 1),
        st.sampled_from([1, 1, 2, 3, 17, 64, 500, 600]),
    ),
    max_size=25,
)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps)
def test_any_pattern_is_found_exactly(
    fd: int, steps: list[tuple[Callable[[int, int, int], None], int, int]]
) -> None:
    punch(fd, 0, PAGES)
    expected: set[int] = set()
    for act, page, wanted in steps:
        count = min(wanted, PAGES - page)
        act(fd, page, count)
        span = set(range(page, page + count))
        expected = expected - span if act is punch else expected | span
    assert resident(fd) == expected


def test_a_window_inside_a_mapping_inside_a_file(fd: int) -> None:
    fill(fd, 1000, 24)
    with Mapping(fd, 990 * PAGE, 1000 * PAGE, protection="read") as window:
        scan = scan_window(window, 5 * PAGE, 10 * PAGE, per_page=True)
        assert [node >= 0 for node in scan.nodes or []] == [False] * 5 + [True] * 5
        with pytest.raises(ValueError, match="outside"):
            scan_window(window, 999 * PAGE, 2 * PAGE)
        assert scan_window(window, 0, 0).resident_pages == 0


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_private_pages_are_resident_and_unseen(vm: KvmVm) -> None:
    fd = vm.create_guest_memfd(SIZE, GUEST_MEMFD_MMAP)
    fill(fd, 7, 600)
    with Mapping(fd, 0, SIZE, protection="read") as window:
        scan = scan_window(window, 0, SIZE, per_page=True)
    os.close(fd)
    assert (scan.resident_pages, scan.by_node, scan.errors) == (600, {}, {errno.EFAULT: 600})
    assert scan.nodes is not None
    assert list(scan.nodes[6:8]) == [ABSENT, -errno.EFAULT]


def test_who_may_not_write_the_file_is_told_so(memfd: int) -> None:
    os.fchmod(memfd, 0o600)
    touch(memfd, 0, 1)
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    assert mincore_is_honest(memfd)
    os.seteuid(65534)
    try:
        assert not mincore_is_honest(read_only)
        with (
            Mapping(read_only, 0, SIZE, protection="read") as window,
            pytest.raises(KernelError) as caught,
        ):
            scan_window(window, 0, SIZE)
    finally:
        os.seteuid(0)
        os.close(read_only)
    assert caught.value.errno_name == "EPERM"
    assert cachestat(memfd, 0, SIZE).pages == 1


@pytest.mark.usefixtures("as_nobody")
def test_a_writable_fd_is_enough_for_a_stranger(memfd: int) -> None:
    fill(memfd, 3, 5)
    assert resident(memfd) == set(range(3, 8))


def test_huge_pages_are_found_and_never_made(huge_fd: int) -> None:
    allocate(huge_fd, 0, 3 * HUGE)
    punch_hole(huge_fd, HUGE, HUGE)
    with Mapping(huge_fd, 6 * HUGE, HUGE, protection="read-write", noreserve=True) as window:
        window.populate_write(0, HUGE)
    blocks = os.fstat(huge_fd).st_blocks
    scan = scan_huge_window(huge_fd, 0, 8 * HUGE, HUGE, per_page=True)
    assert (scan.method, scan.resident_pages) == ("continue", 3)
    assert sum(scan.by_node.values()) == 3
    assert scan.nodes is not None
    assert [node >= 0 for node in scan.nodes] == [True, False, True] + [False] * 3 + [True, False]
    assert os.fstat(huge_fd).st_blocks == blocks == 3 * HUGE // 512
    with Mapping(huge_fd, 0, 8 * HUGE, noreserve=True) as window:
        assert scan_window(window, 2 * HUGE, 4 * HUGE, HUGE).resident_pages == 1


def test_huge_pages_have_no_cachestat(huge_fd: int) -> None:
    with pytest.raises(KernelError) as caught:
        cachestat(huge_fd, 0, HUGE)
    assert caught.value.errno_name == "EOPNOTSUPP"
    with (
        Mapping(huge_fd, 0, HUGE, protection="read", noreserve=True) as window,
        pytest.raises(KernelError, match="EOPNOTSUPP"),
    ):
        scan_window(window, 0, HUGE)
    with pytest.raises(KernelError, match="EINVAL"):
        scan_huge_window(huge_fd, PAGE, HUGE, HUGE)


def test_a_filtered_userfaultfd_names_seccomp(huge_fd: int) -> None:
    with (
        injected_failure("scan of huge pages", errno.EPERM),
        pytest.raises(KernelError) as caught,
    ):
        scan_huge_window(huge_fd, 0, HUGE, HUGE)
    assert "userfaultfd" in str(caught.value.hint)


def test_a_query_tells_node_hole_and_nowhere(fd: int) -> None:
    with Mapping(fd, 0, 600 * PAGE, protection="read-write") as window:
        window.populate_write(0, 599 * PAGE)
        asked = [window.at(0), window.at(599 * PAGE), 4096]
        node, hole, nowhere = move_pages_query(0, asked)
        assert node >= 0
        assert (hole, nowhere) == (-errno.ENOENT, -errno.EFAULT)
        *nodes, last = query_range(window.address, 600)
        assert min(nodes) >= 0
        assert last == -errno.ENOENT


def test_a_query_of_nothing_is_nothing() -> None:
    assert len(move_pages_query(0, [])) == 0
    assert len(query_range(0, 0)) == 0


def test_a_query_of_a_stranger_needs_ptrace(
    stranger: Callable[[Callable[[], object]], str],
) -> None:
    assert "move_pages: EPERM" in stranger(lambda: move_pages_query(1, [4096]))


def test_a_move_tells_where_each_page_is_then(fd: int) -> None:
    with Mapping(fd, 0, 4 * PAGE, protection="read-write") as window:
        window.populate_write(0, 2 * PAGE)
        addresses = [window.at(page * PAGE) for page in range(3)]
        there = move_pages_query(0, addresses)
        assert list(move_pages_move(0, addresses, [*there[:2], 0])) == list(there)
        with pytest.raises(KernelError, match="ENODEV"):
            move_pages_move(0, addresses, [1000, 0, 0])
        with pytest.raises(ValueError, match="one node per address"):
            move_pages_move(0, addresses, [0])


def test_cachestat_of_an_empty_range_counts_nothing(memfd: int) -> None:
    fill(memfd, 0, 1)
    assert cachestat(memfd, 0, 0).pages == 0


def test_cachestat_for_those_who_may_write_only(memfd: int) -> None:
    os.fchmod(memfd, 0o600)
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    os.seteuid(65534)
    try:
        with pytest.raises(KernelError) as caught:
            cachestat(read_only, 0, SIZE)
    finally:
        os.seteuid(0)
        os.close(read_only)
    assert caught.value.errno_name == "EPERM"


def test_transparent_huge_pages_are_counted_in_base_pages() -> None:
    fd = create_memfd("thp", SIZE)
    with Mapping(fd, 0, SIZE, protection="read-write") as window:
        window.populate_write(0, SIZE)
        punch(fd, 5, 1)
        assert scan_window(window, 0, SIZE).resident_pages == PAGES - 1
    os.close(fd)


def test_what_the_kernel_tries_to_write_back_is_no_hole(memfd: int) -> None:
    """Reclaim unmaps a page before it finds that there is no swap for it."""
    fill(memfd, 0, PAGES)
    stop = threading.Event()
    with Mapping(memfd, 0, SIZE, protection="read") as window:

        def reclaim() -> None:
            while not stop.is_set():
                LIBC.madvise(ctypes.c_void_p(window.address), ctypes.c_size_t(SIZE), MADV_PAGEOUT)

        thread = threading.Thread(target=reclaim)
        thread.start()
        try:
            scans = [scan_window(window, 0, SIZE) for _ in range(100)]
        finally:
            stop.set()
            thread.join()
    assert {scan.resident_pages for scan in scans} == {PAGES}
    assert {number for scan in scans for number in scan.errors} <= {errno.EAGAIN}
    assert max(sum(scan.errors.values()) for scan in scans) < PAGES // 10
