"""Running VMs, found and looked at: what the daemon and `gmemd audit --all` both do.

Everything here blocks, and nothing needs a spec, a daemon or a descriptor that is kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.audit.observed import (
    ObservedAudit,
    Unknown,
    Unseen,
    audit_observed,
    gone,
    read_policies,
)
from gmemd.drift.compute import compute_drift
from gmemd.drift.rivals import as_unknown, misled
from gmemd.errors import GmemdError
from gmemd.export.snapshot import RegionStatus, Running, Unmatched, VmState, VmStatus
from gmemd.host.vms.finding import VmmFinder, still_runs
from gmemd.host.vms.hidden import hidden_processes
from gmemd.plan.matching import LEAST_GUEST_BYTES
from gmemd.plan.observed import is_no_vm, plan_observed, unique_names
from gmemd.spec.model import Source
from gmemd.spec.sizes import format_size
from gmemd.spec.vmm.reading import read_command_line, vmm_kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from gmemd.audit.model import PolicyRead, VmAudit
    from gmemd.audit.observed import Effort
    from gmemd.drift.model import VmDrift
    from gmemd.host.model import Host
    from gmemd.host.vms.model import VmmProcess
    from gmemd.plan.observed import ObservedVm
    from gmemd.spec.declared import Declaration
    from gmemd.spec.model import Match, VmSpec

ATTEMPTS = 3
CHANGING = "its mappings changed while they were looked at, again and again"
MORE_BY_POLICIES = "`gmemd audit --full` with its name reads the kernel's policies, which may tell"
DECLARES_NOTHING = "nothing declares where its memory should be: shown as it is"


@dataclass(frozen=True, slots=True)
class FoundVm:
    """A VM that runs: its name, its process, what its command line declares, its spec if any."""

    name: str
    vmm: VmmProcess
    declaration: Declaration
    spec: VmSpec | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """All VMs by name, how many processes may hold one and can't be seen, which are hidden."""

    vms: tuple[FoundVm, ...] = ()
    unseen_processes: int = 0
    hidden_processes: str = ""


@dataclass(slots=True)
class Finder:
    """Finds running VMs; one that is asked again and again is quicker."""

    processes: VmmFinder = field(default_factory=VmmFinder)

    def find(
        self,
        specs: Iterable[VmSpec] = (),
        taken: Iterable[str] = (),
        *,
        among: Collection[int] | None = None,
    ) -> Found:
        """Return the VMs that run now, by name; of the processes ``among`` alone where given.

        ``specs`` are those that tell how a running VM is found (observe, adopt), and it gets the
        spec's name; ``taken`` are names that other VMs have.
        """
        found = _named(*_described(self.processes, among=among), tuple(specs), taken)
        if among is not None:
            return found
        return replace(found, hidden_processes=hidden_processes())

    def find_pid(self, pid: int) -> FoundVm | None:
        """Return the VM that a process holds, or that it is said to be; None if there is none."""
        for vmm, declaration in _described(self.processes, only=pid)[0]:
            return FoundVm(unique_names([(vmm, declaration)])[0], vmm, declaration)
        return None

    def observe(self, found: FoundVm, host: Host, effort: Effort) -> VmStatus:
        """Look where a VM's memory is now, as `observe` does.

        Its process is looked at before, as it may have other mappings than when it was found, and
        again afterwards: had they changed meanwhile, the pages might be other memory's.
        """
        pid = found.vmm.pid
        before = self.processes.mappings(pid, LEAST_GUEST_BYTES)
        for _ in range(ATTEMPTS):
            now = self._again(found)
            if now is None:
                return _unseen(found, host, gone(found.vmm))
            status = observe(now, host, effort)
            before, then = self.processes.mappings(pid, LEAST_GUEST_BYTES), before
            if before == then:
                return status
        return _unseen(found, host, Unseen(Unknown.UNREADABLE, CHANGING))

    def _again(self, found: FoundVm) -> FoundVm | None:
        """The VM as it is now; None if its process ended, or is another program by now."""
        for vmm in self.processes.find(found.vmm.pid).vmms:
            if still_runs(found.vmm) and vmm.argv == found.vmm.argv:
                return replace(found, vmm=vmm)
        return None


def _unseen(found: FoundVm, host: Host, unseen: Unseen) -> VmStatus:
    """What is known of a VM whose memory wasn't looked at."""
    vm = plan_observed(found.name, found.vmm, found.declaration, host, spec=found.spec)
    nothing = tuple(None for _ in vm.unmatched)
    return _status(vm, ObservedAudit(None, nothing, (unseen,)), None, None)


