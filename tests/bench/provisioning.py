"""What allocating memory costs gmemd, beside fallocate() alone in C and beside QEMU.

Times are from the call to its return: of gmemd with the helper's start, the guards' looks and the
check afterwards, of the C program with its start, of a running QEMU without. Ratios are medians of
repeats taken in turn.

QEMU's preallocation writes to each page, which zeroes it; fallocate() leaves that to whoever
touches the page first. So QEMU's time says how long its VM waits, not how slow it does the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.host.zones import placeable
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.guard import Guard
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, prefault
from tests.bench.rows import Step, compared, repeats_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.rows import Row

SOURCE = Path(__file__).with_name("provision.c")
QEMU = "qemu-system-x86_64"
SECTION = "allocating memory"
FLOOR = "C: fallocate on as many threads"
OURS = "gmemd"
LEAST_OF_FLOOR = 0.95
"""Of its throughput, from `LARGE_MIB` on: below it the helper's start shows."""
LARGE_MIB = 4096
AT_ONCE = 4
_CHUNK_BYTES = 64 << 20
_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Case:
    """What is allocated: files of one kind and size, each by so many threads."""

    backend: str
    mebibytes: int
    threads: int
    at_once: int = 1

    @property
    def size_bytes(self) -> int:
        return self.mebibytes << 20

    @property
    def what(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        files = f"{self.at_once} at once, each by " if self.at_once > 1 else ""
        return f"{self.backend}, {files}{threads}"


def build(folder: Path) -> Path:
    """Compiles the floor."""
    program = folder / "provision"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, SOURCE], check=True)
    return program


def steps(folder: Path, sizes: Sequence[int]) -> list[Step]:
    """What is measured, in order."""
    program = build(folder)
    qemu = shutil.which(QEMU) is not None
    return [
        Step(
            SECTION,
            f"{case.mebibytes * case.at_once} MiB: {case.what}",
            partial(_rows, program, case, qemu=qemu),
        )
        for size in sizes
        for case in cases(size)
    ]


def cases(mebibytes: int) -> list[Case]:
    """What is compared at that size: one thread and one per CPU, one file and several.

    All of a large size would take minutes, and say little more.
    """
    most = min(4, len(os.sched_getaffinity(0)))
    alone = [Case("guest_memfd", mebibytes, threads) for threads in sorted({1, most})]
    if mebibytes > LARGE_MIB:
        return alone
    several = Case("guest_memfd", max(1, mebibytes // AT_ONCE), most, at_once=AT_ONCE)
    return [*alone, several, Case("memfd", mebibytes, 1)]


def _rows(program: Path, case: Case, *, qemu: bool) -> list[Row]:
    size = case.mebibytes * case.at_once
    times = measure(program, case, qemu=qemu, repeats=repeats_for(size))
    ours = times.pop(OURS)
    return [
        compared(
            list(zip(ours, others, strict=True)),
            section=SECTION,
            what=case.what,
            mebibytes=size,
            beside=way,
            target=_target(way, size),
        )
        for way, others in times.items()
    ]


def _target(way: str, mebibytes: int) -> str:
    """The most that gmemd's time may be of the other's."""
    if way != FLOOR:
        return "<= 1.00"
    return f"<= {1 / LEAST_OF_FLOOR:.2f}" if mebibytes >= LARGE_MIB else ""


def measure(program: Path, case: Case, *, qemu: bool, repeats: int) -> dict[str, list[float]]:
    """Seconds of gmemd, of the floor and, for one memfd, of QEMU, in turn."""
    ways: dict[str, Callable[[], float]] = {
        FLOOR: lambda: _on_files(case, lambda fds: _floor(program, fds, case)),
        OURS: lambda: _on_files(case, lambda fds: _gmemd(fds, case)),
    }
    if qemu and case.backend == "memfd":
        threads = len(os.sched_getaffinity(0))
        ways[f"{QEMU}, prealloc-threads={threads}"] = lambda: _qemu(case.size_bytes, threads)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in list(ways) if repeat % 2 else reversed(ways):
            times[way].append(ways[way]())
    return times


def _on_files(case: Case, way: Callable[[Sequence[int]], None]) -> float:
    with _files(case) as fds:
        begun = time.perf_counter()
        way(fds)
        return time.perf_counter() - begun


@contextmanager
def _files(case: Case) -> Iterator[list[int]]:
    """Files without a page."""
    sizes = [case.size_bytes] * case.at_once
    if case.backend == "guest_memfd":
        fds = create_guest_memfds(sizes, flags=GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
    else:
        fds = [create_memfd("bench", size) for size in sizes]
    with ExitStack() as opened:
        for fd in fds:
            opened.callback(os.close, fd)
        yield fds


def _floor(program: Path, fds: Sequence[int], case: Case) -> None:
    told = [case.size_bytes, case.threads, _CHUNK_BYTES]
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [program, str(fd), *map(str, told), "fallocate"],
                    pass_fds=[fd],
                    stdout=subprocess.DEVNULL,
                )
            )
            for fd in fds
        ]
        assert not any(process.wait() for process in processes)


def _gmemd(fds: Sequence[int], case: Case) -> None:
    """As the daemon does it: one prefault for each, with all guards on."""
    guard = Guard(dict.fromkeys(placeable(), _RESERVE_BYTES), movable=case.backend == "memfd")
    cpus = frozenset(os.sched_getaffinity(0))

    def allocate(fd: int) -> None:
        job = PrefaultJob(
            fd=fd,
            offset=0,
            length=case.size_bytes,
            page_size=PAGE_SIZE,
            guard=guard,
            task_policy=MemPolicy("default"),
            cpus=cpus,
            any_cpus=cpus,
            n_threads=case.threads,
        )
        result = prefault(job, progress=lambda _: None, cancel=threading.Event())
        assert result.outcome is PrefaultOutcome.COMPLETE, result

    with ThreadPoolExecutor(len(fds)) as pool:
        list(pool.map(allocate, fds))


def _qemu(size_bytes: int, threads: int) -> float:
    """A running QEMU is asked for a memory backend, and timed until it has it."""
    command = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(name: str, **arguments: object) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "return" in answer, answer

        process.stdout.readline()
        ask("qmp_capabilities")
        begun = time.perf_counter()
        backend = {"qom-type": "memory-backend-memfd", "id": "memory", "size": size_bytes}
        ask("object-add", **backend, prealloc=True, **{"prealloc-threads": threads})
        taken = time.perf_counter() - begun
        process.kill()
    return taken
