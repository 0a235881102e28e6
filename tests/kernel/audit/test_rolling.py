"""The scan that goes on: everything in turn, the oldest first, for its share of a CPU."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.kept import KeptWindows
from gmemd.audit.rolling import RollingRegion, RollingScan
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.audit.model import RegionAudit

SIZE = 16 * MIB
WINDOW = 2 * MIB


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def region(memory: Memory, *, idle: bool = True) -> RollingRegion:
    return RollingRegion(memory.fd, 0, 0, memory.size_bytes, PAGE, idle=idle)


def unhurried(share: float = 1e9, **options: object) -> RollingScan:
    return RollingScan(share, window_bytes=WINDOW, **options)


def seen(rolling: RollingScan, key: object) -> RegionAudit:
    found = rolling.verified(key)
    assert found is not None
    return found.audit


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("[kvm-gmem]")


@pytest.fixture
def memory(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SIZE)


def test_all_windows_together_are_a_scan(memory: Memory) -> None:
    memory.touch(100, 300)
    memory.allocate(3000, 700)
    rolling = unhurried()
    rolling.add("db", region(memory))
    for _ in range(8):
        assert rolling.verified("db") is None
        rolling.step()
    assert seen(rolling, "db") == memory.scan()
    assert rolling.windows_looked_at == 8
    assert memory.cached() == 1000


def test_the_oldest_window_is_looked_at_first(memory: Memory) -> None:
    rolling = unhurried()
    rolling.add("db", region(memory))
    for _ in range(8 + 3):
        rolling.step()
    memory.touch(0, 1)  # in a window that was looked at again just now
    memory.touch(3 * WINDOW // PAGE, 1)  # in the one whose turn it is
    rolling.step()
    assert seen(rolling, "db").resident_bytes == PAGE
    for _ in range(5):
        rolling.step()
    assert seen(rolling, "db").resident_bytes == 2 * PAGE


def test_what_is_new_comes_first_and_what_is_gone_no_more(
    make_memory: Callable[[int], Memory],
) -> None:
    memories = [make_memory(SIZE), make_memory(SIZE)]
    rolling = unhurried()
    rolling.add(0, region(memories[0]))
    for _ in range(12):
        rolling.step()
    rolling.add(1, region(memories[1]))
    for _ in range(8):
        rolling.step()
    assert rolling.verified(1) is not None
    rolling.remove(0)
    assert rolling.verified(0) is None
    memories[1].touch(0, 1)
    for _ in range(8):
        rolling.step()
    assert seen(rolling, 1).resident_bytes == PAGE
    rolling.remove(1)
    looked_at = rolling.windows_looked_at
    assert rolling.step() > 0
    assert rolling.windows_looked_at == looked_at


def test_the_age_of_a_region_is_that_of_its_oldest_window(memory: Memory) -> None:
    rolling = unhurried()
    rolling.add("db", region(memory))
    started = time.time()
    rolling.step()
    after_one = time.time()
    for _ in range(7):
        rolling.step()
    found = rolling.verified("db")
    assert found is not None
    assert started <= found.oldest_timestamp <= after_one


def test_it_rests_as_the_share_says(memory: Memory) -> None:
    """A look of so much CPU time is followed by a hundred times as much rest, at 1 %."""
    clock, cpu = Clock(), Clock()
    rolling = RollingScan(0.01, clock=clock, cpu_clock=cpu, window_bytes=WINDOW)
    rolling.add("db", region(memory))

    assert rolling.step() == 0  # nothing was used: the clocks stand still
    rolling._cpu_clock = iter([0.0, 0.5]).__next__
    assert rolling.step() == pytest.approx(50)
    clock.now += 49
    assert rolling.step() == pytest.approx(1)
    assert rolling.windows_looked_at == 2


def test_its_share_of_a_cpu_is_what_it_uses(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(64 * MIB)
    memory.allocate(0, 64 * MIB // PAGE)
    rolling = RollingScan(0.05, window_bytes=WINDOW)
    rolling.add("db", region(memory, idle=False))
    stop = threading.Event()
    thread = threading.Thread(target=rolling.run, args=(stop,))
    started = time.monotonic()
    thread.start()
    time.sleep(4)
    stop.set()
    thread.join()
    assert rolling.cpu_seconds / (time.monotonic() - started) == pytest.approx(0.05, rel=0.1)


def test_kept_windows_are_looked_at_by_their_page_tables(memory: Memory) -> None:
    memory.allocate(0, SIZE // PAGE)
    before = mappings()
    with KeptWindows(1 << 20) as kept:
        rolling = unhurried(kept=kept)
        rolling.add("db", region(memory))
        for _ in range(8):
            rolling.step()
        assert kept.n_windows == 8
        first = seen(rolling, "db")
        memory.punch(5, 3)
        for _ in range(8):
            rolling.step()
        assert seen(rolling, "db").resident_bytes == first.resident_bytes - 3 * PAGE
        rolling.remove("db")
        assert (kept.n_windows, mappings()) == (0, before)


def test_a_page_made_right_then_is_an_error(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.touch(0, 1)
    rolling = unhurried()
    rolling.add("db", region(memory))
    scan = rolling._look.__globals__["looker"]

    def meddled(*args: object, **options: object) -> object:
        how = scan(*args, **options)

        class Meddler:
            def look(self, *where: object) -> object:
                read = how.look(*where)
                memory.touch(7, 1)
                return read

        return Meddler()

    monkeypatch.setitem(rolling._look.__globals__, "looker", meddled)
    for _ in range(8):
        rolling.step()
    assert seen(rolling, "db").errors == {"residency_changed": 1}


def test_huge_pages_too(huge_pool: None) -> None:  # noqa: ARG001
    fd = create_memfd("huge", 8 * WINDOW, page_size=WINDOW)
    allocate(fd, 0, 3 * WINDOW)
    rolling = unhurried()
    rolling.add("huge", RollingRegion(fd, 0, 0, 8 * WINDOW, WINDOW))
    for _ in range(8):
        rolling.step()
    assert seen(rolling, "huge").resident_bytes == 3 * WINDOW


def test_removing_waits_for_a_look_under_way(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(256 * MIB)
    memory.allocate(0, 256 * MIB // PAGE)
    rolling = RollingScan(1e9, window_bytes=256 * MIB)
    rolling.add("db", region(memory))
    thread = threading.Thread(target=rolling.step)
    thread.start()
    while rolling._looking_at is None and thread.is_alive():
        time.sleep(0.0001)
    rolling.remove("db")
    assert rolling._looking_at is None
    thread.join()
    assert rolling.verified("db") is None
