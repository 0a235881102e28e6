"""A wall clock that somebody sets: noticed, and what was told before is put right."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gmemd.daemon.clock import WallClock, mistrust_vm, shift_vm, shifted
from gmemd.daemon.holding import Holder
from gmemd.daemon.vm import ManagedVm
from tests.unit.daemon.vms import audited_status

DAY = 86400.0


class Clocks:
    """A wall clock that can be set, and one that can't."""

    def __init__(self) -> None:
        self.wall, self.steady = 1.7e9, 100.0
        self.watched = WallClock(lambda: self.wall, lambda: self.steady)

    def go_on(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize("days", [3, -3])
def test_a_clock_that_is_set_is_noticed_once(days: int) -> None:
    clocks = Clocks()
    clocks.go_on(3600)
    assert clocks.watched.step() == 0.0
    clocks.wall += days * DAY
    clocks.go_on(30)
    assert clocks.watched.step() == pytest.approx(days * DAY)
    clocks.go_on(30)
    assert clocks.watched.step() == 0.0


def test_a_clock_that_is_slewed_is_nothing_to_tell_of() -> None:
    clocks = Clocks()
    for _ in range(100):
        clocks.go_on(30)
        clocks.wall += 0.3
        assert clocks.watched.step() == 0.0


def test_all_times_of_a_vm_are_put_right() -> None:
    status = audited_status()
    assert status.audit is not None
    dated = tuple(replace(each, verified_timestamp=5.0) for each in status.audit.regions[:1])
    audit = replace(status.audit, regions=dated + status.audit.regions[1:])
    vm = ManagedVm("vm", since=10.0, audit=audit, holder=Holder(-1, 7, since=20.0))
    before = vm.revision
    shift_vm(vm, DAY)
    assert vm.revision is not before, "it is told anew"
    told = vm.status()
    assert told.audit is not None
    assert told.holder is not None
    assert (told.since, told.holder.since) == (10.0 + DAY, 20.0 + DAY)
    assert told.audit.started_timestamp == audit.started_timestamp + DAY
    assert [each.verified_timestamp for each in told.audit.regions] == [5.0 + DAY, None]
    seen = shifted(replace(status, audit=audit), -0.5)
    assert seen.audit is not None
    assert (seen.since, seen.audit.started_timestamp) == (0.5, 0.5)
    assert shifted(replace(status, audit=None), 1.0).audit is None


def test_no_time_that_an_earlier_daemon_told_is_still_to_come() -> None:
    status, now = audited_status(), time.time()
    assert status.audit is not None
    first, second = status.audit.regions
    regions = (
        replace(first, verified_timestamp=now + DAY),
        replace(second, verified_timestamp=now - DAY),
    )
    audit = replace(status.audit, regions=regions)
    vm = ManagedVm("vm", since=now + DAY, audit=audit, holder=Holder(-1, 7, since=now + DAY))
    mistrust_vm(vm)
    assert vm.audit is not None
    assert vm.holder is not None
    assert now <= vm.since <= time.time()
    assert now <= vm.holder.since <= time.time()
    assert [each.verified_timestamp for each in vm.audit.regions] == [None, now - DAY]
    earlier = ManagedVm("vm", since=now - DAY, holder=Holder(-1, 7, since=now - DAY))
    mistrust_vm(earlier)
    assert (earlier.since, earlier.holder and earlier.holder.since) == (now - DAY, now - DAY)
