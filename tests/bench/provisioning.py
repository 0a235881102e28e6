"""What allocating memory costs gmemd, beside fallocate() alone in C and beside QEMU.

Times are from the call to its return: of gmemd with the helper's start, the guards' looks and the
check afterwards, of the C program with its start. Ratios are medians of repeats taken in turn.

QEMU's preallocation writes to each page, which zeroes it; fallocate() leaves that to whoever
touches the page first. So QEMU's time says how long its VM waits, not how slow it does the same.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.host.zones import placeable
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.guard import Guard
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, prefault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SOURCE = Path(__file__).with_name("provision.c")
QEMU = "qemu-system-x86_64"
REPEATS = 5
AT_ONCE = 4
_CHUNK_BYTES = 64 << 20
_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """One way to allocate so much: medians, and throughput as a multiple of the floor's.

    ``at_once`` is how many files of that size were allocated at the same time. CPU seconds are
    those of all processes together; ``cpu_ratio`` is how many times the floor's.
    """

    way: str
    backend: str
    mebibytes: int
    threads: int
    at_once: int
    seconds: float
    cpu_seconds: float
    throughput_ratio: float
    cpu_ratio: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


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


def build(folder: Path) -> Path:
    """Compiles the floor."""
    program = folder / "provision"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, SOURCE], check=True)
    return program


def cases(mebibytes: int) -> list[Case]:
    """What is compared at that size: one thread and one per CPU, one file and several."""
    most = min(4, len(os.sched_getaffinity(0)))
    return [
        *(Case("guest_memfd", mebibytes, threads) for threads in sorted({1, most})),
        Case("guest_memfd", mebibytes // AT_ONCE, most, at_once=AT_ONCE),
        Case("memfd", mebibytes, 1),
    ]


def compare(program: Path, case: Case, *, qemu: bool, repeats: int) -> list[Row]:
    """The floor, gmemd and, for one memfd, QEMU."""
    ways: dict[str, Callable[[Sequence[int]], None]] = {
        "C floor": lambda fds: _floor(program, fds, case),
        "gmemd": lambda fds: _gmemd(fds, case),
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in list(ways) if repeat % 2 else reversed(ways):
            with _files(case) as fds:
                times[way].append(_timed(ways[way], fds))
    if qemu and case.backend == "memfd":
        threads = len(os.sched_getaffinity(0))
        way = f"QEMU, {threads} threads"
        times[way] = [_qemu(case.size_bytes, threads) for _ in range(repeats)]
    return [_row(way, case, times[way], times["C floor"]) for way in times]


def _row(
    way: str, case: Case, taken: list[tuple[float, float]], floor: list[tuple[float, float]]
) -> Row:
    pairs = list(zip(taken, floor, strict=True))
    return Row(
        way,
        case.backend,
        case.mebibytes,
        case.threads,
        case.at_once,
        statistics.median(wall for wall, _ in taken),
        statistics.median(cpu for _, cpu in taken),
        statistics.median(theirs[0] / mine[0] for mine, theirs in pairs),
        statistics.median(mine[1] / theirs[1] for mine, theirs in pairs),
    )


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


def _timed(way: Callable[[Sequence[int]], None], fds: Sequence[int]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and of those that it started."""
    cpu, begun = _cpu_seconds(), time.perf_counter()
    way(fds)
    return time.perf_counter() - begun, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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


def _qemu(size_bytes: int, threads: int) -> tuple[float, float]:
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
        cpu, begun = _cpu_of(process.pid), time.perf_counter()
        backend = {"qom-type": "memory-backend-memfd", "id": "memory", "size": size_bytes}
        ask("object-add", **backend, prealloc=True, **{"prealloc-threads": threads})
        taken = time.perf_counter() - begun, _cpu_of(process.pid) - cpu
        process.kill()
    return taken


def _cpu_of(pid: int) -> float:
    """User and system time of a process, in seconds; proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    heading = f"{'way to allocate':18} {'backend':12} {'MiB':>6} {'files':>5} {'threads':>7} "
    heading += (
        f"{'ms':>9} {'GiB/s':>6} {'CPU ms':>8} {'throughput':>10} {'CPU':>5}   of the floor's"
    )
    lines = [heading]
    for row in rows:
        gibibytes = row.mebibytes * row.at_once / 1024
        threads = "" if row.way.startswith("QEMU") else row.threads
        lines.append(
            f"{row.way:18} {row.backend:12} {row.mebibytes:>6} {row.at_once:>5} {threads:>7} "
            f"{row.seconds * 1e3:>9.1f} {gibibytes / row.seconds:>6.2f} "
            f"{row.cpu_seconds * 1e3:>8.1f} {row.throughput_ratio:>10.2f} {row.cpu_ratio:>5.2f}"
        )
    return "\n".join(lines)
