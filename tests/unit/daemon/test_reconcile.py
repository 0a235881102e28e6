"""A pass looks at the VMs to which something happened, and at all where other ones are wanted."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from gmemd.daemon.desired import Desired
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.reconcile import Reconciler
from gmemd.daemon.vm import ManagedVm, Work
from gmemd.export.snapshot import VmState
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy
from gmemd.spec.model import Source
from tests.unit.daemon.test_fleet import forget, new_fleet
from tests.unit.daemon.vms import region_plan, spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gmemd.daemon.fleet import Fleet
    from gmemd.export.snapshot import VmStatus
    from gmemd.spec.model import VmSpec

NAMES = ("a", "b", "c")


class NobodyRuns:
    """An observer that finds nothing."""

    unseen_processes = None
    hidden_processes = ""
    found: object = None

    def runs(self, _name: str) -> bool:
        return False

    def waiting(self, _spec: VmSpec) -> tuple[str, str]:
        return "nobody runs", ""

    def beside(self, managed: Iterable[VmStatus]) -> tuple[VmStatus, ...]:
        return tuple(managed)


class Passes:
    """A reconciler that runs; ``next()`` gives which VMs its next pass has looked at."""

    def __init__(self, fleet: Fleet) -> None:
        self.observer = NobodyRuns()
        self._looked_at: list[str] = []
        self._passed = asyncio.Event()
        observer: Any = self.observer
        self.lifecycle = Lifecycle(fleet, forget)
        self.reconciler = Reconciler(
            fleet,
            self.lifecycle,
            observer,
            is_inline=self._note,
            after_pass=self._passed.set,
        )

    def _note(self, looked_at: VmSpec | None) -> bool:
        if looked_at is not None:
            self._looked_at.append(looked_at.vm)
        return False

    async def next(self) -> set[str]:
        self._passed.clear()
        self._looked_at.clear()
        await asyncio.wait_for(self._passed.wait(), 60)
        return set(self._looked_at)


def run(test: Callable[[Fleet, Passes], Awaitable[None]]) -> None:
    async def running() -> None:
        with new_fleet() as fleet:
            fleet.host_due = math.inf
            fleet.desired = wanted(*NAMES)
            passes = Passes(fleet)
            task = asyncio.create_task(passes.reconciler.run())
            assert await passes.next() == set(NAMES)
            await test(fleet, passes)
            task.cancel()

    asyncio.run(running())


def wanted(*names: str, source: Source = Source.REGISTER) -> Desired:
    return Desired({name: spec(name).model_copy(update={"source": source}) for name in names})


def test_only_what_changed_is_looked_at() -> None:
    async def test(fleet: Fleet, passes: Passes) -> None:
        before = passes.reconciler.snapshot
        fleet.changed(fleet.vms["b"])
        assert await passes.next() == {"b"}
        after = passes.reconciler.snapshot
        assert after is not before
        assert all(now is then for now, then in zip(after.vms, before.vms, strict=True))
        fleet.vms["a"].enter(VmState.FAILED, "why")
        fleet.changed(fleet.vms["c"])
        assert await passes.next() == {"a", "c"}, "what nobody told of is looked at as well"
        assert passes.reconciler.snapshot.vms[1] is before.vms[1]

    run(test)


def test_other_specs_have_all_looked_at() -> None:
    async def test(fleet: Fleet, passes: Passes) -> None:
        passes.reconciler.want(wanted("a", "d"))
        looked_at = await passes.next()
        assert {"a", "d"} <= looked_at
        assert set(fleet.vms) == {"a", "d"}, "those without a file and without memory are gone"

    run(test)


def test_what_is_found_running_concerns_those_who_wait_for_it() -> None:
    async def test(fleet: Fleet, passes: Passes) -> None:
        fleet.desired = Desired({**wanted("a").specs, **wanted("b", source=Source.OBSERVE).specs})
        fleet.vms = {name: ManagedVm(name) for name in ("a", "b")}
        fleet.wake.set()
        await passes.next()
        passes.observer.found = object()
        fleet.news()
        assert await passes.next() == {"b"}

    run(test)


def test_a_file_that_went_during_an_audit_that_is_stopped_counts_at_once() -> None:
    async def test(fleet: Fleet, passes: Passes) -> None:
        released = asyncio.Event()

        async def release(_: object) -> None:
            released.set()

        async def audit() -> None:
            await until_stopped.wait()

        until_stopped = asyncio.Event()
        workers: Any = fleet.workers
        workers.release = release
        vm = fleet.vms["a"]
        vm.regions = [Region(region_plan(), -1, (0, 0), Strategy.INODE_POLICY, "")]
        passes.lifecycle.start(vm, Work.AUDIT, audit())
        passes.reconciler.want(wanted("b", "c"))
        await passes.next()
        until_stopped.set()
        await asyncio.wait_for(released.wait(), 10)

    run(test)
