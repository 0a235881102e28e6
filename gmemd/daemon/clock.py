"""The wall clock, which somebody may set: what was told in its times before is put right then.

Nothing is timed by it: intervals, retries and ages are on clocks that only go forward.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.audit.model import VmAudit
    from gmemd.daemon.vm import ManagedVm
    from gmemd.export.snapshot import VmStatus

SMALLEST_STEP_SECONDS = 1.0
"""What a clock is put right by is mostly less, and slewed; so much and more was set."""


def _since_boot() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps. In seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Notices when the wall clock is set."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _since_boot
    ) -> None:
        self._wall, self._steady = wall, steady
        self._ahead = wall() - steady()

    def step(self) -> float:
        """By how many seconds it was set forward (negative: back) since the last call; mostly 0."""
        before, self._ahead = self._ahead, self._wall() - self._steady()
        stepped = self._ahead - before
        return stepped if abs(stepped) >= SMALLEST_STEP_SECONDS else 0.0


def shift_vm(vm: ManagedVm, seconds: float) -> None:
    """Have a VM's times be those of a clock that was set by so much."""
    vm.since += seconds
    if vm.holder is not None:
        vm.holder.since += seconds
    if vm.audit is not None:
        vm.audit = _shifted_audit(vm.audit, seconds)
    vm.touch()


def mistrust_vm(vm: ManagedVm) -> None:
    """Have no time of a VM be still to come, as told by an earlier daemon: the clock was set since.

    By how much nobody knows, so when pages were verified isn't known any more then.
    """
    now = time.time()
    vm.since = min(vm.since, now)
    if vm.holder is not None:
        vm.holder.since = min(vm.holder.since, now)
    if vm.audit is not None:
        regions = (
            replace(region, verified_timestamp=None)
            if region.verified_timestamp is not None and region.verified_timestamp > now
            else region
            for region in vm.audit.regions
        )
        vm.audit = replace(vm.audit, regions=tuple(regions))


def shifted(status: VmStatus, seconds: float) -> VmStatus:
    """A status in the times of a clock that was set by so much."""
    audit = _shifted_audit(status.audit, seconds) if status.audit is not None else None
    return replace(status, since=status.since + seconds, audit=audit)


def _shifted_audit(audit: VmAudit, seconds: float) -> VmAudit:
    regions = (
        region
        if region.verified_timestamp is None
        else replace(region, verified_timestamp=region.verified_timestamp + seconds)
        for region in audit.regions
    )
    return replace(
        audit, started_timestamp=audit.started_timestamp + seconds, regions=tuple(regions)
    )
