"""What a scan does beside counting: what it can't see, when it stops, what it notices."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.asked import Asked
from gmemd.audit.scan import AuditStoppedError, scan_region
from gmemd.audit.vm import AuditedRegion, audit_vm
from gmemd.kernel.errors import injected_failure
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.kvm import GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.audit.model import RegionAudit
    from gmemd.kernel.kvm import KvmVm

SIZE = 16 * MIB
HUGE = 2 * MIB


def scan(fd: int, **options: object) -> RegionAudit:
    return scan_region(fd, guest_node=0, index=0, size_bytes=SIZE, page_size=PAGE, **options)


def scan_huge(fd: int) -> RegionAudit:
    return scan_region(fd, guest_node=0, index=0, size_bytes=8 * HUGE, page_size=HUGE)


@pytest.fixture
def huge_fd() -> Iterator[int]:
    """A hugetlb memfd of eight pages of 2 MiB, from a pool that is made and given back."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = int(pool.read_text()) if pool.exists() else 0
    try:
        pool.write_text(f"{before + 8}\n")
    except OSError as error:
        pytest.skip(f"no pool of huge pages can be made: {error}")
    fd = create_memfd("huge", 8 * HUGE, page_size=HUGE)
    yield fd
    os.close(fd)
    pool.write_text(f"{before}\n")


@pytest.fixture
def memory(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SIZE)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("audited", SIZE)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (0, "made without the MMAP flag"),
        (GUEST_MEMFD_MMAP, "private to the guest"),
    ],
)
def test_what_cannot_be_read_is_unknown_and_counted(vm: KvmVm, flags: int, reason: str) -> None:
    fd = vm.create_guest_memfd(SIZE, flags)
    allocate(fd, 3 * MIB, 5 * MIB)
    found = scan(fd, window_bytes=2 * MIB)
    assert found.resident_bytes == found.unknown_bytes == 5 * MIB
    assert found.by_node == {}
    assert found.errors == {}
    assert reason in found.unknown_reason
    assert cachestat(fd, 0, SIZE).pages == 5 * MIB // PAGE
    os.close(fd)


def test_confidential_memory_is_counted_and_never_mapped_for_reading(memory: Memory) -> None:
    memory.touch(0, 256)
    with injected_failure("madvise", 5), injected_failure("scan", 5):
        found = memory.scan(readable=False)
    assert found.resident_bytes == found.unknown_bytes == MIB
    assert "confidential" in found.unknown_reason
    assert found.policy is not None


def test_a_window_that_fails_is_unknown_and_the_others_are_seen(memory: Memory) -> None:
    memory.touch(0, 4096)
    with injected_failure("scan", 12, after=3):
        found = memory.scan(window_bytes=2 * MIB)
    assert found.unknown_bytes == 2 * MIB
    assert sum(found.by_node.values()) == 14 * MIB
    assert found.errors == {"enomem": 1}
    assert "ENOMEM" in found.unknown_reason


def test_memfds_are_exact_too(memfd: int) -> None:
    os.pwrite(memfd, b"x", 9 * PAGE)
    allocate(memfd, 2 * MIB, MIB)
    found = scan(memfd)
    assert found.resident_bytes == sum(found.by_node.values()) == MIB + PAGE
    assert cachestat(memfd, 0, SIZE).pages == 257


def test_huge_pages_are_exact_and_holes_stay_holes(huge_fd: int) -> None:
    allocate(huge_fd, 2 * HUGE, 3 * HUGE)
    found = scan_huge(huge_fd)
    assert found.resident_bytes == sum(found.by_node.values()) == 3 * HUGE
    assert os.fstat(huge_fd).st_blocks * 512 == 3 * HUGE
    assert (found.errors, found.exact, found.policy) == ({}, True, None)


def test_huge_pages_that_cannot_be_seen_are_unknown_and_counted(huge_fd: int) -> None:
    allocate(huge_fd, 0, 3 * HUGE)
    with injected_failure("scan of huge pages", errno.EPERM):
        found = scan_huge(huge_fd)
    assert found.resident_bytes == found.unknown_bytes == 3 * HUGE
    assert found.errors == {"eperm": 1}
    assert "EPERM" in found.unknown_reason


def test_it_stops_between_two_windows(memory: Memory) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def progress(length: int) -> None:
        seen.append(length)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(AuditStoppedError):
        memory.scan(window_bytes=2 * MIB, stop=stop, progress=progress)
    assert seen == [2 * MIB] * 3


