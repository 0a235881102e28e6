"""Memory on its way into somebody's hands, while it is made sure that it outlives the daemon."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.daemon.handing import Handing
from gmemd.daemon.holding import Holder
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.possession import Possession
from gmemd.daemon.store.unkept import Unkept
from gmemd.daemon.varlink.errors import NotReady
from gmemd.daemon.vm import ManagedVm
from gmemd.export.snapshot import VmState
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy
from tests.unit.daemon.test_fleet import forget, new_fleet
from tests.unit.daemon.vms import host, region_plan, spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gmemd.daemon.fleet import Fleet


class Slow(Unkept):
    """Keeps everything, once it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def secure(self) -> None:
        await self.go_on.wait()


class Being:
    """A VM whose memory is about to be handed out by calls."""

    def __init__(self, fleet: Fleet) -> None:
        lifecycle = Lifecycle(fleet, forget)
        self.fleet = fleet
        self.keeper = fleet.keeper = Slow()
        self.possession = Possession(fleet, lifecycle, fleet.tell)
        reconciler: Any = SimpleNamespace(possession=self.possession)
        self.handing = Handing(fleet, lifecycle, reconciler)
        fd = os.memfd_create("guest")
        plan = replace(region_plan(), vm="vm")
        region = Region(plan, fd, (1, 1), Strategy.INODE_POLICY, "kept")
        self.vm = ManagedVm("vm", spec=spec(), state=VmState.READY, regions=[region])
        fleet.vms["vm"] = self.vm
        fleet.host = host()

    async def acquire(self) -> Holder:
        """Who acquired it; closed where it was refused, as the caller does."""
        holder = Holder(os.pidfd_open(os.getpid()), os.getpid())
        try:
            async for _ in self.handing.acquire("vm", holder, None):
                pass
        except BaseException:
            holder.close()
            raise
        return holder

    def close(self) -> None:
        self.possession.close()
        if self.vm.holder is not None:
            self.vm.holder.close()
        for region in self.vm.regions:
            region.close()


def being_given(check: Callable[[Being], Awaitable[None]]) -> None:
    async def run() -> None:
        with new_fleet() as fleet:
            being = Being(fleet)
            try:
                async with asyncio.timeout(20):
                    await check(being)
            finally:
                being.close()

    asyncio.run(run())


def test_what_is_taken_away_meanwhile_is_not_handed_out() -> None:
    async def check(being: Being) -> None:
        acquiring = asyncio.create_task(being.acquire())
        await asyncio.sleep(0.05)
        being.possession.release_soon(being.vm)
        being.keeper.go_on.set()
        with pytest.raises(NotReady):
            await acquiring
        assert being.vm.holder is None

    being_given(check)


def test_what_another_call_may_yet_give_up_is_not_handed_out() -> None:
    async def check(being: Being) -> None:
        first = asyncio.create_task(being.acquire())
        await asyncio.sleep(0.05)
        second = asyncio.create_task(being.acquire())
        await asyncio.sleep(0.05)
        assert not second.done()
        first.cancel()
        await asyncio.wait([first])
        being.keeper.go_on.set()
        assert being.vm.holder is await second
        assert being.vm.held

    being_given(check)


def test_memory_that_isnt_all_there_is_not_given_to_its_holder_again() -> None:
    async def check(being: Being) -> None:
        being.keeper.go_on.set()
        await being.acquire()
        being.vm.lost = "a part is gone"
        with pytest.raises(NotReady):
            await being.acquire()

    being_given(check)