def _described(
    finder: VmmFinder, only: int | None = None, *, among: Collection[int] | None = None
) -> tuple[list[tuple[VmmProcess, Declaration]], int]:
    found = finder.find(only, among=among)
    described = []
    for vmm in found.vmms:
        kind = vmm_kind(vmm.argv[0] if vmm.argv else "") or vmm_kind(vmm.program)
        declaration = read_command_line(kind, vmm.argv, machine=os.uname().machine)
        if only is not None or not is_no_vm(vmm, declaration):
            described.append((vmm, declaration))
    return described, found.unseen


def _named(
    described: Sequence[tuple[VmmProcess, Declaration]],
    unseen: int,
    specs: Sequence[VmSpec],
    taken: Iterable[str],
) -> Found:
    """Give the VMs their names: of the spec that asks for it, else of its own."""
    mine: dict[int, VmSpec] = {}
    for spec in specs:
        matching = [pair for pair in described if matches(spec.match, *pair, vm=spec.vm)]
        if len(matching) == 1:
            mine.setdefault(matching[0][0].pid, spec)
    others = [pair for pair in described if pair[0].pid not in mine]
    names = unique_names(others, {*taken, *(spec.vm for spec in specs)})
    found = [FoundVm(name, *pair) for name, pair in zip(names, others, strict=True)]
    found += [
        FoundVm(mine[vmm.pid].vm, vmm, declaration, mine[vmm.pid])
        for vmm, declaration in described
        if vmm.pid in mine
    ]
    return Found(tuple(sorted(found, key=lambda vm: vm.name)), unseen)


def matches(match: Match | None, vmm: VmmProcess, declaration: Declaration, *, vm: str) -> bool:
    """Whether a running VM is the one that a spec means; without ``match`` it is by its name."""
    if match is None:
        return declaration.name == vm
    if match.qemu_name is not None:
        return declaration.vmm == "qemu" and declaration.name == match.qemu_name
    if match.unit is not None:
        return vmm.unit == match.unit
    if match.cgroup is not None:
        wanted = match.cgroup.removeprefix("/sys/fs/cgroup").rstrip("/")
        return vmm.cgroup == wanted or vmm.cgroup.startswith(f"{wanted}/")
    return match.pidfile is not None and _pid_in(match.pidfile) == vmm.pid


def _pid_in(path: str) -> int | None:
    """The pid that a pidfile holds; None where there is none."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def observe(found: FoundVm, host: Host, effort: Effort) -> VmStatus:
    """Look where one running VM's memory is, and judge it by what was declared.

    With an effort that looks at every page the kernel's policies are read too. Whatever can't be
    seen of the VM is part of the answer. Raises AuditStoppedError.
    """
    policies: dict[int, PolicyRead] = {}
    unread: tuple[Unseen, ...] = ()
    if effort.sample_pages is None and not (found.vmm.blocked or found.vmm.userfaultfd):
        try:
            policies = read_policies(found.vmm)
        except GmemdError as error:
            words = f"the kernel's policies of its memory: {error.message}"
            unread = (Unseen(Unknown.UNREADABLE, words, error.hint or ""),)
    vm = plan_observed(
        found.name,
        found.vmm,
        found.declaration,
        host,
        policies={address: (held.mode, held.nodes) for address, held in policies.items()},
        spec=found.spec,
    )
    seen = _with_missing(vm, audit_observed(vm, effort, policies), effort)
    if unread and not seen.unseen:
        seen = replace(seen, unseen=unread)
    audit = _believed(vm, seen.audit, host) if seen.audit is not None else None
    drift = compute_drift(vm.plan, audit, host) if audit is not None and vm.regions else None
    return _status(vm, seen, audit, drift)


def _with_missing(vm: ObservedVm, seen: ObservedAudit, effort: Effort) -> ObservedAudit:
    """Say what is declared and may be in memory that can't be told apart."""
    if not (vm.missing and vm.unmatched):
        return seen
    hint = "" if effort.sample_pages is None else MORE_BY_POLICIES
    unseen = Unseen(Unknown.UNMATCHED, "; ".join(vm.missing), hint)
    return replace(seen, unseen=(*seen.unseen, unseen))


