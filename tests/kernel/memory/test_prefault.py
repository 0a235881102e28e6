from __future__ import annotations

import itertools
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gmemd.kernel import fallocate, pages
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory import child, dealing
from gmemd.memory import prefault as prefault_module
from gmemd.memory.guard import Guard, claims
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, prefault

pytestmark = pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")

MIB = 1 << 20
Job = Callable[..., PrefaultJob]
never = threading.Event()


def helper_pid() -> int:
    """The one child of this thread."""
    task = f"/proc/self/task/{threading.get_native_id()}/children"
    (pid,) = Path(task).read_text().split()
    return int(pid)


def no_children() -> bool:
    """No helper is left of those that gmemd starts; the lab's machine may be a child as well."""
    tasks = Path("/proc/self/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return not any(b"gmemd.memory" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)


@pytest.fixture
def roomy(tmp_path: Path) -> Guard:
    """A guard that reads figures of its own making: room enough, in chunks of 40 MiB and less."""
    write_zoneinfo(tmp_path, free_pages=160_000)
    return Guard({0: 0}, root=str(tmp_path))


def write_zoneinfo(root: Path, *, free_pages: int) -> None:
    """This machine's zoneinfo with that many free pages and no page cache in every zone."""
    text = Path("/proc/zoneinfo").read_text()
    text = re.sub(r"pages free +\d+", f"pages free {free_pages}", text)
    text = re.sub(r"(nr_zone_(?:in)?active_file) +\d+", r"\1 0", text)
    (root / "proc").mkdir(exist_ok=True)
    (root / "new").write_text(text)
    (root / "new").rename(root / "proc/zoneinfo")


@pytest.mark.parametrize("flags", [0, 1, 3])
def test_a_guest_memfd_of_any_flags_is_there_afterwards(
    guest_memfd: Callable[..., int], job: Job, flags: int
) -> None:
    fd = guest_memfd(400 * MIB, flags=flags)
    told: list[int] = []
    result = prefault(job(fd), progress=told.append, cancel=never)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert result.allocated_bytes == 400 * MIB
    assert pages.cachestat(fd, 0, 400 * MIB).pages == 400 * 256
    assert told == sorted(told)
    assert told[-1] == 400 * MIB
    assert len(told) > 1
    assert no_children()


def test_a_memfd_is_there_afterwards(job: Job) -> None:
    fd = create_memfd("test", 100 * MIB)
    try:
        result = prefault(job(fd), progress=lambda _: None, cancel=never)
        assert result.outcome is PrefaultOutcome.COMPLETE
        assert os.fstat(fd).st_blocks * 512 == 100 * MIB
    finally:
        os.close(fd)


def test_a_range_is_allocated_and_nothing_beside_it(
    guest_memfd: Callable[..., int], job: Job
) -> None:
    fd = guest_memfd(96 * MIB, flags=0)
    range_of_it = job(fd, offset=32 * MIB, length=40 * MIB)
    result = prefault(range_of_it, progress=lambda _: None, cancel=never)
    assert result.allocated_bytes == 40 * MIB
    assert pages.cachestat(fd, 0, 96 * MIB).pages == 40 * 256


def test_the_helper_is_the_first_victim_and_runs_where_it_was_told(
    guest_memfd: Callable[..., int], job: Job
) -> None:
    cpu = min(os.sched_getaffinity(0))
    seen: dict[str, str] = {}

    def look(_: int) -> None:
        proc = Path(f"/proc/{helper_pid()}")
        seen["score"] = (proc / "oom_score_adj").read_text().strip()
        seen["status"] = (proc / "status").read_text()
        seen["numa_maps"] = (proc / "numa_maps").read_text()

    placed = job(guest_memfd(300 * MIB, flags=0), cpus=frozenset({cpu}))
    prefault(placed, progress=look, cancel=never)
    assert seen["score"] == "1000"
    assert f"Cpus_allowed_list:\t{cpu}\n" in seen["status"]
    assert set(re.findall(r"^\w+ (\S+)", seen["numa_maps"], re.MULTILINE)) == {"bind:0"}


def test_cpus_that_are_not_allowed_are_a_note(guest_memfd: Callable[..., int], job: Job) -> None:
    impossible = job(guest_memfd(4 * MIB, flags=0), cpus=frozenset({8000}))
    result = prefault(impossible, progress=lambda _: None, cancel=never)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert "AllowedCPUs" in result.notes[0]


def test_cancelled_halfway_and_resumed(
    guest_memfd: Callable[..., int], job: Job, roomy: Guard
) -> None:
    fd = guest_memfd(512 * MIB, flags=0)
    cancel = threading.Event()
    result = prefault(job(fd, guard=roomy), progress=lambda _: cancel.set(), cancel=cancel)
    assert result.outcome is PrefaultOutcome.CANCELLED
    assert 0 < result.allocated_bytes < 512 * MIB
    assert no_children()
    again = prefault(job(fd), progress=lambda _: None, cancel=never)
    assert again.allocated_bytes == 512 * MIB


def test_a_helper_killed_from_outside_is_told_as_that(
    guest_memfd: Callable[..., int],
    job: Job,
    roomy: Guard,
    open_fds: Callable[[], set[str]],
) -> None:
    fd = guest_memfd(512 * MIB, flags=0)
    before = open_fds()
    result = prefault(
        job(fd, guard=roomy),
        progress=lambda _: os.kill(helper_pid(), signal.SIGKILL),
        cancel=never,
    )
    assert result.outcome is PrefaultOutcome.KILLED
    assert result.detail == "SIGKILL"
    assert result.allocated_bytes + result.needed_bytes == 512 * MIB
    assert result.needed_bytes > 0
    assert open_fds() == before


def test_interrupted_by_signals_it_goes_on(
    guest_memfd: Callable[..., int], job: Job, roomy: Guard
) -> None:
    def interrupt(_: int) -> None:
        pid = helper_pid()
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)

    fd = guest_memfd(512 * MIB, flags=0)
    result = prefault(job(fd, guard=roomy), progress=interrupt, cancel=never)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert result.allocated_bytes == 512 * MIB


