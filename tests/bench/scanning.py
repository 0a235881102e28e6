"""What looking at a guest_memfd's pages costs gmemd, beside the system calls alone in C.

In CPU time, which other work on the machine changes least; ratios are medians of repeats, gmemd's
and the floor's in turn. The memory is looked at as that of a running VM: of memory that nobody
uses, what was read would be counted once more.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.audit.held import sample_region
from gmemd.audit.kept import KeptWindows
from gmemd.audit.sampling import draw_pages
from gmemd.audit.scan import scan_region
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gmemd.audit.model import RegionAudit

SOURCE = Path(__file__).with_name("floor.c")
REPEATS = 7
SAMPLE_PAGES = 4096
CHANGED_PAGES = 256
EVERY_PAGE = "every page"
KEPT = "every page, kept"
CHANGED = f"kept, {CHANGED_PAGES} made anew"
SAMPLE = f"sample of {SAMPLE_PAGES}"
FLOORS = {
    EVERY_PAGE: "cachestat, POPULATE_READ, move_pages",
    KEPT: "numa_maps of one mapping",
    CHANGED: "numa_maps of one mapping",
    SAMPLE: "cachestat, POPULATE_READ, move_pages",
}
_AT_A_TIME = 256 << 20


@dataclass(frozen=True)
class Row:
    """One way to look, at one size: CPU seconds, and how many times the floor's (the median)."""

    way: str
    mebibytes: int
    seconds: float
    floor_seconds: float
    ratio: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


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


def compare(program: Path, mebibytes: int) -> list[Row]:
    """Each way to look beside its floor; raises AssertionError if one counts wrong."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in FLOORS}
    with (
        touched_guest_memfd(mebibytes) as fd,
        KeptWindows(8 << 20 << max(0, mebibytes.bit_length() - 10)) as kept,
    ):
        looks = _Looks(program, fd, mebibytes << 20, kept)
        with looks.mapped_floor() as read_numa_maps:
            looks.every_page(kept)
            for seed in range(REPEATS):
                rng = random.Random(seed)
                floor = looks.run_floor("scan")
                seconds[EVERY_PAGE].append((looks.timed(looks.every_page), floor))
                floor = read_numa_maps()
                seconds[KEPT].append((looks.timed(lambda: looks.every_page(kept)), floor))
                looks.change(rng)
                floor = read_numa_maps()
                seconds[CHANGED].append((looks.timed(lambda: looks.every_page(kept)), floor))
                pages = draw_pages(looks.pages, SAMPLE_PAGES, rng)
                floor = looks.run_floor("sample", SAMPLE_PAGES, given=pages.tobytes())
                seconds[SAMPLE].append((looks.timed(lambda: looks.sample(rng)), floor))  # noqa: B023
    return [_row(way, mebibytes, pairs) for way, pairs in seconds.items()]


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

    def change(self, rng: random.Random) -> None:
        """Punches pages and makes them again."""
        for page in rng.sample(range(self.pages), CHANGED_PAGES):
            punch_hole(self._fd, page * PAGE_SIZE, PAGE_SIZE)
            allocate(self._fd, page * PAGE_SIZE, PAGE_SIZE)

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


def _row(way: str, mebibytes: int, pairs: Sequence[tuple[float, float]]) -> Row:
    ours, floors = zip(*pairs, strict=True)
    ratio = statistics.median(mine / floor for mine, floor in pairs)
    return Row(way, mebibytes, statistics.median(ours), statistics.median(floors), ratio)


def exponent(rows: Sequence[Row], way: str) -> float | None:
    """How cost grows with size: 1 in proportion, 0 not at all; None of fewer than two sizes."""
    points = [(math.log(row.mebibytes), math.log(row.seconds)) for row in rows if row.way == way]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'way to look':24} {'MiB':>6} {'CPU ms':>9} {'ns/page':>8} {'floor':>9} {'ratio':>6}   of"
    ]
    for row in rows:
        pages = SAMPLE_PAGES if row.way == SAMPLE else (row.mebibytes << 20) // PAGE_SIZE
        lines.append(
            f"{row.way:24} {row.mebibytes:>6} {row.seconds * 1e3:>9.2f} "
            f"{row.seconds / pages * 1e9:>8.1f} {row.floor_seconds * 1e3:>9.2f} "
            f"{row.ratio:>6.2f}   {FLOORS[row.way]}"
        )
    for way in FLOORS:
        slope = exponent(rows, way)
        if slope is not None:
            lines.append(f"{way}: cost grows with size to the power of {slope:.2f}")
    return "\n".join(lines)
