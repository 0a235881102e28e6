"""One VM under the daemon's care: the state that changes, and nothing that blocks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from gmemd.daemon.hostnews import is_without_memory
from gmemd.drift.bounds import bytes_between
from gmemd.export.snapshot import RegionStatus, VmState, VmStatus
from gmemd.plan.ledger import commitments
from gmemd.plan.model import Strategy
from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping

    from gmemd.audit.model import VmAudit
    from gmemd.daemon.holding import Holder
    from gmemd.drift.model import VmDrift
    from gmemd.errors import GmemdError
    from gmemd.memory.errors import ProvisionError
    from gmemd.memory.progress import Progress
    from gmemd.memory.regions import Region
    from gmemd.plan.checks import Finding
    from gmemd.plan.ledger import Commitments
    from gmemd.plan.model import Refusal, RegionPlan, VmPlan
    from gmemd.spec.model import VmSpec
    from gmemd.spec.problems import Problem

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
LOST_HINT = "start its VMM anew, or give back what is left: `gmemd release --force`"
UNSTORED = (
    "a restart of gmemd loses {count} of its descriptors, systemd's fd store lacks them: {why}"
)
KEPT = "its VMM has exited, its memory is kept for the next one"


_NOT_SEEN = frozenset(
    {"audit_due", "looked_at", "work", "task", "revision", "_status", "_promised"}
)


class Work(Enum):
    """What is being done for a VM. During an audit its memory may be handed out."""

    PROVISION = auto()
    PLACE = auto()
    APPLY = auto()
    AUDIT = auto()
    RELEASE = auto()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a VM has no memory, for programs: what refused it, or what went wrong."""

    refusals: tuple[Refusal, ...] = ()
    error: ProvisionError | None = None


def retry_seconds(attempts: int) -> float:
    """How long to wait after so many failed attempts, at least one: doubling up to a limit."""
    return min(FIRST_RETRY_SECONDS * (1 << min(attempts - 1, 16)), LONGEST_RETRY_SECONDS)


