"""A look at a running VM that somebody asks for holds nothing else up, and ends with who asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.audit.asked import Asked
from gmemd.audit.scan import AuditStoppedError
from gmemd.daemon.observer import Observer
from gmemd.daemon.observing import Found
from gmemd.daemon.watched import Wanted
from gmemd.daemon.work import Workers
from gmemd.errors import GmemdError
from gmemd.export.instruments import Counters
from tests.unit.daemon.test_watched import found_vm
from tests.unit.daemon.vms import audited_status, host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gmemd.audit.observed import Effort
    from gmemd.export.snapshot import VmStatus

FULL = Asked(full=True)


class Looks:
    """Finders that are quick, but for a look at every page, which takes until it is stopped."""

    def __init__(self) -> None:
        self.begun, self.stopped = Event(), Event()
        self.finders: list[Any] = []
        self.n_found = 0

    def finder(self) -> Any:  # noqa: ANN401  it has what an observer uses
        outer = self

        class Slow:
            def find(self, *_: object) -> Found:
                outer.n_found += 1
                return Found((found_vm("db-01", 7),))

            def observe(self, _found: object, _host: object, effort: Effort) -> VmStatus:
                outer.finders.append(self)
                if effort.sample_pages is not None:
                    return replace(audited_status(), vm="db-01")
                outer.begun.set()
                assert effort.stop is not None
                assert effort.stop.wait(60)
                outer.stopped.set()
                raise AuditStoppedError("stopped")

        return Slow()

    async def await_rounds(self, rounds: int) -> None:
        until = self.n_found + rounds
        async with asyncio.timeout(10):
            while self.n_found < until:  # noqa: ASYNC110  a thread counts
                await asyncio.sleep(0.01)


def observing(test: Callable[[Observer, Looks], Awaitable[None]]) -> None:
    async def known_host() -> Any:  # noqa: ANN401  a host
        return host()

    async def running() -> None:
        workers, looks = Workers(), Looks()
        observer = Observer(
            workers,
            Counters(),
            host=known_host,
            changed=lambda: None,
            held=frozenset,
            adoptable=lambda _spec, _vm: None,
            new_finder=looks.finder,
        )
        observer.want(Wanted(discovery=True, interval_seconds=0.05))
        rounds = asyncio.create_task(observer.run())
        try:
            await looks.await_rounds(2)
            await asyncio.wait_for(test(observer, looks), 60)
        finally:
            rounds.cancel()
            observer.stop()
            await asyncio.to_thread(workers.close)

    asyncio.run(running())


def test_others_are_found_meanwhile_and_it_ends_with_who_asked() -> None:
    async def test(observer: Observer, looks: Looks) -> None:
        asking = asyncio.create_task(observer.audit_now("db-01", FULL))
        await asyncio.to_thread(looks.begun.wait, 60)
        await looks.await_rounds(2)
        assert not looks.stopped.is_set()
        asking.cancel()
        assert await asyncio.to_thread(looks.stopped.wait, 10)

    observing(test)


def test_it_has_a_finder_of_its_own() -> None:
    async def test(observer: Observer, looks: Looks) -> None:
        in_turn = looks.finders[0]
        asking = asyncio.create_task(observer.audit_now("db-01", FULL))
        await asyncio.to_thread(looks.begun.wait, 60)
        await looks.await_rounds(2)
        assert [finder is in_turn for finder in looks.finders].count(False) == 1
        asking.cancel()

    observing(test)


def test_it_ends_with_the_daemon_and_says_so() -> None:
    async def test(observer: Observer, looks: Looks) -> None:
        asking = asyncio.create_task(observer.audit_now("db-01", FULL))
        await asyncio.to_thread(looks.begun.wait, 60)
        observer.stop()
        for ask in (lambda: asking, lambda: observer.audit_now("db-01", Asked())):
            with pytest.raises(GmemdError, match="the daemon stops"):
                await ask()

    observing(test)
