"""The scan that goes on: everything in turn, the oldest first, for its share of a CPU."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.audit import rolling as rolling_module
from gmemd.audit.budget import CpuBudget
from gmemd.audit.kept import KeptWindows, cost_bytes
from gmemd.audit.rolling import Looked, RollingRegion, RollingScan
from gmemd.audit.windows import Seen, Windows
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gmemd.audit.model import RegionAudit
    from gmemd.audit.scan import ReadRange

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


def unhurried(**options: object) -> RollingScan:
    return RollingScan(CpuBudget(1e9), window_bytes=WINDOW, **options)


def seen(rolling: RollingScan, key: object) -> RegionAudit:
    found = rolling.verified(key)
    assert found is not None
    return replace(found.audit, verified_timestamp=None, rolled=False)


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
    looked = rolling.take_looked()
    assert (looked.pages_seen, looked.errors) == (1000, {})
    assert looked.cpu_seconds > 0
    assert rolling.take_looked() == Looked(0.0, 0, {})
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
    started, began = time.time(), time.monotonic()
    rolling.step()
    after_one = time.time()
    for _ in range(7):
        rolling.step()
    found = rolling.verified("db")
    assert found is not None
    assert found.audit.verified_timestamp is not None
    assert started <= found.audit.verified_timestamp <= after_one
    assert 0 < found.age_seconds <= time.monotonic() - began


def test_it_rests_as_the_share_says(memory: Memory) -> None:
    """A look of so much CPU time is followed by a hundred times as much rest, at 1 %."""
    clock, cpu = Clock(), Clock()
    budget = CpuBudget(0.01, clock=clock)
    rolling = RollingScan(budget, clock=clock, cpu_clock=cpu, window_bytes=WINDOW)
    rolling.add("db", region(memory))

    assert rolling.step() == 0  # nothing was used: the clocks stand still
    rolling._cpu_clock = iter([0.0, 0.0, 0.0, 0.5]).__next__
    assert rolling.step() == pytest.approx(50)
    clock.now += 49
    assert rolling.step() == pytest.approx(1)
    assert rolling.windows_looked_at == 2


def test_its_share_of_a_cpu_is_what_it_uses(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(64 * MIB)
    memory.allocate(0, 64 * MIB // PAGE)
    budget = CpuBudget(0.05)
    rolling = RollingScan(budget, window_bytes=WINDOW)
    rolling.add("db", region(memory, idle=False))
    stop = threading.Event()
    thread = threading.Thread(target=rolling.run, args=(stop,))
    started = time.monotonic()
    thread.start()
    time.sleep(4)
    stop.set()
    thread.join()
    assert budget.spent_seconds / (time.monotonic() - started) == pytest.approx(0.05, rel=0.1)


def test_kept_windows_are_looked_at_by_their_page_tables(memory: Memory) -> None:
    memory.allocate(0, SIZE // PAGE)
    before = mappings()
    with KeptWindows(1 << 20) as kept:
        rolling = unhurried(kept=kept)
        rolling.add("db", region(memory))
        rolling.scan_now("db")
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
    scan = rolling_module.looker

    def meddled(*args: object, **options: object) -> object:
        how = scan(*args, **options)

        class Meddler:
            def look(self, *where: object) -> object:
                read = how.look(*where)
                memory.touch(7, 1)
                return read

        return Meddler()

    monkeypatch.setattr(rolling_module, "looker", meddled)
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
    rolling = RollingScan(CpuBudget(1e9), window_bytes=256 * MIB)
    rolling.add("db", region(memory))
    thread = threading.Thread(target=rolling.step)
    thread.start()
    while rolling._looking_at is None and thread.is_alive():
        time.sleep(0.0001)
    rolling.remove("db")
    assert rolling._looking_at is None
    thread.join()
    assert rolling.verified("db") is None


def test_nothing_is_looked_at_again_before_it_is_due(memory: Memory) -> None:
    clock = Clock()
    rolling = unhurried(clock=clock, rest_seconds=60)
    rolling.add("db", region(memory))
    for _ in range(8):
        assert rolling.step() == 0
        clock.now += 1
    assert rolling.step() == 1  # the most that it rests: something else may come
    clock.now = 159.5
    assert rolling.step() == pytest.approx(0.5)
    clock.now = 160
    assert rolling.step() == 0
    assert rolling.windows_looked_at == 9


def test_what_stays_mapped_is_looked_at_when_it_is_due_whatever_is_older(
    make_memory: Callable[[int], Memory],
) -> None:
    small, large = make_memory(2 * WINDOW), make_memory(SIZE)
    small.allocate(0, 2 * WINDOW // PAGE)
    clock = Clock()
    with KeptWindows(2 * cost_bytes(WINDOW)) as kept:  # room for two windows
        rolling = unhurried(clock=clock, rest_seconds=5, kept=kept)
        rolling.add("small", region(small))
        for _ in range(2):
            rolling.step()
            clock.now += 1
        assert kept.n_windows == 2
        rolling.add("large", region(large))
        for _ in range(3):
            rolling.step()
            clock.now += 1
        small.punch(0, 1)
        rolling.step()
        assert seen(rolling, "small").resident_bytes == 2 * WINDOW - PAGE
        assert rolling.verified("large") is None


def test_a_window_that_stays_mapped_no_more_is_looked_at_in_turn(memory: Memory) -> None:
    memory.allocate(0, SIZE // PAGE)
    with KeptWindows(1 << 20) as kept:
        rolling = unhurried(kept=kept)
        rolling.add("db", region(memory))
        rolling.scan_now("db")
        kept.resize(2 * cost_bytes(WINDOW))
        for _ in range(7):
            rolling.step()
        assert kept.n_windows == 2
        kept.resize(0)
        memory.punch(0, 1)
        memory.punch(SIZE // PAGE - 1, 1)
        for _ in range(16):
            rolling.step()
        assert seen(rolling, "db").resident_bytes == SIZE - 2 * PAGE


def test_one_may_be_looked_at_now(memory: Memory) -> None:
    memory.touch(0, 100)
    rolling = RollingScan(CpuBudget(1e-9), window_bytes=WINDOW)
    completed: list[object] = []
    rolling.completed = completed.append
    rolling.add("db", region(memory))
    rolling.step()
    assert rolling.step() > 0
    rolling.scan_now("db")
    assert seen(rolling, "db").resident_bytes == 100 * PAGE
    assert completed == ["db"]
    rolling.scan_now("db")
    rolling.scan_now("another")
    assert rolling.windows_looked_at == 8


def test_it_may_be_idle_now_and_in_use_then(memory: Memory) -> None:
    memory.touch(0, 1)
    rolling = unhurried()
    rolling.add("db", region(memory, idle=True))
    rolling.scan_now("db")
    rolling.add("db", region(memory, idle=False))
    assert rolling.is_verified("db")


def test_what_comes_once_it_is_in_use_is_no_error(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.touch(0, 1)
    rolling = unhurried()
    rolling.add("db", region(memory))
    has_changed = rolling_module.has_changed

    def handed_out(fd: int, read: Sequence[ReadRange]) -> bool:
        memory.touch(7, 1)
        rolling.note_use("db")
        return has_changed(fd, read)

    monkeypatch.setattr(rolling_module, "has_changed", handed_out)
    rolling.scan_now("db")
    rolling.note_use("another")
    assert seen(rolling, "db").errors == {}


def test_a_look_that_fails_takes_that_region_out_until_it_is_added_again(
    memory: Memory, make_memory: Callable[[int], Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_memory(WINDOW)
    rolling = unhurried()
    rolling.add("db", region(memory))
    look = rolling._look

    def broken(windows: Windows, index: int) -> tuple[Seen, bool]:
        if windows.key == "db":
            raise ZeroDivisionError
        return look(windows, index)

    monkeypatch.setattr(rolling, "_look", broken)
    rolling.add("other", region(other))
    with pytest.raises(ZeroDivisionError):
        rolling.step()
    rolling.step()
    assert rolling.verified("other") is not None
    monkeypatch.undo()
    rolling.add("db", region(memory))
    rolling.scan_now("db")
    assert rolling.is_verified("db")


def test_the_oldest_window_is_known_whatever_stays_mapped_and_does_no_more() -> None:
    windows = Windows("db", RollingRegion(1, 0, 0, 10 * PAGE, PAGE), PAGE)
    seen, now = Seen(((0, PAGE),), 0, (), (), (), exact=True), 100.0
    for turn in range(60):
        mapped = turn % 7 < 3 and turn > 9
        index = windows.next(mapped=mapped)
        if index is None:
            mapped = not mapped
            index = windows.next(mapped=mapped)
        assert index is not None
        now += 1
        windows.note(index, seen, at=now, mapped=bool(index * turn % 3))
        assert windows.monotonic[windows.oldest()] == min(windows.monotonic)
    assert windows.missing == 0
    assert windows.totals.by_node == {0: 10 * PAGE}


def test_what_failed_or_was_forgotten_keeps_nothing_mapped(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.allocate(0, SIZE // PAGE)
    with KeptWindows(1 << 20) as kept:
        rolling = unhurried(kept=kept)
        rolling.add("db", region(memory))
        rolling.step()
        assert kept.n_windows == 1
        monkeypatch.setattr(rolling_module, "has_changed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rolling.step()
        assert kept.n_windows == 0
        monkeypatch.undo()
        rolling.add("db", region(memory))
        rolling.scan_now("db")
        rolling.forget("db")
        assert (kept.n_windows, rolling.is_verified("db")) == (0, False)


def test_who_uses_it_is_known_before_the_first_look(memory: Memory) -> None:
    rolling = unhurried()
    rolling.note_use("db")
    rolling.add("db", region(memory, idle=True))
    rolling.scan_now("db")
    found = rolling.verified("db")
    assert found is not None
    assert not found.lasts
    rolling.note_idle("db")
    rolling.add("db", region(memory, idle=True))
    found = rolling.verified("db")
    assert found is not None
    assert not found.lasts  # it was looked at while it was in use
    for _ in range(8):
        rolling.step()
    found = rolling.verified("db")
    assert found is not None
    assert found.lasts
