"""The types and errors of the varlink interface io.gmemd.

asyncvarlink reads the annotations at run time, so they are real types here. The structs are those
of the JSON in gmemd.export.snapshot; io.gmemd.varlink beside this file explains every field.
"""

from dataclasses import dataclass
from typing import TypedDict

from asyncvarlink import TypedVarlinkErrorReply

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


class NoSuchVM(TypedVarlinkErrorReply, interface=INTERFACE):
    """No VM of that name is known."""

    class Parameters:
        """What was asked for."""

        vm: str


class NotAuditable(TypedVarlinkErrorReply, interface=INTERFACE):
    """The VM has no memory to audit now."""

    class Parameters:
        """Its state, and why."""

        vm: str
        state: str
        message: str


class ReloadFailed(TypedVarlinkErrorReply, interface=INTERFACE):
    """Nothing was changed."""

    class Parameters:
        """Why, and the way out."""

        message: str
        hint: str | None


class AuditFailed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The audit could not be done."""

    class Parameters:
        """Why, and the way out."""

        vm: str
        message: str
        hint: str | None
