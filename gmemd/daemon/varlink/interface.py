"""The types and errors of the varlink interface io.gmemd.

asyncvarlink reads the annotations at run time, so they are real types here. The structs are those
of the JSON in gmemd.export.snapshot_json; io.gmemd.varlink beside this file explains every field.
"""

from dataclasses import dataclass
from typing import TypedDict

from asyncvarlink import FileDescriptor

from gmemd.daemon.varlink.where import Where

INTERFACE = "io.gmemd"


@dataclass(frozen=True)
class Policy:
    """A kernel memory policy as it was read back."""

    mode: str
    host_nodes: list[int]


@dataclass(frozen=True)
class Sample:
    """Pages drawn at random."""

    population: int
    drawn: int
    confidence: float
    margin: float | None


@dataclass(frozen=True)
class Region:
    """A piece of a guest node's memory."""

    index: int
    size: int
    backend: str
    page_size: int
    policy: str
    host_nodes: list[int]
    prefault: bool
    strategy: str
    strategy_planned: str
    reason: str
    policy_outcome: str | None
    resident: int | None
    by_node: dict[str, int] | None
    policy_read: Policy | None
    sample: Sample | None
    where: Where | None
    verified_timestamp: float | None


@dataclass(frozen=True)
class Drift:
    """A guest node's memory, declared against actual."""

    drifting: bool
    resident: int
    placed: int
    misplaced: int
    unknown: int
    by_node: dict[str, int]
    by_node_lower: dict[str, int]
    by_node_upper: dict[str, int]
    sampled: bool
    declared: bool
    host_nodes_allowed: list[int]
    drift_ratio: float | None
    drift_lower_ratio: float | None
    drift_upper_ratio: float | None
    drift_tolerance: float
    share_error_ratio: float | None
    policy_match: bool | None
    cause: str | None
    detail: str
    remedy: str
    unknown_reason: str


@dataclass(frozen=True)
class GuestNode:
    """A NUMA node that the VM sees."""

    id: int
    memory: int
    regions: list[Region]
    drift: Drift | None


@dataclass(frozen=True)
class AuditPass:
    """The latest pass over the VM's memory."""

    started_timestamp: float
    duration_seconds: float
    cpu_seconds: float
    exact: bool
    errors: dict[str, int]
    counters: dict[str, int] | None
    counters_cgroup: str | None
    verified_timestamp: float | None


@dataclass(frozen=True)
class Unmatched:
    """Memory of a running VMM that is none of what was declared."""

    size: int
    backend: str
    page_size: int
    why: str
    resident: int | None
    unknown: int | None
    by_node: dict[str, int] | None
    sampled: bool


@dataclass(frozen=True)
class Running:
    """A VM that was found running."""

    pid: int
    program: str
    kvm: bool | None
    unit: str | None
    cgroup: str
    started_timestamp: float
    declared_by: str | None
    unknown: str | None
    unmatched: list[Unmatched]


@dataclass(frozen=True)
class Holder:
    """The process that has a VM's memory."""

    pid: int
    since: float
    program: str | None
    unit: str | None
    alive: bool


@dataclass(frozen=True)
class Vm:
    """A VM as the daemon knows it."""

    version: int
    vm: str
    source: str | None
    uuid: str | None
    state: str
    since: float
    message: str
    hint: str
    warnings: list[str]
    spec_error: bool
    progress_ratio: float | None
    drift_tolerance: float
    drifting: bool | None
    guest_nodes: list[GuestNode]
    audit: AuditPass | None
    running: Running | None
    holder: Holder | None
    inline: bool
    public: bool


@dataclass(frozen=True)
class Extent:
    """Bytes of a file at a guest-physical address."""

    gpa: int
    offset: int
    size: int


@dataclass(frozen=True)
class LayoutRegion:
    """A region as it is handed to a VMM."""

    guest_node: int
    index: int
    fd_index: FileDescriptor
    offset: int
    size: int
    page_size: int
    backend: str
    extents: list[Extent]
    strategy: str
    reason: str
    policy: str
    host_nodes: list[int]
    policy_outcome: str | None
    policy_achieved: Policy | None


@dataclass(frozen=True)
class OfferedRegion:
    """A region that a VMM registers."""

    guest_node: int
    fd_index: int
    offset: int
    size: int


@dataclass(frozen=True)
class PlacedRegion:
    """What became of a region that was registered or adopted."""

    id: int
    guest_node: int
    index: int
    offset: int
    size: int
    page_size: int
    backend: str
    strategy: str
    reason: str
    policy: str
    host_nodes: list[int]
    policy_outcome: str | None
    policy_achieved: Policy | None
    resident: int
    warnings: list[str]


@dataclass(frozen=True)
class PlannedRegion:
    """A region as it would be made."""

    guest_node: int
    index: int
    size: int
    backend: str
    page_size: int
    policy: str
    host_nodes: list[int]
    prefault: bool
    strategy: str
    reason: str
    demand: dict[str, int]


@dataclass(frozen=True)
class Refusal:
    """Why a VM doesn't fit."""

    reason: str
    message: str
    hint: str
    host_nodes: list[int]
    page_size: int
    needed: int
    available: int
    committed: int
    reserve: int


@dataclass(frozen=True)
class Candidate:
    """One of several things that something could be."""

    what: str
    pid: int | None
    guest_node: int | None
    size: int | None


@dataclass(frozen=True)
class HostNode:
    """A NUMA node of the hypervisor."""

    id: int
    memory: int
    placeable: int
    placeable_available: int
    committed: int
    movable_only: bool


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and where."""

    file: str
    line: int
    column: int
    key: str
    value: str | None
    message: str
    hint: str | None


class ListResult(TypedDict):
    """Everything the daemon knows at one moment."""

    version: int
    gmemd_version: str
    taken_timestamp: float
    reload_successful: bool
    reload_message: str
    audit_interval_seconds: float
    unseen_processes: int | None
    hidden_processes: str | None
    host_nodes: list[HostNode]
    vms: list[Vm]


class VmResult(TypedDict):
    """One VM."""

    vm: Vm


class AuditResult(TypedDict):
    """One VM, and how far its audit is."""

    vm: Vm
    looked_at: int | None
    total: int | None


class AcquireResult(TypedDict):
    """How far a VM's memory is; its regions once they are there."""

    vm: str
    state: str
    message: str
    progress_ratio: float | None
    regions: list[LayoutRegion] | None
    warnings: list[str]


class PlacedResult(TypedDict):
    """What became of regions, and the VM's state with them."""

    vm: str
    state: str
    message: str
    pid: int
    regions: list[PlacedRegion]
    warnings: list[str]


class HandoverResult(TypedDict):
    """Who holds a VM's memory now."""

    vm: str
    pid: int


class ReleaseResult(TypedDict):
    """The state of a VM without its memory."""

    vm: str
    state: str


class PlanResult(TypedDict):
    """What would be placed where."""

    vm: str
    verdict: str
    regions: list[PlannedRegion]
    refusals: list[Refusal]
    warnings: list[str]


class WatchResult(TypedDict):
    """A VM that changed; null where it is gone."""

    vm: str
    status: Vm | None


class ReloadResult(TypedDict):
    """What a reload changed."""

    successful: bool
    added: list[str]
    changed: list[str]
    pending: list[str]
    removed: list[str]
    unchanged: int
    problems: list[Problem]
    notes: list[str]