@pytest.mark.parametrize("change", ["touch", "punch"])
def test_a_residency_that_changes_is_an_error_of_idle_regions_only(
    memory: Memory, change: str
) -> None:
    def meddle(_length: int) -> None:
        getattr(memory, change)(10, 1)

    memory.touch(8, 1 if change == "touch" else 4)
    assert memory.scan(progress=meddle).errors == {"residency_changed": 1}
    memory.punch(0, 4096)
    memory.touch(8, 1 if change == "touch" else 4)
    assert memory.scan(progress=meddle, idle=False).errors == {}


def test_the_interpreter_goes_on_meanwhile(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(256 * MIB)
    memory.allocate(0, 256 * MIB // PAGE)
    ticks: list[int] = []
    done = threading.Event()

    def scan_it() -> None:
        memory.scan(window_bytes=256 * MIB)
        done.set()

    scanning = threading.Thread(target=scan_it)
    scanning.start()
    while not done.wait(0.001):
        ticks.append(1)
    scanning.join()
    assert len(ticks) > 10


def plan(index: int, *, strategy: Strategy = Strategy.INODE_POLICY) -> RegionPlan:
    return RegionPlan(
        vm="db-01",
        guest_node=index,
        index=0,
        size_bytes=SIZE,
        backend=Backend.GUEST_MEMFD,
        page_size=PAGE,
        policy=PolicyMode.BIND,
        host_nodes=frozenset({0}),
        strategy=strategy,
        reason="",
        prefault=False,
    )


def test_a_vm_is_all_its_regions(make_memory: Callable[[int], Memory], tmp_path: Path) -> None:
    memories = [make_memory(SIZE), make_memory(SIZE)]
    memories[0].touch(0, 10)
    memories[1].allocate(5, 20)
    (tmp_path / "memory.numa_stat").write_text("anon N0=5 N1=0\nfile N0=4096 N1=8192\n")
    steps: list[tuple[int, int]] = []
    found = audit_vm(
        "db-01",
        [
            AuditedRegion(memories[0].fd, plan(0)),
            AuditedRegion(memories[1].fd, plan(1, strategy=Strategy.PROXY_ALLOCATION)),
        ],
        progress=lambda done, total: steps.append((done, total)),
        counters_cgroup=tmp_path,
    )
    assert [(seen.guest_node, seen.resident_bytes) for seen in found.regions] == [
        (0, 10 * PAGE),
        (1, 20 * PAGE),
    ]
    assert found.regions[0].policy is not None
    assert found.regions[1].policy is None
    assert steps == [(SIZE, 2 * SIZE), (2 * SIZE, 2 * SIZE)]
    assert found.counters == {0: 4096, 1: 8192}
    assert found.cpu_seconds > 0
    assert found.duration_seconds > 0


@pytest.mark.parametrize("source", ["guest_memfd", "memfd"])
def test_a_vm_is_looked_at_as_is_asked(
    make_memory: Callable[[int], Memory], memfd: int, source: str
) -> None:
    fd = make_memory(SIZE).fd if source == "guest_memfd" else memfd
    allocate(fd, 0, SIZE // 2)
    for idle in (True, False):
        regions = [AuditedRegion(fd, plan(0))]
        whole = audit_vm("db-01", regions, idle=idle)
        by_many = audit_vm("db-01", regions, idle=idle, asked=Asked(full=True, jobs=3))
        assert [replace(seen, verified_timestamp=None) for seen in by_many.regions] == [
            replace(seen, verified_timestamp=None) for seen in whole.regions
        ]
        assert by_many.cpu_seconds > 0
        asked = Asked(sample_pages=256, margin=0.06, confidence=0.9)
        (drawn,) = audit_vm("db-01", regions, idle=idle, asked=asked).regions
        assert drawn.sample is not None
        assert (drawn.sample.margin, drawn.sample.confidence) == (0.06, 0.9)
        assert 256 <= sum(drawn.sample.by_node.values()) <= 300
        assert drawn.resident_bytes == pytest.approx(SIZE / 2, rel=0.2)
        assert drawn.verified_timestamp is None


def test_counters_that_are_not_there_are_none(memory: Memory, tmp_path: Path) -> None:
    regions = [AuditedRegion(memory.fd, plan(0))]
    found = audit_vm("db-01", regions, counters_cgroup=tmp_path / "gone")
    assert (found.counters, found.counters_cgroup) == (None, "")