def _believed(vm: ObservedVm, audit: VmAudit, host: Host) -> VmAudit:
    """Count as unknown what only a doubtful order attributes to a region."""
    audits = {(region.guest_node, region.index): region for region in audit.regions}
    groups: dict[int, list[tuple[int, int]]] = {}
    plans = {(region.plan.guest_node, region.plan.index): region.plan for region in vm.regions}
    for region in vm.regions:
        if region.rivals:
            key = (region.plan.guest_node, region.plan.index)
            groups.setdefault(region.rivals, []).append(key)
    for keys in groups.values():
        group = [plans[key] for key in keys]
        if misled(group, audits, host, vm.plan.spec.drift_tolerance):
            for key in keys:
                if key in audits:
                    audits[key] = replace(as_unknown(audits[key], len(keys)), where=None)
    return replace(audit, regions=tuple(audits.values()))


def _status(
    vm: ObservedVm, seen: ObservedAudit, audit: VmAudit | None, drift: VmDrift | None
) -> VmStatus:
    """Put together what the snapshot has of a running VM."""
    state, message, hint = VmState.READY, "", ""
    first = seen.unseen[0] if seen.unseen else None
    if audit is None and first is not None:
        state, message, hint = VmState.WAITING, f"memory unknown: {first.message}", first.hint
    elif drift is not None and drift.drifting:
        worst = next(node for node in drift.guest_nodes if node.drifting)
        state = VmState.DEGRADED
        message = f"guest node {worst.guest_node}: {worst.cause}: {worst.detail}"
        hint = worst.remedy
    elif drift is not None:
        message = "; ".join(_unknown_words(drift))
    return VmStatus(
        vm=vm.name,
        source=Source.OBSERVE,
        state=state,
        since=vm.vmm.started_timestamp,
        message=message,
        hint=hint,
        uuid=vm.uuid,
        regions=_regions(vm),
        drift=drift,
        audit=audit,
        tolerance=vm.plan.spec.drift_tolerance,
        warnings=tuple(_warnings(vm, seen, audit)),
        running=_running(vm, seen),
    )


def _unknown_words(drift: VmDrift) -> Iterator[str]:
    """What of a VM's memory was looked at, and not seen."""
    for node in drift.guest_nodes:
        if node.unknown_bytes:
            why = node.unknown_reason or "its host node could not be read"
            yield f"guest node {node.guest_node}: {format_size(node.unknown_bytes)} unseen: {why}"


def _regions(vm: ObservedVm) -> tuple[RegionStatus, ...]:
    how = {(region.plan.guest_node, region.plan.index): region.how for region in vm.regions}
    return tuple(
        RegionStatus(plan, reason=_reason(how.get((plan.guest_node, plan.index))))
        for plan in vm.plan.regions
    )


def _reason(how: str | None) -> str:
    return f"its memory was found by {how}" if how is not None else "its memory wasn't found"


def _running(vm: ObservedVm, seen: ObservedAudit) -> Running:
    return replace(
        running(vm.vmm, str(seen.unseen[0].reason) if seen.unseen else ""),
        declared_by=vm.declared_by,
        unmatched=tuple(
            Unmatched(
                size_bytes=left.piece.size_bytes,
                page_size=left.piece.page_size,
                backend=str(left.piece.kind),
                why=left.why,
                audit=audit,
            )
            for left, audit in zip(vm.unmatched, seen.unmatched, strict=True)
        ),
    )


def running(vmm: VmmProcess, unknown: str = "") -> Running:
    """What there is to say of a VMM's process; ``unknown``: why its memory was not looked at."""
    return Running(
        pid=vmm.pid,
        program=vmm.program,
        kvm=vmm.kvm,
        unit=vmm.unit,
        cgroup=vmm.cgroup,
        started_timestamp=vmm.started_timestamp,
        unknown=unknown,
    )


def _warnings(vm: ObservedVm, seen: ObservedAudit, audit: VmAudit | None) -> Iterator[str]:
    if not vm.declared_by and not vm.vmm.blocked:
        yield DECLARES_NOTHING
    yield from vm.notes
    if not vm.unmatched:
        yield from vm.missing
    if audit is not None:
        for unseen in seen.unseen:
            yield f"not all of it was seen: {unseen.message}" + (
                f" ({unseen.hint})" if unseen.hint else ""
            )


def see(finder: Finder, found: FoundVm, host: Host, effort: Effort) -> VmStatus | None:
    """How a VM is; None where it isn't what it was found to be any more. Blocks."""
    seen = finder.observe(found, host, effort)
    gone = seen.running is not None and seen.running.unknown == Unknown.GONE
    return None if gone else seen
