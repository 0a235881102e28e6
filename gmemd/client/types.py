"""The JSON of io.gmemd as types, for what is read and not acted on. io.gmemd.varlink explains it.

Sizes are bytes, times seconds since the epoch; maps by node have its number as a string. A newer
daemon's may have more fields.
"""

from __future__ import annotations

from typing import TypedDict


class Policy(TypedDict):
    """A kernel memory policy as it was read back."""

    mode: str
    host_nodes: list[int]


class AuditOptions(TypedDict, total=False):
    """What an audit is to look at, and to tell.

    ``where`` tells where in the regions what is, from a look at every page, which ``full`` is, too,
    with ``jobs`` threads. ``sample_pages`` are of each guest node; ``margin`` and ``confidence``
    are ratios.
    """

    where: bool
    full: bool
    sample_pages: int | None
    margin: float | None
    confidence: float | None
    jobs: int | None


class Sample(TypedDict):
    """Pages drawn at random."""

    population: int
    drawn: int
    confidence: float
    margin: float | None


class Cell(TypedDict):
    """What one piece of an address space holds."""

    by_node: dict[str, int]
    misplaced: int
    unknown: int


class Stretch(TypedDict):
    """Bytes that follow upon each other in the guest's address space."""

    gpa: int | None
    offset: int
    size: int
    cell_size: int
    cells: list[Cell]


class MisplacedRange(TypedDict):
    """From one misplaced page to another."""

    gpa: int | None
    offset: int
    size: int
    misplaced: int
    by_node: dict[str, int]


class Where(TypedDict):
    """Where in a region what is."""

    stretches: list[Stretch]
    misplaced: list[MisplacedRange]
    more: int
    more_bytes: int


class Region(TypedDict):
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


class Drift(TypedDict):
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


class GuestNode(TypedDict):
    """A NUMA node that the VM sees."""

    id: int
    memory: int
    regions: list[Region]
    drift: Drift | None


class AuditPass(TypedDict):
    """The latest pass over the VM's memory."""

    started_timestamp: float
    duration_seconds: float
    cpu_seconds: float
    exact: bool
    errors: dict[str, int]
    counters: dict[str, int] | None
    counters_cgroup: str | None
    verified_timestamp: float | None


class Unmatched(TypedDict):
    """Memory of a running VMM that is none of what was declared."""

    size: int
    backend: str
    page_size: int
    why: str
    resident: int | None
    unknown: int | None
    by_node: dict[str, int] | None
    sampled: bool


class Running(TypedDict):
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


class Holder(TypedDict):
    """The process that has a VM's memory."""

    pid: int
    since: float
    program: str | None
    unit: str | None
    alive: bool


class Vm(TypedDict):
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


class HostNode(TypedDict):
    """A NUMA node of the hypervisor."""

    id: int
    memory: int
    placeable: int
    placeable_available: int
    committed: int
    movable_only: bool


class Listed(TypedDict):
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


class PlannedRegion(TypedDict):
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


class Refusal(TypedDict):
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


class Planned(TypedDict):
    """What would be placed where."""

    vm: str
    verdict: str
    regions: list[PlannedRegion]
    refusals: list[Refusal]
    warnings: list[str]


class Candidate(TypedDict):
    """One of several things that something could be."""

    what: str
    pid: int | None
    guest_node: int | None
    size: int | None


class Problem(TypedDict):
    """What is wrong with a file, and where."""

    file: str
    line: int
    column: int
    key: str
    value: str | None
    message: str
    hint: str | None


class Reloaded(TypedDict):
    """What a reload changed."""

    successful: bool
    added: list[str]
    changed: list[str]
    pending: list[str]
    removed: list[str]
    unchanged: int
    problems: list[Problem]
    notes: list[str]
