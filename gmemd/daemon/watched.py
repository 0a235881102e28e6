"""A VM that was found running: what is published of it, and of a spec that has none. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.audit.observed import Unknown
from gmemd.daemon.observing import matches, running
from gmemd.export.snapshot import VmState, VmStatus
from gmemd.host.vms.finding import to_see_it
from gmemd.spec.model import Source
from gmemd.spec.problems import printable

if TYPE_CHECKING:
    from gmemd.daemon.desired import Desired
    from gmemd.daemon.observing import Found, FoundVm
    from gmemd.host.vms.model import VmmProcess
    from gmemd.spec.config import DaemonConfig
    from gmemd.spec.model import VmSpec

_DROP_IN = (
    "give gmemd CAP_SYS_PTRACE, as the drop-in gmemd.service.d/observe.conf does for the service"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is observed: VMs of ``specs`` (``source: observe``), and with ``discovery`` all others.

    Those of specs with ``source: adopt`` are looked for, and left to whom adopts them.
    ``sample_pages`` of each guest node are looked at. ``taken`` are names of VMs that aren't
    observed.
    """

    discovery: bool = False
    interval_seconds: float = 60.0
    sample_pages: int = 1024
    specs: tuple[VmSpec, ...] = ()
    taken: frozenset[str] = frozenset()


def wanted(config: DaemonConfig, desired: Desired) -> Wanted:
    """What a configuration and its specs ask to be observed."""
    specs = desired.specs
    observed = tuple(
        spec for spec in specs.values() if spec.source in (Source.OBSERVE, Source.ADOPT)
    )
    return Wanted(
        discovery=config.discovery,
        interval_seconds=config.audit.interval_seconds,
        sample_pages=config.audit.sample_pages,
        specs=observed,
        taken=desired.names - {spec.vm for spec in observed},
    )


@dataclass(slots=True)
class Watched:
    """A VM that runs: as it was found, and as it was last seen.

    ``news``: it wasn't looked at yet, or not since it has another spec. ``failure`` says why it
    could not be looked at, where it couldn't. ``looked_at`` is on the monotonic clock.
    """

    found: FoundVm
    seen: VmStatus | None = None
    news: bool = True
    failure: str = ""
    looked_at: float = 0.0
    _failed: tuple[VmStatus | None, str, VmStatus] | None = None

    @property
    def name(self) -> str:
        """Its name, as it may stand in a log."""
        return printable(self.found.name, longest=None)

    @property
    def status(self) -> VmStatus | None:
        """What is published of it; None before the first look."""
        if not self.failure:
            return self.seen
        known = self._failed
        if known is None or known[0] is not self.seen or known[1] != self.failure:
            self._failed = known = self.seen, self.failure, self._told_failure()
        return known[2]

    def _told_failure(self) -> VmStatus:
        if self.seen is None:
            return _failed(self.found, self.failure)
        warnings = (f"the last audit failed: {self.failure}", *self.seen.warnings)
        return replace(self.seen, warnings=warnings)


def why_waiting(spec: VmSpec, found: Found) -> tuple[str, str]:
    """Why a spec has no running VM of its own, and what to do. Empty words where it has."""
    match = spec.match
    given = dict(match) if match is not None else {"name": spec.vm}
    words = " ".join(f"{key}={value}" for key, value in given.items() if value is not None)
    matching = [vm for vm in found.vms if matches(match, vm.vmm, vm.declaration, vm=spec.vm)]
    if not matching:
        hint = remedy() if found.unseen_processes else ""
        return f"no running VM matches {words}", hint
    if len(matching) > 1:
        pids = ", ".join(str(vm.vmm.pid) for vm in matching)
        return (
            f"{len(matching)} running VMs match {words}: pids {pids}",
            "have match name what only one of them has, such as its unit or its pidfile",
        )
    (vm,) = matching
    if vm.name == spec.vm:
        return "", ""
    return f"the VM that matches {words}, pid {vm.vmm.pid}, is that of the spec {vm.name}", ""


def same_process(one: FoundVm, other: FoundVm) -> bool:
    """Whether both are one process that is still the same program."""
    return _identity(one.vmm) == _identity(other.vmm)


def _identity(vmm: VmmProcess) -> tuple[int, int, tuple[str, ...]]:
    return vmm.pid, vmm.start_ticks, vmm.argv


def remedy() -> str:
    """What the daemon needs to look into all processes."""
    return _DROP_IN if os.geteuid() != 0 else to_see_it()


def in_a_daemons_words(seen: VmStatus) -> VmStatus:
    """Say what a daemon needs, where it says what a command would."""
    told, mine = to_see_it(), remedy()
    return replace(
        seen,
        hint=seen.hint.replace(told, mine),
        warnings=tuple(warning.replace(told, mine) for warning in seen.warnings),
    )


def _failed(vm: FoundVm, failure: str) -> VmStatus:
    """A VM that nothing was seen of, as looking at it failed."""
    vmm = vm.vmm
    return VmStatus(
        vm=vm.name,
        source=Source.OBSERVE,
        state=VmState.FAILED,
        since=vmm.started_timestamp,
        message=f"looking at it failed: {failure}",
        hint="the daemon's log has the traceback",
        running=running(vmm, str(Unknown.UNREADABLE)),
    )
