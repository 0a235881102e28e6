"""What the daemon publishes: one frozen snapshot.

It is replaced whole; readers keep the reference they took. Sizes in bytes, times in seconds since
the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.audit.model import RegionAudit, VmAudit
    from gmemd.drift.model import GuestNodeDrift, VmDrift
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan, Strategy
    from gmemd.spec.model import Source


class VmState(StrEnum):
    """The states of a VM, in the order of its life."""

    WAITING = "waiting"
    PROVISIONING = "provisioning"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A region as planned and as it came out.

    ``strategy_achieved`` is None until the region exists; ``policy_outcome`` is the word for what
    the kernel made of the policy (empty where none was set).
    """

    plan: RegionPlan
    strategy_achieved: Strategy | None = None
    reason: str = ""
    policy_outcome: str = ""

    @property
    def strategy(self) -> Strategy:
        """The strategy in force: what was achieved, else what is planned."""
        return self.strategy_achieved or self.plan.strategy


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Memory of a running VMM that may be its guest's, and is none of what was declared.

    ``audit`` is None where it wasn't looked at.
    """

    size_bytes: int
    page_size: int
    backend: str
    why: str
    audit: RegionAudit | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """What is known of a VM that was found running, beyond its memory.

    ``program`` is its VMM's; ``kvm`` is None where it can't be seen whether it uses KVM.
    ``declared_by`` tells what places its memory, and is empty where nothing does. ``unknown`` is
    one word for why memory of it was not looked at (gmemd.audit.observed.Unknown), empty if all
    was.
    """

    pid: int
    program: str
    kvm: bool | None
    unit: str
    cgroup: str
    started_timestamp: float
    declared_by: str = ""
    unknown: str = ""
    unmatched: tuple[Unmatched, ...] = ()

    @property
    def unmatched_bytes(self) -> int:
        """How much memory there is that matches nothing declared."""
        return sum(piece.size_bytes for piece in self.unmatched)


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """The process that has a VM's memory; ``alive`` is False where it is kept for the next one."""

    pid: int
    since: float
    program: str = ""
    unit: str = ""
    alive: bool = True


@dataclass(frozen=True, slots=True)
class VmStatus:
    """One VM: its state since when and why, its regions, and the latest audit with its drift.

    ``source`` is None where only an unreadable spec is known of it; ``progress_ratio`` goes from 0
    to 1 while provisioning. ``spec_error`` says that the newest version of its file is broken (an
    older one may be in force). ``running`` is there for VMs that were found running, ``holder``
    while a process has memory that gmemd made or took in. ``inline``: its spec came with a call.
    ``failed`` counts by reason what was tried for it in vain.
    """

    vm: str
    source: Source | None
    state: VmState
    since: float
    message: str = ""
    hint: str = ""
    uuid: str = ""
    spec_error: bool = False
    progress_ratio: float | None = None
    regions: tuple[RegionStatus, ...] = ()
    drift: VmDrift | None = None
    audit: VmAudit | None = None
    tolerance: float = 0.01
    warnings: tuple[str, ...] = ()
    running: Running | None = None
    holder: HolderStatus | None = None
    inline: bool = False
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def guest_nodes(self) -> tuple[int, ...]:
        """Numbers of the guest nodes that are planned or were audited, ascending."""
        seen = {region.plan.guest_node for region in self.regions}
        if self.drift is not None:
            seen.update(node.guest_node for node in self.drift.guest_nodes)
        return tuple(sorted(seen))

    @property
    def drifting(self) -> bool:
        """Whether the latest audit found drift beyond the tolerance."""
        return self.drift is not None and self.drift.drifting

    def regions_of(self, guest_node: int) -> tuple[RegionStatus, ...]:
        """The regions of one guest node, by index."""
        mine = [region for region in self.regions if region.plan.guest_node == guest_node]
        return tuple(sorted(mine, key=lambda region: region.plan.index))

    def drift_of(self, guest_node: int) -> GuestNodeDrift | None:
        """The drift of one guest node, or None before its first audit."""
        nodes = self.drift.guest_nodes if self.drift is not None else ()
        return next((node for node in nodes if node.guest_node == guest_node), None)

    def verified_timestamp_of(self, guest_node: int | None = None) -> float | None:
        """Since when every page was looked at, of a guest node or of all; None if some never was.

        In seconds since the epoch.
        """
        regions = self.audit.regions if self.audit is not None else ()
        mine = [seen for seen in regions if guest_node in (None, seen.guest_node)]
        oldest = [seen.verified_timestamp for seen in mine if seen.verified_timestamp is not None]
        return min(oldest) if oldest and len(oldest) == len(mine) else None

    def size_bytes_of(self, guest_node: int) -> int:
        """The size of one guest node."""
        regions = self.regions_of(guest_node)
        drift = self.drift_of(guest_node)
        if not regions and drift is not None:
            return drift.size_bytes
        return sum(region.plan.size_bytes for region in regions)


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives the daemon, in descriptors; ``limit`` is None where nobody told it.

    ``missing`` should be in the fd store and aren't, ``unclaimed`` are of no VM that is known.
    """

    stored: int = 0
    limit: int | None = None
    missing: int = 0
    unclaimed: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the daemon knows at one moment.

    ``version`` is gmemd's own. ``committed`` maps host nodes to placeable bytes promised to
    regions but not yet resident. ``audit_budget_ratio`` is of one CPU, ``page_table_bytes`` are
    spent on what stays mapped between two looks. ``unseen_processes`` may hold VMs and can't be
    looked into; None where nobody looked for running VMs. ``hidden_processes`` tells of those that
    can't even be known of, and is empty where there are none. ``kept`` is None where nothing keeps
    memory past the daemon.
    """

    version: str
    taken_timestamp: float
    host: Host | None = None
    vms: tuple[VmStatus, ...] = ()
    committed: Mapping[int, int] = field(default_factory=dict)
    audit_interval_seconds: float = 60.0
    audit_budget_ratio: float = 0.01
    page_table_bytes: int = 0
    reload_successful: bool = True
    reload_success_timestamp: float = 0.0
    reload_message: str = ""
    unseen_processes: int | None = None
    hidden_processes: str = ""
    kept: Kept | None = None

    def vm(self, name: str) -> VmStatus | None:
        """The VM of that name, or None."""
        return next((vm for vm in self.vms if vm.vm == name), None)
