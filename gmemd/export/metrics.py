"""What the metrics tell of the daemon and its host; vm_metrics.py has what they tell of each VM.

The collector holds no state: what isn't in the snapshot leaves no series behind. Labels never
carry a pid, an address or a nodeset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from gmemd.export.instruments import Counters
from gmemd.export.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric


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


class ObservationCollector(Collector):
    """Renders what one look at the running VMs found, without what only a daemon has."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """What stands above the VMs."""
        yield _build_family(self._snapshot)
        yield _unseen_family(self._snapshot)


def _families(snapshot: Snapshot, counters: Counters) -> Iterator[Metric]:
    yield _build_family(snapshot)
    yield _unseen_family(snapshot)
    yield from _daemon_families(snapshot)
    yield from _host_families(snapshot)
    yield from _store_families(snapshot)
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
    yield GaugeMetricFamily(
        "gmemd_audit_budget_ratio",
        "The share of one CPU that periodic audits use at the most.",
        value=snapshot.audit_budget_ratio,
    )
    yield GaugeMetricFamily(
        "gmemd_audit_page_table_bytes",
        "Memory spent on guest memory that stays mapped between two looks.",
        value=snapshot.page_table_bytes,
    )


def _store_families(snapshot: Snapshot) -> Iterator[Metric]:
    """What outlives the daemon; nothing where nothing does."""
    kept = snapshot.kept
    if kept is None:
        return
    yield GaugeMetricFamily(
        "gmemd_fdstore_fds",
        "Memory files and holders that systemd's fd store keeps past the daemon's end.",
        value=kept.stored,
    )
    yield GaugeMetricFamily(
        "gmemd_fdstore_missing_fds",
        "Descriptors that should be in the fd store and aren't.",
        value=kept.missing,
    )
    yield GaugeMetricFamily(
        "gmemd_fdstore_unclaimed_fds",
        "Descriptors in the fd store that are of no VM known.",
        value=kept.unclaimed,
    )
    if kept.limit is not None:
        yield GaugeMetricFamily(
            "gmemd_fdstore_max_fds",
            "What the fd store takes (FileDescriptorStoreMax=).",
            value=kept.limit,
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
    vm_failures = CounterMetricFamily(
        "gmemd_vm_failures", "What was tried for a VM in vain.", labels=["vm", "reason"]
    )
    for vm_status in snapshot.vms:
        for reason, count in sorted(vm_status.failed.items()):
            vm_failures.add_metric([vm_status.vm, reason], count)
    yield vm_failures
    refusals = CounterMetricFamily(
        "gmemd_api_errors", "Calls that were answered with an error.", labels=["error"]
    )
    for name, count in sorted(counts.api_errors.items()):
        refusals.add_metric([name], count)
    yield refusals
    prefault = CounterMetricFamily(
        "gmemd_prefault_bytes", "Memory allocated by prefaulting.", labels=["vm"]
    )
    for vm, allocated_bytes in sorted(counts.prefault_bytes.items()):
        if vm in vms:
            prefault.add_metric([vm], allocated_bytes)
    yield prefault