def test_a_node_that_fills_up_meanwhile_ends_it(
    guest_memfd: Callable[..., int], job: Job, roomy: Guard, tmp_path: Path
) -> None:
    """The figures are read anew before each chunk."""
    fd = guest_memfd(512 * MIB, flags=0)
    result = prefault(
        job(fd, guard=roomy),
        progress=lambda _: write_zoneinfo(tmp_path, free_pages=0),
        cancel=never,
    )
    assert result.outcome is PrefaultOutcome.STOPPED_AT_RESERVE
    assert (result.full_node, result.available_bytes) == (0, 0)
    assert 0 < result.allocated_bytes < 512 * MIB
    assert result.needed_bytes == 512 * MIB - result.allocated_bytes


def test_what_is_there_already_needs_no_room(guest_memfd: Callable[..., int], job: Job) -> None:
    fd = guest_memfd(128 * MIB, flags=0)
    prefault(job(fd), progress=lambda _: None, cancel=never)
    no_room = Guard({0: 1 << 60})
    result = prefault(job(fd, guard=no_room), progress=lambda _: None, cancel=never)
    assert result.outcome is PrefaultOutcome.COMPLETE


def test_a_policy_that_the_host_cannot_have_is_a_failure(
    guest_memfd: Callable[..., int], job: Job
) -> None:
    offline = job(guest_memfd(4 * MIB, flags=0), task_policy=MemPolicy("bind", frozenset({1000})))
    result = prefault(offline, progress=lambda _: None, cancel=never)
    assert result.outcome is PrefaultOutcome.FAILED
    assert result.detail.startswith("set_mempolicy: EINVAL")
    assert result.allocated_bytes == 0


def test_a_cgroup_that_is_none_is_a_failure(
    guest_memfd: Callable[..., int], job: Job, tmp_path: Path
) -> None:
    nowhere = job(guest_memfd(4 * MIB, flags=0), cgroup=tmp_path / "nowhere")
    result = prefault(nowhere, progress=lambda _: None, cancel=never)
    assert result.outcome is PrefaultOutcome.FAILED
    assert "joining cgroup" in result.detail


