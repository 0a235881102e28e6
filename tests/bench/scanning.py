"""What looking at memory that gmemd holds costs, beside the system calls alone in C.

In CPU time, which other work on the machine changes least; ratios are medians of repeats, gmemd's
and the floor's in turn. The memory is looked at as that of a running VM: of memory that nobody
uses, what was read would be counted once more.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.audit.budget import CpuBudget
from gmemd.audit.held import sample_region
from gmemd.audit.kept import KeptWindows
from gmemd.audit.rolling import RollingRegion, RollingScan
from gmemd.audit.sampling import draw_pages
from gmemd.audit.scan import scan_region
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.pages import cachestat
from tests.bench.rows import Row, Step, compared, repeats_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gmemd.audit.kept import Look
    from gmemd.audit.model import RegionAudit

SOURCE = Path(__file__).with_name("floor.c")
SECTION = "looking at memory that gmemd holds"
SAMPLE_PAGES = 4096
CHANGED_PAGES = 256
EVERY_PAGE = "every page"
KEPT = "every page again, kept"
CHANGED = f"the same, {CHANGED_PAGES} pages made anew"
SAMPLE = f"sample of {SAMPLE_PAGES} pages"
IDLE = "pages that audits made in holes"
SHARE = "rolling scan, asked for 1 %"
CALLS = "C: cachestat, POPULATE_READ, move_pages"
NUMA_MAPS = "C: numa_maps of one mapping"
FLOORS = {EVERY_PAGE: CALLS, KEPT: NUMA_MAPS, CHANGED: NUMA_MAPS, SAMPLE: CALLS}
TARGETS = {EVERY_PAGE: "<= 1.10", KEPT: "<= 1.15", CHANGED: "<= 1.15", SAMPLE: "<= 1.50"}
IDLE_MIB = 256
ROLLING_MIB = 512
ROLLING_SHARE = 0.01
ROLLING_SECONDS = 20.0
_AT_A_TIME = 256 << 20


def steps(folder: Path, sizes: Sequence[int]) -> list[Step]:
    """What is measured, in order."""
    program = build(folder)
    return [
        *(Step(SECTION, f"{size} MiB", partial(compare, program, size)) for size in sizes),
        Step(SECTION, f"{ROLLING_SECONDS:.0f} s of a rolling scan", lambda: [rolling()]),
        Step(SECTION, "memory with holes", lambda: [idle()]),
    ]


def build(folder: Path) -> Path:
    """Compiles the floor."""
    program = folder / "floor"
    subprocess.run(["gcc", "-O2", "-o", program, SOURCE], check=True)
    return program


@contextmanager
def touched_guest_memfd(mebibytes: int) -> Iterator[int]:
    """A guest_memfd of which every page was touched. Raises KernelError where there is none."""
    size = mebibytes << 20
    with Kvm() as kvm, kvm.create_vm() as vm:
        fd = vm.create_guest_memfd(size, GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
    try:
        for at in range(0, size, _AT_A_TIME):
            length = min(_AT_A_TIME, size - at)
            with Mapping(fd, at, length, protection="read-write") as window:
                window.populate_write(0, length)
        yield fd
    finally:
        os.close(fd)


def compare(program: Path, mebibytes: int, *, repeats: int = 0) -> list[Row]:
    """Each way to look beside its floor; raises AssertionError if one counts wrong."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in FLOORS}
    with (
        touched_guest_memfd(mebibytes) as fd,
        _Recording(8 << 20 << max(0, mebibytes.bit_length() - 10)) as kept,
    ):
        looks = _Looks(program, fd, mebibytes << 20, kept)
        with looks.mapped_floor() as read_numa_maps:
            looks.every_page(kept)
            for seed in range(repeats or repeats_for(mebibytes)):
                rng = random.Random(seed)
                again = partial(looks.every_page, kept)
                floor = looks.run_floor("scan")
                seconds[EVERY_PAGE].append((looks.timed(looks.every_page), floor))
                floor = read_numa_maps()
                kept.found.clear()
                seconds[KEPT].append((looks.timed(again), floor))
                assert not kept.found, "nothing was made anew"
                changed = looks.change(rng)
                floor = read_numa_maps()
                seconds[CHANGED].append((looks.timed(again), floor))
                assert kept.found == changed, "exactly what was punched and made again is found"
                pages = draw_pages(looks.pages, SAMPLE_PAGES, rng)
                floor = looks.run_floor("sample", SAMPLE_PAGES, given=pages.tobytes())
                seconds[SAMPLE].append((looks.timed(partial(looks.sample, rng)), floor))
    return [
        compared(
            pairs,
            section=SECTION,
            what=way,
            mebibytes=mebibytes,
            beside=FLOORS[way],
            unit="CPU ms",
            target=TARGETS[way],
        )
        for way, pairs in seconds.items()
    ]


def rolling(seconds: float = ROLLING_SECONDS) -> Row:
    """The share of a CPU that a rolling scan takes, by the kernel's own count for its thread.

    From one moment at which it may look to another, so that what it was given is whole.
    """
    with touched_guest_memfd(ROLLING_MIB) as fd:
        scan = RollingScan(CpuBudget(ROLLING_SHARE))
        scan.add("bench", RollingRegion(fd, 0, 0, ROLLING_MIB << 20, PAGE_SIZE))
        begun, used = time.monotonic(), time.thread_time()
        while time.monotonic() < begun + seconds:
            time.sleep(scan.step())
        took, used = time.monotonic() - begun, time.thread_time() - used
    return Row(
        SECTION,
        SHARE,
        None,
        100 * used / took,
        "% of a CPU",
        theirs=100 * ROLLING_SHARE,
        ratio=used / took / ROLLING_SHARE,
        beside=f"what it was allowed, over {took:.0f} s",
        target="0.9-1.1",
    )


