"""The latest snapshot as Prometheus metrics, on a registry of gmemd's own.

The collector holds no state: what isn't in the snapshot leaves no series behind. Labels never
carry a pid, an address or a nodeset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from gmemd.export.instruments import Counters
from gmemd.export.snapshot import Snapshot, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from gmemd.drift.model import GuestNodeDrift
    from gmemd.export.snapshot import VmStatus


class GmemdCollector(Collector):
    """Renders what ``get_snapshot`` gives at the moment of the scrape, and the counters."""

    def __init__(self, get_snapshot: Callable[[], Snapshot], counters: Counters) -> None:
        self._get_snapshot = get_snapshot
        self._counters = counters

    def describe(self) -> Iterator[Metric]:
        """All families without samples: registering asks for no snapshot, there may be none yet."""
        return _families(Snapshot(version="", taken_timestamp=0.0), Counters())

    def collect(self) -> Iterator[Metric]:
        """All families of one snapshot."""
        return _families(self._get_snapshot(), self._counters)


def make_registry(get_snapshot: Callable[[], Snapshot], counters: Counters) -> CollectorRegistry:
    """A registry with gmemd's metrics and the usual ones of a Python process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GmemdCollector(get_snapshot, counters))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class ObservationCollector(Collector):
    """Renders what one look at the running VMs found, without what only a daemon has."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All families of the snapshot that are about VMs."""
        yield _build_family(self._snapshot)
        yield _unseen_family(self._snapshot)
        yield from _vm_families(self._snapshot)
        yield from _guest_node_families(self._snapshot)


def _families(snapshot: Snapshot, counters: Counters) -> Iterator[Metric]:
    yield _build_family(snapshot)
    yield _unseen_family(snapshot)
    yield from _daemon_families(snapshot)
    yield from _host_families(snapshot)
    yield from _vm_families(snapshot)
    yield from _guest_node_families(snapshot)
    yield from _counter_families(snapshot, counters)


def _build_family(snapshot: Snapshot) -> Metric:
    build = InfoMetricFamily("gmemd_build", "gmemd's version.")
    build.add_metric([], {"version": snapshot.version})
    return build


def _unseen_family(snapshot: Snapshot) -> Metric:
    return GaugeMetricFamily(
        "gmemd_host_unseen_processes",
        "Processes that may hold VMs and could not be looked into; absent without a search.",
        value=snapshot.unseen_processes,
    )


def _daemon_families(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "gmemd_config_last_reload_successful",
        "Whether the last reload of the configuration and the VM specs succeeded.",
        value=float(snapshot.reload_successful),
    )
    yield GaugeMetricFamily(
        "gmemd_config_last_reload_success_timestamp_seconds",
        "When the configuration was last reloaded successfully.",
        value=snapshot.reload_success_timestamp,
    )
    yield GaugeMetricFamily(
        "gmemd_audit_interval_seconds",
        "The configured time between audits of one VM.",
        value=snapshot.audit_interval_seconds,
    )


def _host_families(snapshot: Snapshot) -> Iterator[Metric]:
    features = GaugeMetricFamily(
        "gmemd_host_feature_supported",
        "Whether the kernel was found to support a feature; absent if it could not be found out.",
        labels=["feature"],
    )
    placeable = _per_host_node(
        "placeable_bytes", "Memory that unmovable pages (guest_memfd) can have."
    )
    available = _per_host_node(
        "placeable_available_bytes",
        "Memory that unmovable pages can still have, clean page cache included.",
    )
    committed = _per_host_node(
        "committed_bytes", "Placeable memory promised to VMs and not yet resident."
    )
    hugepages = GaugeMetricFamily(
        "gmemd_host_node_hugepages_free_bytes",
        "Free huge pages of a host node's pool.",
        labels=["host_node", "page_size"],
    )
    host = snapshot.host
    for name, feature in host.features.items() if host is not None else ():
        if feature.supported is not None:
            features.add_metric([name], float(feature.supported))
    for node in host.nodes if host is not None else ():
        if not node.has_memory:
            continue
        label = [str(node.id)]
        placeable.add_metric(label, node.placeable_bytes)
        available.add_metric(label, node.placeable_available_bytes)
        committed.add_metric(label, snapshot.committed.get(node.id, 0))
        for page_size, pool in sorted(node.hugepages.items()):
            hugepages.add_metric([str(node.id), str(page_size)], pool.free * page_size)
    yield from (features, placeable, available, committed, hugepages)