def test_hugetlb_without_pages_says_that_the_pool_is_empty(job: Job) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    if not pool.exists() or int((pool / "free_hugepages").read_text()) != 0:
        pytest.skip("needs an empty pool of 2 MiB pages")
    fd = create_memfd("test", 8 * MIB, page_size=2 * MIB)
    try:
        result = prefault(
            job(fd, page_size=2 * MIB, guard=None), progress=lambda _: None, cancel=never
        )
        assert result.outcome is PrefaultOutcome.POOL_EMPTY
        assert result.allocated_bytes == 0
    finally:
        os.close(fd)


DAEMON = """
import os, signal, threading
from pathlib import Path
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.guard import Guard
from gmemd.memory.prefault import PrefaultJob, prefault

def told(_):
    task = f"/proc/self/task/{threading.get_native_id()}/children"
    pid = int(Path(task).read_text())
    os.kill(pid, signal.SIGSTOP)  # it must not end by itself
    print(pid, flush=True)
    threading.Event().wait()

fd = create_memfd("test", 2 << 30)
guard = Guard({0: 256 << 20})
cpus = frozenset(os.sched_getaffinity(0))
job = PrefaultJob(fd, 0, 2 << 30, 4096, guard, MemPolicy("default"), cpus, cpus)
prefault(job, progress=told, cancel=threading.Event())
"""


def test_the_helper_dies_with_the_daemon() -> None:
    root = Path(__file__).parents[3]
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        helper = os.pidfd_open(int(daemon.stdout.readline()))
    try:
        daemon.kill()
        daemon.wait()
        ended = select.poll()
        ended.register(helper, select.POLLIN)
        assert ended.poll(60_000)
    finally:
        os.close(helper)


@pytest.mark.parametrize("n_threads", [2, 4])
def test_several_threads_allocate_every_page(
    guest_memfd: Callable[..., int], job: Job, n_threads: int
) -> None:
    """Whatever is there already: the holes between are filled."""
    fd = guest_memfd(512 * MIB, flags=0)
    for offset in (0, 64, 65, 300):
        fallocate.allocate(fd, offset * MIB, MIB)
    threads: list[int] = []

    def look(_: int) -> None:
        threads.append(len(list(Path(f"/proc/{helper_pid()}/task").iterdir())))

    result = prefault(job(fd, n_threads=n_threads), progress=look, cancel=never)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert pages.cachestat(fd, 0, 512 * MIB).pages == 512 * 256
    assert max(threads) == n_threads


def test_many_at_once_leave_the_reserve_alone(
    guest_memfd: Callable[..., int], job: Job, tmp_path: Path
) -> None:
    """Four helpers on one node are dealt no more together than one of them would be."""
    write_zoneinfo(tmp_path, free_pages=40_000)
    guard = Guard({0: 0}, root=str(tmp_path))
    room = guard.headroom(guard.available())
    assert 0 < room < 1024 * MIB
    dealt = 0
    most = 0
    take, give_back = claims.take, claims.give_back

    def taking(guard: Guard, *sizes: int, **options: Any) -> int:  # noqa: ANN401 - passed on
        nonlocal dealt, most
        chunk = take(guard, *sizes, **options)
        dealt += chunk
        most = max(most, dealt)
        return chunk

    def giving(guard: Guard, chunk: int) -> None:
        nonlocal dealt
        give_back(guard, chunk)
        dealt -= chunk

    fds = [guest_memfd(256 * MIB, flags=0) for _ in range(4)]
    with (
        mock.patch.object(claims, "take", taking),
        mock.patch.object(claims, "give_back", giving),
        ThreadPoolExecutor(4) as pool,
    ):
        done = [
            pool.submit(
                prefault, job(fd, guard=guard, n_threads=2), progress=lambda _: None, cancel=never
            )
            for fd in fds
        ]
        assert all(each.result().outcome is PrefaultOutcome.COMPLETE for each in done)
    assert dealt == 0
    assert 0 < most <= room
    assert no_children()