@dataclass(slots=True)
class ManagedVm:
    """A VM's spec, memory and history. Written by the event loop alone, but for ``progress``.

    ``spec`` is the one in force, None where only a broken file is known. ``plan`` and ``regions``
    are what there is; ``promised`` counts the plan before the regions are there. ``pending`` says
    what a newer spec (``pending_spec``) asks for that isn't done to memory that exists.
    ``retry_at``, ``audit_due`` and ``seen_whole_at``, which is when somebody last asked for a look
    at all of it, are on the monotonic clock.

    ``holder`` has the memory; one that isn't alive has left it behind, to be kept. A VM is
    ``dormant`` once its memory was given back after use: it is made again when somebody wants it.
    ``release_wanted``: what there is is given back as soon as nothing else is done for the VM.
    ``inline``: its spec came with a call, and goes with the memory. ``prefaulted`` tells whether
    the holder's cgroup has paid for its pages (cgroup: peer). ``failures`` counts all failed
    attempts ever, ``failed`` those by reason, ``cause`` is the last one's.
    ``spec_indexes`` gives, by region id, the place of a region's spec among its guest node's.
    ``looked_at`` is bytes, and bytes in all, of an audit.
    ``left_alone`` is the pid of a VMM that was let go while it runs: it isn't adopted unasked.
    ``answer`` is what an audit told that is for who asked alone. ``unadopted`` is why a VMM that
    runs isn't adopted, and the way out. ``audit_before`` is what an earlier daemon had verified.
    ``lost`` tells what of its memory didn't come back after a restart; ``unstored`` how many of its
    descriptors won't come back after the next one, and why.

    ``out_of_reach`` has what is to be said of host nodes that its memory may be on, and that are
    gone by now or forbidden to gmemd.

    ``revision`` is another object whenever something of it has changed that others see or that asks
    for work; what is made of a VM is made anew only then.
    """

    name: str
    spec: VmSpec | None = None
    problem: Problem | None = None
    state: VmState = VmState.WAITING
    since: float = field(default_factory=time.time)
    message: str = ""
    hint: str = ""
    pending: str = ""
    pending_spec: VmSpec | None = None
    plan: VmPlan | None = None
    promised: bool = False
    regions: list[Region] = field(default_factory=list)
    progress: Progress | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    failure: str = ""
    attempts: int = 0
    retry_at: float = 0.0
    audit: VmAudit | None = None
    audit_error: str = ""
    audit_due: float = 0.0
    seen_whole_at: float = 0.0
    answer: VmStatus | None = None
    drift: VmDrift | None = None
    work: Work | None = None
    holder: Holder | None = None
    dormant: bool = False
    release_wanted: bool = False
    inline: bool = False
    prefaulted: bool = False
    failures: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    cause: Failure | None = None
    spec_indexes: dict[int, int] = field(default_factory=dict)
    next_region_id: int = 0
    looked_at: tuple[int, int] | None = None
    left_alone: int = 0
    unadopted: tuple[str, str] = ("", "")
    holder_warnings: tuple[str, ...] = ()
    out_of_reach: tuple[Finding, ...] = ()
    audit_before: VmAudit | None = None
    lost: str = ""
    unstored: tuple[int, str] = (0, "")
    revision: object = field(default_factory=object)
    _status: tuple[object, VmStatus] | None = None
    _promised: tuple[object, Commitments] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; that is a new revision, unless it is what it was or is nobody's."""
        before = getattr(self, name, None)
        object.__setattr__(self, name, value)
        if name not in _NOT_SEEN and before is not value:
            object.__setattr__(self, "revision", object())

    def touch(self) -> None:
        """Have it be another revision, as something that it stands on has changed."""
        self.revision = object()

    @property
    def held(self) -> bool:
        """Whether a process that is alive has the memory."""
        return self.holder is not None and self.holder.alive

    @property
    def kept(self) -> bool:
        """Whether a process has left the memory behind, with what is in it."""
        return bool(self.regions) and self.holder is not None and not self.held

    @property
    def busy(self) -> bool:
        """Whether work for this VM is under way."""
        return self.task is not None and not self.task.done()

    @property
    def untouched(self) -> bool:
        """Whether nothing is done for it, and its memory is not about to be given back."""
        return not (self.busy or self.release_wanted or self.bereft)

    @property
    def bereft(self) -> bool:
        """Whether its holder has exited, which the event loop is about to be told."""
        return self.held and self.holder is not None and self.holder.exited

    @property
    def steady(self) -> bool:
        """Whether there is memory, and nothing but an audit is done to it."""
        idle = not self.busy or self.work is Work.AUDIT
        return bool(self.regions) and idle and not self.release_wanted

    def enter(self, state: VmState, message: str = "", hint: str = "") -> bool:
        """Go to a state; True where it or its message is another than before."""
        changed = (state, message) != (self.state, self.message)
        if state is not self.state:
            self.since = time.time()
        self.state, self.message, self.hint = state, message, hint
        return changed

    def fail(self, reason: str, message: str, hint: str = "", cause: Failure | None = None) -> bool:
        """Record a failed attempt, and when to try again; True where it is news.

        ``reason`` is one word: figures in a message may differ from one attempt to the next.
        """
        self.progress = None
        self.cause = cause
        self.failures += 1
        self.failed = {**self.failed, reason: self.failed.get(reason, 0) + 1}
        self.attempts += 1
        self.retry_at = time.monotonic() + retry_seconds(self.attempts)
        news, self.failure = reason != self.failure, reason
        self.enter(VmState.FAILED, message, hint)
        return news

    def ask(self, spec: VmSpec | None) -> None:
        """Take on a spec for memory that isn't there yet; what failed before counts no more."""
        self.spec, self.plan, self.failure, self.attempts, self.retry_at = spec, None, "", 0, 0.0

    def postpone(self, spec: VmSpec, why: str) -> None:
        """Leave a newer spec for later, and say why."""
        self.pending_spec, self.pending = spec, f"pending change: {why}"

    def put_off(self, error: GmemdError) -> None:
        """Leave a newer spec for a while, as its policies couldn't be set; the old ones hold."""
        self.pending = f"pending change: {error.message}; it is tried again"
        self.attempts += 1
        self.retry_at = time.monotonic() + retry_seconds(self.attempts)

    def outcomes(self) -> dict[tuple[int, int], str]:
        """What became of each region's policy, by guest node and index."""
        return {
            (region.plan.guest_node, region.plan.index): str(region.bind.outcome)
            for region in self.regions
            if region.bind is not None
        }

    def rebound(self) -> frozenset[tuple[int, int]]:
        """Return the regions, by guest node and index, whose policy was set again."""
        return frozenset(
            (region.plan.guest_node, region.plan.index) for region in self.regions if region.rebound
        )

    def promises(self) -> tuple[RegionPlan, ...]:
        """Return the regions that count against the host: those made, or being made."""
        if self.regions:
            return tuple(region.plan for region in self.regions)
        return self.plan.regions if self.promised and self.plan is not None else ()

    def resident(self) -> Iterator[tuple[tuple[str, int, int], Mapping[int, int]]]:
        """What of its promises is there already: bytes by host node, by region.

        Before the first audit it is taken from the prefault, in proportion to each node's part; of
        what grows by itself and was only sampled, it is what is there at the least.
        """
        audited = {(a.guest_node, a.index): a for a in self.audit.regions} if self.audit else {}
        for plan in self.promises():
            seen = audited.get((plan.guest_node, plan.index))
            sampled = seen is not None and seen.sample is not None and not plan.prefault
            if seen is not None and (sampled or seen.resident_bytes < plan.size_bytes):
                there = {
                    node: bytes_between(seen, node)[0] if sampled else held
                    for node, held in seen.by_node.items()
                }
            else:
                ratio = 1.0 if seen is not None else self._prefaulted_ratio(plan)
                there = {node: int(size * ratio) for node, size in plan.demand.items()}
            yield (plan.vm, plan.guest_node, plan.index), there

    def _prefaulted_ratio(self, plan: RegionPlan) -> float:
        if not plan.prefault:
            return 0.0
        return 1.0 if self.regions else self.progress.ratio if self.progress else 0.0

    def commitments(self) -> Commitments:
        """What it was promised and doesn't have yet: the same object as long as it is the same."""
        revision, known = self.revision, self._promised
        if known is None or known[0] is not revision:
            promised = commitments(self.promises(), dict(self.resident()))
            same = known is not None and known[1] == promised
            known = revision, known[1] if same and known is not None else promised
            self._promised = known
        return known[1]

    def settle(self) -> bool:
        """Go to ready or degraded, by what is known of the memory; True where it is news."""
        self.progress, self.failure, self.attempts = None, "", 0
        for message, hint in self._shortcomings():
            return self.enter(VmState.DEGRADED, message, hint)
        return self.enter(VmState.READY)

    def _shortcomings(self) -> Iterator[tuple[str, str]]:
        """What keeps the VM from being ready, worst first, with the way out."""
        if self.lost:
            yield self.lost, LOST_HINT
        for drift in self.drift.guest_nodes if self.drift is not None else ():
            if drift.drifting:
                yield f"guest node {drift.guest_node}: {drift.cause}: {drift.detail}", drift.remedy
        for region in self.regions:
            plan = region.plan
            where = f"guest node {plan.guest_node}"
            if plan.policy is PolicyMode.DEFAULT and not plan.host_nodes:
                continue
            if region.strategy is Strategy.UNMANAGED:
                yield (
                    f"{where}: unmanaged: {region.reason}",
                    region.bind.remedy if region.bind else "",
                )
            elif region.strategy is Strategy.INODE_POLICY and region.bind and not region.bind.ok:
                yield (
                    f"{where}: policy {region.bind.outcome}: {region.bind.detail}",
                    region.bind.remedy,
                )
        for finding in filter(is_without_memory, self.out_of_reach):
            yield finding.message, finding.hint

    def status(self) -> VmStatus:
        """Return the VM as the snapshot has it: the same object as long as it is the same."""
        revision, known = self.revision, self._status
        if known is None or known[0] is not revision:
            status = self._new_status()
            same = known is not None and known[1] == status
            known = revision, known[1] if same and known is not None else status
            self._status = known
        return known[1]

    def _new_status(self) -> VmStatus:
        progress = self.progress
        return VmStatus(
            vm=self.name,
            source=self.spec.source if self.spec is not None else None,
            state=self.state,
            since=self.since,
            message=self.message,
            hint=self.hint,
            spec_error=self.problem is not None,
            progress_ratio=progress.ratio if progress is not None else None,
            regions=tuple(self._region_statuses()),
            drift=self.drift,
            audit=self.audit,
            tolerance=self.spec.drift_tolerance if self.spec is not None else 0.0,
            warnings=tuple(self._warnings()),
            holder=self.holder.status() if self.holder is not None else None,
            inline=self.inline,
            failed=self.failed,
        )

    def _region_statuses(self) -> Iterator[RegionStatus]:
        if self.regions:
            for region in self.regions:
                outcome = str(region.bind.outcome) if region.bind is not None else ""
                yield RegionStatus(region.plan, region.strategy, region.reason, outcome)
        elif self.plan is not None:
            for plan in self.plan.regions:
                yield RegionStatus(plan)

    def _warnings(self) -> Iterator[str]:
        """What should be known besides the state and its reason."""
        if self.problem is not None and self.spec is not None:
            yield f"its file is broken, the last good version is in force: {self.problem}"
        if self.pending:
            yield self.pending
        if self.audit_error:
            yield f"the last audit failed: {self.audit_error}"
        if self.plan is not None:
            yield from self.plan.warnings
        if self.holder is not None and not self.holder.alive and not self.release_wanted:
            yield KEPT
        yield from self.holder_warnings
        if self.regions:
            yield from map(str, self.out_of_reach)
        count, why = self.unstored
        if count:
            yield UNSTORED.format(count=count, why=why)
        for region in self.regions:
            for note in region.notes:
                yield f"guest node {region.plan.guest_node}: {note}"
