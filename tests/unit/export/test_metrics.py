from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gmemd.export.exposition import Exposition
from gmemd.export.instruments import Counters
from gmemd.export.snapshot import Kept

if TYPE_CHECKING:
    from gmemd.export.snapshot import Snapshot

MIB = 1 << 20
FDSTORE = ("", "max_", "missing_", "unclaimed_")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def counters(snapshot: Snapshot) -> Counters:
    counters = Counters()
    for vm in snapshot.vms:
        if vm.audit is not None:
            counters.add_audit(vm.audit)
    counters.add_prefault("web-01", 256 * MIB)
    counters.add_policy_failure("db-01", "not-kept")
    return counters


def render(snapshot: Snapshot, counters: Counters) -> str:
    return Exposition(counters).render(snapshot)[1].decode()


class Samples:
    """What a scrape gives, to be asked by name and labels."""

    def __init__(self, text: str) -> None:
        self.values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, frozenset(labels.items())))

    def all(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (seen, labels), value in self.values.items() if seen == name}


@pytest.fixture
def samples(snapshot: Snapshot, counters: Counters) -> Samples:
    return Samples(render(snapshot, counters))


def test_every_metric_of_the_reference_is_there(samples: Samples) -> None:
    names = {name for name, _ in samples.values}
    assert {name for name in names if name.startswith("gmemd_")} == {
        "gmemd_build_info",
        "gmemd_host_feature_supported",
        "gmemd_host_node_placeable_bytes",
        "gmemd_host_node_placeable_available_bytes",
        "gmemd_host_node_committed_bytes",
        "gmemd_host_node_hugepages_free_bytes",
        "gmemd_vm_info",
        "gmemd_vm_state",
        "gmemd_vm_spec_error",
        "gmemd_guest_node_info",
        "gmemd_guest_node_size_bytes",
        "gmemd_guest_node_resident_bytes",
        "gmemd_guest_node_memory_bytes",
        "gmemd_guest_node_host_node_allowed",
        "gmemd_guest_node_misplaced_bytes",
        "gmemd_guest_node_unknown_bytes",
        "gmemd_guest_node_drift_ratio",
        "gmemd_guest_node_drift_lower_ratio",
        "gmemd_guest_node_drift_upper_ratio",
        "gmemd_guest_node_drift_tolerance_ratio",
        "gmemd_guest_node_policy_match",
        "gmemd_audit_duration_seconds_bucket",
        "gmemd_audit_duration_seconds_sum",
        "gmemd_audit_duration_seconds_count",
        "gmemd_audit_cpu_seconds_total",
        "gmemd_audit_interval_seconds",
        "gmemd_audit_budget_ratio",
        "gmemd_audit_page_table_bytes",
        "gmemd_guest_node_verified_timestamp_seconds",
        "gmemd_audit_pages_total",
        "gmemd_audit_errors_total",
        "gmemd_audit_last_success_timestamp_seconds",
        "gmemd_policy_failures_total",
        "gmemd_prefault_bytes_total",
        "gmemd_config_last_reload_successful",
        "gmemd_config_last_reload_success_timestamp_seconds",
    }
    assert {"process_resident_memory_bytes", "python_info"} <= names


def test_cells_are_for_host_nodes_with_memory_only(samples: Samples) -> None:
    cells = samples.all("gmemd_guest_node_memory_bytes")
    mine = {dict(labels)["host_node"]: value for labels, value in cells.items() if is_db(labels)}
    assert mine == {"0": 0, "1": 192 * MIB, "2": 64 * MIB}
    allowed = samples.all("gmemd_guest_node_host_node_allowed")
    mine = {dict(labels)["host_node"]: value for labels, value in allowed.items() if is_db(labels)}
    assert mine == {"0": 0, "1": 1, "2": 0}


def test_since_when_all_was_seen_and_what_that_may_cost(samples: Samples) -> None:
    verified = samples.all("gmemd_guest_node_verified_timestamp_seconds")
    assert set(verified.values()) == {990}
    assert samples.get("gmemd_audit_budget_ratio") == 0.01
    assert samples.get("gmemd_audit_page_table_bytes") == 0


def test_what_outlives_the_daemon(snapshot: Snapshot, counters: Counters) -> None:
    kept = replace(snapshot, kept=Kept(stored=7, limit=6000, missing=2, unclaimed=1))
    samples = Samples(render(kept, counters))
    told = {
        name: samples.get(f"gmemd_fdstore_{name}fds")
        for name in ("", "max_", "missing_", "unclaimed_")
    }
    assert told == {"": 7, "max_": 6000, "missing_": 2, "unclaimed_": 1}
    old = Samples(render(replace(snapshot, kept=Kept(stored=7)), counters))
    assert old.all("gmemd_fdstore_max_fds") == {}
    assert Samples(render(snapshot, counters)).all("gmemd_fdstore_fds") == {}


def is_db(labels: frozenset[tuple[str, str]]) -> bool:
    return dict(labels)["vm"] == "db-01"


