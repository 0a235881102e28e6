"""How the daemon audits: whole where it is cheap, by samples, and by the scan behind everything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.vmms import vmm

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

LARGE = 512 << 20
"""More than is looked at whole at once."""

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm")


def region(daemon: Daemon, vm: str = "large") -> dict[str, Any]:
    told: dict[str, Any] = daemon.describe(vm)["guest_nodes"][0]["regions"][0]
    return told


def kept_mappings(daemon: Daemon) -> int:
    assert daemon.process is not None
    return Path(f"/proc/{daemon.process.pid}/maps").read_text().count("[kvm-gmem]")


def test_what_is_small_is_seen_whole_at_once(running: Daemon) -> None:
    told = running.describe("db-01")
    assert told["audit"]["exact"]
    assert told["audit"]["verified_timestamp"] == pytest.approx(told["since"], abs=30)


def test_what_is_large_is_sampled_until_the_scan_has_been_there(daemon: Daemon) -> None:
    daemon.configure(audit="budget: 0.01%")
    daemon.write("large", size="512MiB")
    with daemon.running():
        daemon.wait_for("large", "ready")
        told = region(daemon)
        assert told["sample"]["population"] == LARGE // 4096
        assert told["sample"]["drawn"] >= 256
        assert told["resident"] == LARGE
        assert told["verified_timestamp"] is None
        assert 'verified_timestamp_seconds{guest_node="0"' not in " ".join(daemon.metrics())
        daemon.configure(audit="budget: 100%")
        call(daemon.socket, "Reload")
        daemon.until(lambda: region(daemon)["sample"] is None)
        told = region(daemon)
        assert told["resident"] == LARGE
        assert told["verified_timestamp"] is not None
        metrics = daemon.metrics()
        name = 'gmemd_guest_node_verified_timestamp_seconds{guest_node="0",vm="large"}'
        assert metrics[name] == told["verified_timestamp"]
        assert metrics["gmemd_audit_budget_ratio"] == 1
        assert metrics["gmemd_audit_pages_total"] >= LARGE // 4096
        assert "every resident page, seen since" in daemon.gmemd("status", "large").stdout


@needs_kvm
def test_what_stays_mapped_is_limited_and_goes_with_the_memory(daemon: Daemon) -> None:
    daemon.configure(audit="budget: 100%", interval="500ms")
    daemon.write("small", backend="guest_memfd", size="64MiB")
    with daemon.running():
        daemon.wait_for("small", "ready")
        daemon.until(lambda: daemon.metrics()["gmemd_audit_page_table_bytes"] > 0)
        assert kept_mappings(daemon) > 0
        daemon.configure(audit="page_tables: none, budget: 100%", interval="500ms")
        call(daemon.socket, "Reload")
        daemon.until(lambda: kept_mappings(daemon) == 0)
        daemon.until(lambda: daemon.metrics()["gmemd_audit_page_table_bytes"] == 0)
        daemon.configure(audit="budget: 100%", interval="500ms")
        call(daemon.socket, "Reload")
        with vmm(daemon) as holder:
            holder.do("acquire", "small")
            daemon.until(lambda: kept_mappings(daemon) > 0)
        daemon.wait_for("small", "waiting")
        assert kept_mappings(daemon) == 0


def test_a_changed_policy_is_read_anew(daemon: Daemon) -> None:
    path = daemon.write("db-01", policy="preferred")
    with daemon.running():
        daemon.wait_for("db-01", "ready")
        path.write_text(path.read_text().replace("preferred", "bind"))
        call(daemon.socket, "Reload")
        daemon.until(lambda: region(daemon, "db-01")["policy_read"]["mode"] == "bind")
        assert daemon.describe("db-01")["state"] == "ready"


def test_audits_go_on_and_rest(daemon: Daemon) -> None:
    daemon.configure(audit="budget: 100%", interval="500ms")
    daemon.write("db-01")
    with daemon.running():
        daemon.wait_for("db-01", "ready")
        first = daemon.describe("db-01")["audit"]
        daemon.until(
            lambda: (
                daemon.describe("db-01")["audit"]["verified_timestamp"]
                > first["verified_timestamp"] + 1
            )
        )
        metrics = daemon.metrics()
        assert metrics["gmemd_audit_duration_seconds_count"] >= 2
        assert not [name for name in metrics if name.startswith("gmemd_audit_errors_total")]


def test_a_sample_is_for_who_asked_and_a_look_at_all_for_everybody(daemon: Daemon) -> None:
    daemon.configure(audit="budget: 0.01%")
    daemon.write("large", size="512MiB")
    with daemon.running():
        daemon.wait_for("large", "ready")
        before = daemon.describe("large")["audit"]
        asked = {"vm": "large", "sample_pages": 256, "confidence": 0.5}
        told = call(daemon.socket, "Audit", **asked)["vm"]
        sample = told["guest_nodes"][0]["regions"][0]["sample"]
        assert sample["confidence"] == 0.5
        assert daemon.describe("large")["audit"] == before
        seen = call(daemon.socket, "Audit", vm="large", full=True)["vm"]
        assert seen == daemon.describe("large")
        whole = seen["audit"]["verified_timestamp"]
        assert whole is not None
        told = call(daemon.socket, "Audit", **asked)["vm"]
        assert not told["audit"]["exact"]
        assert told["guest_nodes"][0]["regions"][0]["verified_timestamp"] == whole
        assert daemon.describe("large")["audit"]["exact"]
