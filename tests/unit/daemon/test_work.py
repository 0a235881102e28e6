"""The thread that looks at other processes: in order, with its errors, and never in the way."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon import work
from gmemd.daemon.work import Workers

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