def idle(mebibytes: int = IDLE_MIB) -> Row:
    """Pages that came about while every kind of audit looked at memory full of holes."""
    size = mebibytes << 20
    allocated, audits = 0, 0
    with ExitStack() as open_files:
        with Kvm() as kvm, kvm.create_vm() as vm:
            private = vm.create_guest_memfd(size, GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
        for fd in (private, create_memfd("bench", size)):
            open_files.callback(os.close, fd)
            _fill_partly(fd, size)
            kept = open_files.enter_context(KeptWindows(8 << 20))
            before = cachestat(fd, 0, size).cache
            for audit in _audits(fd, size, kept):
                audit()
                audits += 1
                allocated += cachestat(fd, 0, size).cache - before
            assert 0 < before < size // PAGE_SIZE
    return Row(
        SECTION,
        IDLE,
        mebibytes,
        allocated,
        "pages",
        beside=f"{audits} audits of a guest_memfd and a memfd, cachestat before and after",
        target="0",
    )


def _fill_partly(fd: int, size: int) -> None:
    """Some of it touched, some allocated and never touched, holes between all of these."""
    piece, page = size // 64, PAGE_SIZE
    for at in range(0, size, 4 * piece):
        with Mapping(fd, at, piece, protection="read-write") as window:
            window.populate_write(0, piece)
        allocate(fd, at + 2 * piece, piece)
        for hole in range(at, at + 3 * piece, 64 * page):
            punch_hole(fd, hole, page)


def _audits(fd: int, size: int, kept: KeptWindows) -> Iterator[Callable[[], object]]:
    """Every kind of look that there is, each as of memory that nobody uses."""
    scan = partial(
        scan_region, fd, guest_node=0, index=0, size_bytes=size, page_size=PAGE_SIZE, idle=True
    )
    yield scan
    yield partial(scan, kept=kept)
    yield partial(scan, kept=kept)
    yield partial(
        sample_region,
        fd,
        guest_node=0,
        index=0,
        size_bytes=size,
        sample_pages=SAMPLE_PAGES,
        rng=random.Random(7),
    )
    going = RollingScan(CpuBudget(1.0))
    going.add("bench", RollingRegion(fd, 0, 0, size, PAGE_SIZE, idle=True))
    yield partial(going.scan_now, "bench")


class _Recording(KeptWindows):
    """Kept windows that note the pages which were read again."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__(budget_bytes)
        self.found: set[int] = set()

    def look(self, fd: int, offset: int, length: int) -> Look | None:
        seen = super().look(fd, offset, length)
        assert seen is not None, "the budget is large enough"
        for first, count in seen.runs:
            self.found.update(range(first, first + count))
        return seen


class _Looks:
    """gmemd's looks at a guest_memfd, and the floor's."""

    def __init__(self, program: Path, fd: int, size_bytes: int, kept: KeptWindows) -> None:
        self.pages = size_bytes // PAGE_SIZE
        self._program = program
        self._fd = fd
        self._size_bytes = size_bytes
        self._kept = kept

    def timed(self, look: Callable[[], RegionAudit]) -> float:
        """CPU seconds of a look, which must have seen everything."""
        begun = time.thread_time()
        found = look()
        seconds = time.thread_time() - begun
        assert sum(found.by_node.values()) == self._size_bytes, found
        assert not found.errors, found
        return seconds

    def every_page(self, kept: KeptWindows | None = None) -> RegionAudit:
        return scan_region(
            self._fd,
            guest_node=0,
            index=0,
            size_bytes=self._size_bytes,
            page_size=PAGE_SIZE,
            idle=False,
            kept=kept,
        )

    def sample(self, rng: random.Random) -> RegionAudit:
        return sample_region(
            self._fd,
            guest_node=0,
            index=0,
            size_bytes=self._size_bytes,
            sample_pages=SAMPLE_PAGES,
            rng=rng,
            idle=False,
        )

    def change(self, rng: random.Random) -> set[int]:
        """Punches pages and makes them again: which."""
        changed = set(rng.sample(range(self.pages), CHANGED_PAGES))
        for page in changed:
            punch_hole(self._fd, page * PAGE_SIZE, PAGE_SIZE)
            allocate(self._fd, page * PAGE_SIZE, PAGE_SIZE)
        return changed

    def run_floor(self, way: str, *more: int, given: bytes = b"") -> float:
        """CPU seconds of one look by the floor."""
        argv = [self._program, way, str(self._fd), str(self._size_bytes), *map(str, more)]
        ended = subprocess.run(
            argv, input=given, stdout=subprocess.PIPE, pass_fds=[self._fd], check=True
        )
        return self._told(ended.stdout.decode(), SAMPLE_PAGES if more else self.pages)

    @contextmanager
    def mapped_floor(self) -> Iterator[Callable[[], float]]:
        """A floor that has mapped everything; a call is one look at its numa_maps."""
        argv = [self._program, "mapped", str(self._fd), str(self._size_bytes)]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[self._fd]
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            asked, told = process.stdin, process.stdout
            assert told.readline() == "ready\n"

            def look() -> float:
                print(file=asked, flush=True)
                return self._told(told.readline(), 0)

            yield look
            asked.close()

    @staticmethod
    def _told(line: str, pages: int) -> float:
        nanoseconds, seen = map(int, line.split())
        assert seen >= pages, line
        return nanoseconds / 1e9