def _per_host_node(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gmemd_host_node_{name}", text, labels=["host_node"])


def _vm_families(snapshot: Snapshot) -> Iterator[Metric]:
    info = InfoMetricFamily("gmemd_vm", "A VM that gmemd knows.", labels=["vm"])
    state = GaugeMetricFamily(
        "gmemd_vm_state", "1 for the state that the VM is in.", labels=["vm", "state"]
    )
    spec_error = GaugeMetricFamily(
        "gmemd_vm_spec_error",
        "Whether the newest version of the VM's spec file is broken.",
        labels=["vm"],
    )
    success = GaugeMetricFamily(
        "gmemd_audit_last_success_timestamp_seconds",
        "When the VM's last successful audit ended.",
        labels=["vm"],
    )
    unknown = GaugeMetricFamily(
        "gmemd_vm_memory_unknown",
        "1 for a running VM of which some memory was not looked at, with the reason.",
        labels=["vm", "reason"],
    )
    unmatched = GaugeMetricFamily(
        "gmemd_vm_unmatched_bytes",
        "Size of a running VM's memory that matches nothing it declares.",
        labels=["vm"],
    )
    for vm in snapshot.vms:
        if vm.running is not None:
            unmatched.add_metric([vm.vm], vm.running.unmatched_bytes)
            if vm.running.unknown:
                unknown.add_metric([vm.vm, vm.running.unknown], 1.0)
        if vm.source is not None:
            info.add_metric([vm.vm], {"source": str(vm.source), "uuid": vm.uuid})
        for possible in VmState:
            state.add_metric([vm.vm, str(possible)], float(vm.state == possible))
        if vm.running is None or vm.spec_error:
            spec_error.add_metric([vm.vm], float(vm.spec_error))
        if vm.audit is not None:
            ended = vm.audit.started_timestamp + vm.audit.duration_seconds
            success.add_metric([vm.vm], ended)
    yield from (info, state, spec_error, success, unknown, unmatched)


def _guest_node_families(snapshot: Snapshot) -> Iterator[Metric]:
    info = InfoMetricFamily(
        "gmemd_guest_node",
        "How a guest node's memory is made and placed; one series per way.",
        labels=["vm", "guest_node"],
    )
    size = _per_guest_node("size_bytes", "Size of the guest node.")
    for vm in snapshot.vms:
        for guest_node in vm.guest_nodes:
            label = [vm.vm, str(guest_node)]
            size.add_metric(label, vm.size_bytes_of(guest_node))
            for way in _ways(vm, guest_node):
                info.add_metric(label, way)
    yield from (info, size)
    yield from _cell_families(snapshot)
    yield from _drift_families(snapshot)


def _ways(vm: VmStatus, guest_node: int) -> list[dict[str, str]]:
    ways = []
    for region in vm.regions_of(guest_node):
        way = {
            "backend": str(region.plan.backend),
            "page_size": str(region.plan.page_size),
            "strategy": str(region.strategy),
            "policy": str(region.plan.policy),
        }
        if way not in ways:
            ways.append(way)
    return ways


def _per_guest_node(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gmemd_guest_node_{name}", text, labels=["vm", "guest_node"])


def _drifts(snapshot: Snapshot) -> Iterator[tuple[str, GuestNodeDrift]]:
    for vm in snapshot.vms:
        for drift in vm.drift.guest_nodes if vm.drift is not None else ():
            yield vm.vm, drift


def _cell_families(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["vm", "guest_node", "host_node"]
    memory = GaugeMetricFamily(
        "gmemd_guest_node_memory_bytes",
        "Resident memory of the guest node that was seen on the host node.",
        labels=labels,
    )
    allowed = GaugeMetricFamily(
        "gmemd_guest_node_host_node_allowed",
        "Whether the spec allows the guest node's memory on the host node.",
        labels=labels,
    )
    host = snapshot.host
    with_memory = {node.id for node in host.nodes if node.has_memory} if host is not None else set()
    for vm, drift in _drifts(snapshot):
        for node in sorted(with_memory | {n for n, seen in drift.by_node.items() if seen}):
            cell = [vm, str(drift.guest_node), str(node)]
            memory.add_metric(cell, drift.by_node.get(node, 0))
            allowed.add_metric(cell, float(node in drift.allowed))
    yield from (memory, allowed)


def _drift_families(snapshot: Snapshot) -> Iterator[Metric]:
    for name, text, value in _DRIFT_GAUGES:
        family = _per_guest_node(name, text)
        for vm, drift in _drifts(snapshot):
            figure = value(drift)
            if figure is not None:
                family.add_metric([vm, str(drift.guest_node)], float(figure))
        yield family


_DRIFT_GAUGES: tuple[tuple[str, str, Callable[[GuestNodeDrift], float | None]], ...] = (
    (
        "resident_bytes",
        "Memory of the guest node that exists on the host.",
        lambda drift: drift.resident_bytes,
    ),
    (
        "misplaced_bytes",
        "Resident memory on host nodes that the spec does not allow.",
        lambda drift: drift.misplaced_bytes,
    ),
    (
        "unknown_bytes",
        "Resident memory whose host node was not or can not be seen.",
        lambda drift: drift.unknown_bytes,
    ),
    (
        "drift_ratio",
        "Misplaced share of the memory seen; absent when nothing was seen or is declared.",
        lambda drift: drift.drift_ratio,
    ),
    (
        "drift_lower_ratio",
        "Lower end of the drift's interval; equal to the upper one after an exact scan.",
        lambda drift: drift.drift_lower_ratio,
    ),
    (
        "drift_upper_ratio",
        "Upper end of the drift's interval.",
        lambda drift: drift.drift_upper_ratio,
    ),
    (
        "drift_tolerance_ratio",
        "Drift that the spec tolerates.",
        lambda drift: drift.tolerance_ratio,
    ),
    (
        "share_error_ratio",
        "Largest distance of a host node's share from its weight (interleave modes).",
        lambda drift: drift.share_error_ratio,
    ),
    (
        "policy_match",
        "Whether the kernel's policy is the spec's; absent when it can not be read.",
        lambda drift: drift.policy_match,
    ),
)


def _counter_families(snapshot: Snapshot, counters: Counters) -> Iterator[Metric]:
    counts = counters.read()
    vms = {vm.vm for vm in snapshot.vms}
    yield HistogramMetricFamily(
        "gmemd_audit_duration_seconds",
        "Duration of one VM's audit.",
        buckets=counts.audit_duration_buckets,
        sum_value=counts.audit_duration_sum_seconds,
    )
    yield CounterMetricFamily(
        "gmemd_audit_cpu_seconds", "CPU time that audits used.", value=counts.audit_cpu_seconds
    )
    yield CounterMetricFamily(
        "gmemd_audit_pages", "Pages whose host node audits looked at.", value=counts.audit_pages
    )
    errors = CounterMetricFamily(
        "gmemd_audit_errors", "What went wrong in audits.", labels=["reason"]
    )
    for reason, count in sorted(counts.audit_errors.items()):
        errors.add_metric([reason], count)
    yield errors
    failures = CounterMetricFamily(
        "gmemd_policy_failures", "Policies not set as asked.", labels=["vm", "reason"]
    )
    for (vm, reason), count in sorted(counts.policy_failures.items()):
        if vm in vms:
            failures.add_metric([vm, reason], count)
    yield failures
    prefault = CounterMetricFamily(
        "gmemd_prefault_bytes", "Memory allocated by prefaulting.", labels=["vm"]
    )
    for vm, allocated_bytes in sorted(counts.prefault_bytes.items()):
        if vm in vms:
            prefault.add_metric([vm], allocated_bytes)
    yield prefault
