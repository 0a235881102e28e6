"""Whose audit is next: the one that is due the longest, of those that can be looked at now."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.sampling import LEAST_PAGES
from gmemd.daemon import auditing
from gmemd.daemon.auditing import Auditor
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.vm import ManagedVm
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy, VmPlan
from gmemd.spec.config import AuditConfig
from tests.unit.daemon.test_fleet import forget, new_fleet
from tests.unit.daemon.vms import region_plan, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.daemon.fleet import Fleet


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auditing, "time", clock)
    return clock


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with new_fleet() as made:
        yield made


@pytest.fixture
def auditor(fleet: Fleet) -> Auditor:
    return Auditor(fleet, Lifecycle(fleet, forget), AuditConfig())


def add(fleet: Fleet, name: str, due: float) -> ManagedVm:
    vm = ManagedVm(name, spec(name), plan=VmPlan(spec(name), (region_plan(),)))
    vm.regions = [Region(region_plan(), -1, (0, 0), Strategy.INODE_POLICY, "")]
    vm.audit_due = due
    fleet.vms[name] = vm
    return vm


def test_the_one_that_is_due_the_longest(fleet: Fleet, auditor: Auditor, clock: Clock) -> None:
    add(fleet, "later", 1010)
    first = add(fleet, "first", 990)
    add(fleet, "then", 995)
    assert auditor._most_due(anew=True) == (first, 990)
    first.audit_due = clock.now + 60
    assert auditor._most_due(anew=False)[1] == 995
    fleet.vms["then"].release_wanted = True
    assert auditor._most_due(anew=False) == (fleet.vms["later"], 1010)
    fleet.vms["later"].regions = []
    clock.now += 30
    assert auditor._most_due(anew=False) == (first, 1060)


def test_where_all_are_busy_it_waits(fleet: Fleet, auditor: Auditor, clock: Clock) -> None:
    """It looks again after a while, and isn't told that the time has come already."""

    async def run() -> None:
        vm = add(fleet, "busy", 990)
        vm.task = asyncio.create_task(asyncio.sleep(60))
        for _ in range(20):
            chosen, due = auditor._most_due(anew=False)
            assert chosen is None
            assert clock.now < due <= clock.now + auditing.LONGEST_PAUSE_SECONDS
            clock.now += 0.7
        vm.task.cancel()
        await asyncio.wait([vm.task])
        assert auditor._most_due(anew=True) == (vm, 990)

    asyncio.run(run())


def test_many_guest_nodes_have_smaller_samples(fleet: Fleet, auditor: Auditor) -> None:
    add(fleet, "vm", 0)
    auditor._most_due(anew=True)
    assert auditor._sample_pages() == AuditConfig().sample_pages
    for number in range(200):
        add(fleet, f"vm-{number}", 0)
    auditor._most_due(anew=True)
    fewer = auditor._sample_pages()
    assert LEAST_PAGES < fewer < AuditConfig().sample_pages
    for number in range(2000):
        add(fleet, f"vm-{number}", 0)
    auditor._most_due(anew=True)
    assert auditor._sample_pages() == LEAST_PAGES


def test_one_that_comes_is_found_before_others_are_due(fleet: Fleet, auditor: Auditor) -> None:
    """Nobody says so: it is there when they are put in order again."""

    async def run() -> None:
        auditor.configure(AuditConfig(interval_seconds=0.5))
        looked: list[str] = []

        async def look(vm: ManagedVm, *, charged: bool) -> None:
            assert charged
            looked.append(vm.name)
            vm.audit_due = time.monotonic() + 60

        auditor._lifecycle.looks.watch = look  # type: ignore[method-assign]
        going_on = asyncio.create_task(auditor.run())
        await asyncio.sleep(0.1)
        add(fleet, "new", 0)
        await asyncio.sleep(0.5)
        going_on.cancel()
        assert looked == ["new"]
        fleet.vms["new"].regions = []

    asyncio.run(run())