def test_drift(samples: Samples) -> None:
    where = {"vm": "db-01", "guest_node": "0"}
    assert samples.get("gmemd_guest_node_drift_ratio", **where) == 0.25
    assert samples.get("gmemd_guest_node_misplaced_bytes", **where) == 64 * MIB
    assert samples.get("gmemd_guest_node_resident_bytes", **where) == 256 * MIB
    assert samples.get("gmemd_guest_node_policy_match", **where) == 1


def test_what_was_not_seen_has_no_series(snapshot: Snapshot, counters: Counters) -> None:
    vm = snapshot.vms[0]
    assert vm.drift is not None
    unseen = replace(vm.drift.guest_nodes[0], drift_ratio=None, policy_match=None)
    vm = replace(vm, drift=replace(vm.drift, guest_nodes=(unseen,)))
    samples = Samples(render(replace(snapshot, vms=(vm,)), counters))
    assert samples.all("gmemd_guest_node_drift_ratio") == {}
    assert samples.all("gmemd_guest_node_policy_match") == {}
    assert samples.all("gmemd_guest_node_share_error_ratio") == {}


def test_a_vm_is_in_exactly_one_state(samples: Samples) -> None:
    states = samples.all("gmemd_vm_state")
    for vm in ("web-01", "db-01", "late", "broken"):
        mine = [value for labels, value in states.items() if ("vm", vm) in labels]
        assert (len(mine), sum(mine)) == (6, 1)
    assert samples.get("gmemd_vm_state", vm="db-01", state="degraded") == 1


def test_a_vm_that_is_gone_leaves_no_series(snapshot: Snapshot, counters: Counters) -> None:
    kept = tuple(vm for vm in snapshot.vms if vm.vm != "db-01")
    text = render(replace(snapshot, vms=kept), counters)
    assert "db-01" not in text
    assert 'gmemd_prefault_bytes_total{vm="web-01"}' in text


def test_strategy_is_the_achieved_one(samples: Samples) -> None:
    assert samples.get(
        "gmemd_guest_node_info",
        vm="db-01",
        guest_node="0",
        backend="guest_memfd",
        page_size="4096",
        strategy="proxy-allocation",
        policy="preferred",
    )


def test_a_guest_node_in_pieces_has_a_series_per_way(
    snapshot: Snapshot, counters: Counters
) -> None:
    vm = snapshot.vms[0]
    first = vm.regions[0]
    same = replace(first, plan=replace(first.plan, index=1))
    huge = replace(first, plan=replace(first.plan, index=2, page_size=2 * MIB))
    vm = replace(vm, regions=(first, same, huge))
    samples = Samples(render(replace(snapshot, vms=(vm,)), counters))
    assert len(samples.all("gmemd_guest_node_info")) == 2
    size = samples.get("gmemd_guest_node_size_bytes", vm="web-01", guest_node="0")
    assert size == 3 * 256 * MIB


def test_host(samples: Samples) -> None:
    assert samples.get("gmemd_host_feature_supported", feature="guest_memfd") == 1
    assert samples.get("gmemd_host_feature_supported", feature="inode_policy") == 0
    assert samples.get("gmemd_host_feature_supported", feature="cachestat") is None
    assert samples.get("gmemd_host_node_committed_bytes", host_node="1") == 64 * MIB
    assert samples.get("gmemd_host_node_placeable_bytes", host_node="3") is None
    free = samples.get("gmemd_host_node_hugepages_free_bytes", host_node="0", page_size="2097152")
    assert free == 6 * MIB


def test_before_the_host_is_read_nothing_of_it_is_claimed(snapshot: Snapshot) -> None:
    samples = Samples(render(replace(snapshot, host=None, vms=()), Counters()))
    assert samples.all("gmemd_host_node_placeable_bytes") == {}
    assert samples.all("gmemd_host_feature_supported") == {}


def test_labels_are_the_permitted_ones(samples: Samples) -> None:
    permitted = {"vm", "guest_node", "host_node", "backend", "source", "strategy", "policy"}
    permitted |= {"page_size", "state", "reason", "feature", "version", "uuid", "le"}
    seen = {
        label for name, labels in samples.values if name.startswith("gmemd_") for label, _ in labels
    }
    assert seen <= permitted


def test_openmetrics_is_well_formed(snapshot: Snapshot, counters: Counters) -> None:
    kind, text = Exposition(counters).render(snapshot, OPENMETRICS)
    assert kind.startswith(OPENMETRICS)
    families = {family.name for family in parse_openmetrics(text.decode())}
    assert {"gmemd_audit_pages", "gmemd_guest_node_drift_ratio", "gmemd_vm"} <= families


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint(snapshot: Snapshot, counters: Counters) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=render(snapshot, counters),
        text=True,
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_what_went_wrong_is_counted_by_vm_and_by_error(
    snapshot: Snapshot, counters: Counters
) -> None:
    first, *others = snapshot.vms
    failed = replace(first, failed={"node-full": 2, "system-call": 1})
    counters.add_api_error("NotReady")
    told = Samples(render(replace(snapshot, vms=(failed, *others)), counters))
    assert told.get("gmemd_vm_failures_total", vm=first.vm, reason="node-full") == 2
    assert told.get("gmemd_vm_failures_total", vm=first.vm, reason="system-call") == 1
    assert told.get("gmemd_api_errors_total", error="NotReady") == 1
