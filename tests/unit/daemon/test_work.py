"""The thread that looks at other processes: in order, with its errors, and never in the way."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon import work
from gmemd.daemon.work import Workers
from gmemd.kernel.bind import read_policy
from gmemd.kernel.memfd import create_memfd
from gmemd.memory.errors import ProvisionError
from gmemd.memory.regions import Region, rebind
from gmemd.plan.model import Strategy
from gmemd.spec.model import PolicyMode
from tests.unit.daemon.vms import MIB, region_plan

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def test_looks_come_one_after_the_other(workers: Workers) -> None:
    done: list[tuple[int, str]] = []

    def look(number: int) -> int:
        time.sleep(0.01 * (3 - number))
        done.append((number, threading.current_thread().name))
        return number

    async def run() -> list[int]:
        return await asyncio.gather(*(workers.observe(look, number) for number in range(3)))

    assert asyncio.run(run()) == [0, 1, 2]
    assert done == [(0, "observe"), (1, "observe"), (2, "observe")]


def test_an_error_is_the_callers(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(workers.observe(divmod, 1, 0))
    assert asyncio.run(workers.observe(divmod, 1, 1)) == (1, 0)


def test_what_nobody_waits_for_any_more_is_not_begun(workers: Workers) -> None:
    begun, go_on = threading.Event(), threading.Event()
    looked: list[str] = []

    def hold() -> None:
        begun.set()
        go_on.wait(60)

    async def run() -> None:
        first = asyncio.create_task(workers.observe(hold))
        second = asyncio.create_task(workers.observe(looked.append, "second"))
        await asyncio.to_thread(begun.wait, 60)
        second.cancel()
        first.cancel()
        await asyncio.wait({first, second})
        go_on.set()
        await workers.observe(looked.append, "third")

    asyncio.run(run())
    assert looked == ["third"]


def test_the_end_does_not_wait_for_a_look_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work, "EXPENDABLE_SECONDS", 0.1)
    workers = Workers()
    go_on = threading.Event()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await workers.observe(go_on.wait, 60)
        workers.close()

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 30
    assert "a look at other processes hangs" in caplog.text
    go_on.set()


def test_policies_are_changed_on_all_regions_or_none(workers: Workers) -> None:
    before = region_plan()
    after = replace(before, policy=PolicyMode.PREFERRED)
    with ExitStack() as files:
        fd = create_memfd("vm", 8 * MIB)
        files.callback(os.close, fd)
        good = Region(before, fd, (0, 1), Strategy.INODE_POLICY, "")
        bad = Region(before, -1, (0, 2), Strategy.INODE_POLICY, "", rebound=True)
        rebind(good, before)
        good.rebound = False
        with pytest.raises(ProvisionError):
            asyncio.run(workers.rebind([(good, after), (bad, after)]))
        assert read_policy(fd, 0).mode == "bind"
        assert (good.plan, bad.plan) == (before, before)
        assert (good.rebound, bad.rebound) == (False, True)
        asyncio.run(workers.rebind([(good, after)]))
        assert read_policy(fd, 0).mode == "preferred"
        assert (good.plan, good.rebound) == (after, True)
