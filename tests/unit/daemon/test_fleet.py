"""What the daemon's parts have in common: who waits for a change is told of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.fleet import NEWS_SECONDS, Fleet
from gmemd.daemon.holding import Holder
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.varlink.errors import NoSuchVM
from gmemd.daemon.vm import ManagedVm
from gmemd.daemon.work import Workers
from gmemd.export.instruments import Counters
from gmemd.memory.regions import Region
from gmemd.plan.admission import Reserve
from gmemd.plan.model import Strategy
from tests.unit.daemon.vms import MIB, region_plan

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_fleet() -> Iterator[Fleet]:
    workers = Workers()
    try:
        yield Fleet(workers, Counters(), reserve=Reserve(0.0, 0), audit_interval_seconds=60)
    finally:
        workers.close()


async def forget(_: str) -> None:
    """Nobody's spec."""


def test_a_change_while_one_looks_away_is_not_missed() -> None:
    async def wait() -> None:
        with new_fleet() as fleet:
            seen = fleet.changes
            fleet.tell()
            await asyncio.wait_for(fleet.change(seen), 60)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fleet.change(fleet.changes), 0.05)

    asyncio.run(wait())


def test_nothing_is_done_for_a_vm_that_was_forgotten_meanwhile() -> None:
    done: list[str] = []

    async def work() -> None:
        done.append("work")

    async def ask() -> None:
        with new_fleet() as fleet:
            lifecycle = Lifecycle(fleet, forget)
            vm = fleet.vms["vm"] = ManagedVm("vm")
            vm.task = asyncio.create_task(asyncio.sleep(0.01))
            asking = asyncio.create_task(lifecycle.do(vm, work))
            await asyncio.sleep(0)
            del fleet.vms["vm"]
            with pytest.raises(NoSuchVM):
                await asking
            fleet.vms["vm"] = vm
            await lifecycle.do(vm, work)

    asyncio.run(ask())
    assert done == ["work"]


def test_memory_is_placed_after_what_is_about_to_be_given_back() -> None:
    """Else what is placed would be given back with what was there before."""
    before = subprocess.Popen([sys.executable, "-c", ""])
    holder = Holder(os.pidfd_open(before.pid), before.pid)
    before.wait()

    async def ask() -> list[bool]:
        with new_fleet() as fleet:
            vm = fleet.vms["vm"] = ManagedVm("vm")
            vm.holder = holder
            assert vm.held
            assert vm.bereft

            async def work() -> list[bool]:
                return [vm.held, vm.release_wanted]

            asking = asyncio.create_task(Lifecycle(fleet, forget).do(vm, work))
            await asyncio.sleep(0.01)
            holder.close()
            vm.release_wanted = True
            fleet.tell()
            await asyncio.sleep(0.01)
            assert not asking.done()
            vm.release_wanted = False
            fleet.tell()
            return await asking

    assert asyncio.run(ask()) == [False, False]


def test_promises_are_summed_up_anew_when_one_changes() -> None:
    async def ask() -> list[dict[int, int]]:
        with new_fleet() as fleet:
            one, other = provisioned("one"), provisioned("other")
            fleet.vms |= {vm.name: vm for vm in (one, other)}
            sums = [dict(fleet.commitments().committed)]
            assert fleet.commitments() is fleet.commitments()
            other.regions = []
            sums.append(dict(fleet.commitments().committed))
            del fleet.vms["other"], fleet.vms["one"]
            return [*sums, dict(fleet.commitments().committed)]

    assert asyncio.run(ask()) == [{0: 16 * MIB}, {0: 8 * MIB}, {}]


def provisioned(name: str) -> ManagedVm:
    plan = replace(region_plan(), vm=name, prefault=False)
    return ManagedVm(name, regions=[Region(plan, -1, (0, 0), Strategy.INODE_POLICY, "")])


def test_news_are_told_at_once_and_then_in_bundles() -> None:
    async def tell() -> tuple[float, float]:
        with new_fleet() as fleet:
            begun = time.monotonic()
            fleet.news()
            await asyncio.wait_for(fleet.wake.wait(), 60)
            first = time.monotonic() - begun
            fleet.wake.clear()
            fleet.tell()
            begun = time.monotonic()
            for _ in range(100):
                fleet.news()
            await asyncio.wait_for(fleet.wake.wait(), 60)
            return first, time.monotonic() - begun

    first, second = asyncio.run(tell())
    assert first < NEWS_SECONDS / 2
    assert second > NEWS_SECONDS / 2