def test_a_small_one_does_not_wait_for_a_large_one(
    guest_memfd: Callable[..., int], job: Job
) -> None:
    """Both are at work at the same time, on the same node and CPUs."""
    large, small = guest_memfd(2048 * MIB, flags=0), guest_memfd(32 * MIB, flags=0)
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            prefault, job(large, n_threads=2), progress=lambda _: begun.set(), cancel=never
        )
        assert begun.wait(60)
        result = prefault(job(small), progress=lambda _: None, cancel=never)
        assert not running.done()
        assert result.outcome is PrefaultOutcome.COMPLETE
        assert running.result().outcome is PrefaultOutcome.COMPLETE


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A helper that does nothing is given up after a third of a second."""
    monkeypatch.setattr(dealing, "_STUCK_SECONDS", 0.3)
    return monkeypatch


@pytest.mark.parametrize("when", ["at its start", "halfway"])
def test_a_helper_that_is_stopped_is_given_up(
    guest_memfd: Callable[..., int],
    job: Job,
    roomy: Guard,
    impatient: pytest.MonkeyPatch,
    when: str,
) -> None:
    started = child.Child.__enter__

    def stopped(helper: child.Child) -> child.Child:
        os.kill(helper.process.pid, signal.SIGSTOP)
        return started(helper)

    fd = guest_memfd(512 * MIB, flags=0)
    if when == "at its start":
        impatient.setattr(child.Child, "__enter__", stopped)
    result = prefault(
        job(fd, guard=roomy),
        progress=lambda _: os.kill(helper_pid(), signal.SIGSTOP),
        cancel=never,
    )
    assert result.outcome is PrefaultOutcome.STUCK
    assert result.allocated_bytes + result.needed_bytes == 512 * MIB
    assert result.needed_bytes > 0
    assert no_children()


@pytest.mark.usefixtures("impatient")
def test_a_helper_that_is_only_slow_is_waited_for(
    guest_memfd: Callable[..., int], job: Job, roomy: Guard
) -> None:
    """Nothing is heard of it for long, and the memory grows meanwhile."""
    fd = guest_memfd(512 * MIB, flags=0)
    silent_until = time.monotonic() + 1.5

    def grow(pid: int) -> None:
        for page in itertools.count(1):
            if time.monotonic() > silent_until:
                break
            fallocate.allocate(fd, 512 * MIB - page * 4096, 4096)
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)

    def stop(_: int) -> None:
        if not growing:
            os.kill(pid := helper_pid(), signal.SIGSTOP)
            growing.append(thread := threading.Thread(target=grow, args=(pid,)))
            thread.start()

    growing: list[threading.Thread] = []
    result = prefault(job(fd, guard=roomy), progress=stop, cancel=never)
    growing[0].join()
    assert time.monotonic() > silent_until
    assert result.outcome is PrefaultOutcome.COMPLETE


def test_host_nodes_that_went_meanwhile_are_a_failure(
    guest_memfd: Callable[..., int], job: Job
) -> None:
    result = prefault(
        job(guest_memfd(4 * MIB, flags=0), guard=Guard({})), progress=lambda _: None, cancel=never
    )
    assert result.outcome is PrefaultOutcome.FAILED
    assert "none of its host nodes" in result.detail
    assert result.allocated_bytes == 0


def test_a_helper_taken_for_what_others_lacked_is_followed_by_another(
    guest_memfd: Callable[..., int], job: Job, roomy: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's OOM killer counts what it kills, which is made up here."""
    kills = itertools.count()
    monkeypatch.setattr(
        prefault_module, "_count", lambda name, _: next(kills) if name == "oom_kill" else 0
    )
    killed: list[int] = []

    def kill(_: int) -> None:
        if not killed:
            killed.append(pid := helper_pid())
            os.kill(pid, signal.SIGKILL)

    fd = guest_memfd(512 * MIB, flags=0)
    result = prefault(job(fd, guard=roomy), progress=kill, cancel=never)
    assert killed
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert result.allocated_bytes == 512 * MIB
    assert no_children()
