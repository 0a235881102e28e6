"""An audit that was asked for is answered for itself, and ends with whoever asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.audit.asked import Asked
from gmemd.audit.scan import AuditStoppedError
from gmemd.daemon import desk as desk_module
from gmemd.daemon.desk import Desk
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.on_demand import ATTEMPTS
from gmemd.daemon.reconcile import Reconciler
from gmemd.daemon.varlink.errors import AuditFailed, NotAuditable
from gmemd.daemon.vm import ManagedVm
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy, VmPlan
from tests.unit.daemon.test_fleet import forget, new_fleet
from tests.unit.daemon.test_reconcile import NobodyRuns
from tests.unit.daemon.vms import audited_status, host, region_plan, spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from threading import Event

    from gmemd.audit.model import VmAudit
    from gmemd.daemon.fleet import Fleet

LOOKS = 20
FULL = Asked(full=True)


class Audited:
    """A VM with memory; ``events`` has what was done to it, and audits end after ``looks``."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(desk_module, "PROGRESS_SECONDS", 0.01)
        self.events: list[str] = []
        self.went_on = asyncio.Event()
        self.error: Exception | None = None
        self.fleet = fleet
        self.lifecycle = Lifecycle(fleet, forget)
        observer: Any = NobodyRuns()
        self.reconciler = Reconciler(
            fleet, self.lifecycle, observer, is_inline=lambda _: False, after_pass=lambda: None
        )
        handing: Any = SimpleNamespace(vm=lambda _: self.vm)
        nobody: Any = None
        self.desk = Desk(
            fleet,
            self.reconciler,
            handing,
            taking=nobody,
            adopting=nobody,
            specs=nobody,
            reload=nobody,
        )
        status = audited_status()
        assert status.audit is not None
        self.before = status.audit
        self.vm = ManagedVm("vm", spec("vm"), plan=VmPlan(spec("vm"), (region_plan(),)))
        self.vm.regions = [Region(region_plan(), -1, (0, 0), Strategy.INODE_POLICY, "")]
        self.vm.audit = self.before
        fleet.vms["vm"] = self.vm
        fleet.host = host()
        workers: Any = fleet.workers
        workers.audit, workers.release = self._audit, self._release

    async def _audit(self, *_: object, stop: Event, **__: object) -> VmAudit:
        self.events.append("begun")
        self.went_on.set()
        for _look in range(LOOKS):
            await asyncio.sleep(0.01)
            if stop.is_set():
                self.events.append("stopped")
                raise AuditStoppedError("stopped")
        if self.error is not None:
            raise self.error
        self.events.append("done")
        return replace(self.before)

    async def _release(self, _: object) -> None:
        self.events.append("released")

    async def ask(self) -> None:
        async for _ in self.desk.audit("vm", FULL):
            pass

    async def place(self) -> None:
        self.events.append("placed")

    async def begun(self, times: int = 1) -> None:
        while self.events.count("begun") < times:
            await self.went_on.wait()
            self.went_on.clear()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def run(test: Callable[[Audited], Awaitable[None]]) -> list[str]:
        async def running() -> list[str]:
            with new_fleet() as fleet:
                audited = Audited(fleet, monkeypatch)
                await asyncio.wait_for(test(audited), 60)
                return audited.events

        return asyncio.run(running())

    return run


def test_one_that_makes_way_is_begun_again(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        asking = asyncio.create_task(audited.ask())
        await audited.begun()
        await audited.lifecycle.do(audited.vm, audited.place)
        await asking
        assert audited.vm.audit is not audited.before

    assert run(test) == ["begun", "stopped", "placed", "begun", "done"]


def test_one_that_makes_way_again_and_again_says_so(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        asking = asyncio.create_task(audited.ask())
        for times in range(ATTEMPTS):
            await audited.begun(times + 1)
            await audited.lifecycle.do(audited.vm, audited.place)
        with pytest.raises(AuditFailed) as caught:
            await asking
        assert caught.value.parameters["message"].startswith("it made way 3 times")
        assert caught.value.parameters["hint"] == "ask again"

    assert run(test) == ["begun", "stopped", "placed"] * ATTEMPTS


def test_one_that_fails_says_why(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        audited.error = ZeroDivisionError("no reason")
        with pytest.raises(AuditFailed) as caught:
            await audited.ask()
        assert caught.value.parameters["message"] == "internal error"
        assert audited.vm.audit_error == "internal error"

    assert run(test) == ["begun"]


def test_none_is_begun_of_what_is_about_to_be_given_back(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        asking = asyncio.create_task(audited.ask())
        await audited.begun()
        audited.reconciler.possession.release_soon(audited.vm)
        assert audited.vm.task is not None
        await asyncio.wait({audited.vm.task})
        await asyncio.sleep(0.02)
        audited.reconciler.look_at_all()
        with pytest.raises(NotAuditable):
            await asking

    assert run(test) == ["begun", "stopped", "released"]


def test_none_is_begun_while_the_daemon_stops(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        asking = [asyncio.create_task(audited.ask()) for _ in range(2)]
        await audited.begun()
        await audited.reconciler.stop()
        audited.reconciler.look_at_all()
        for each in asking:
            with pytest.raises(AuditFailed) as caught:
                await each
            assert caught.value.parameters["message"] == "the daemon stops"

    assert run(test) == ["begun", "stopped", "released"]


def test_it_ends_with_whoever_asked(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        streams: Any = [audited.desk.audit("vm", FULL) for _ in range(2)]
        first, second = streams
        await anext(first)
        await anext(second)
        await second.aclose()
        await first.aclose()
        assert audited.vm.task is not None
        await asyncio.wait({audited.vm.task})
        await asyncio.sleep(0.02)
        assert not audited.vm.busy

    assert run(test) == ["begun", "stopped"]


def test_anothers_goes_on_when_one_that_waits_is_given_up(run: Callable[..., list[str]]) -> None:
    async def test(audited: Audited) -> None:
        asking = asyncio.create_task(audited.ask())
        await audited.begun()
        waiting = asyncio.create_task(audited.ask())
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asking
        await asyncio.wait({waiting})

    assert run(test) == ["begun", "done"]
