"""The unit as shipped, from start to stop, with one VM placed and one that drifts."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SPILL = 96 * MIB


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    unit.write_spec("web-01")
    unit.write_spilling_spec("db-01", SPILL)
    unit.start()
    yield
    unit.stop()
    unit.clear_specs()


def metrics() -> str:
    return unit.get("127.0.0.1:9989", "/metrics")


def test_units_are_clean() -> None:
    done = unit.run("systemd-analyze", "verify", "gmemd.service", "gmemd.slice", "gmemd.socket")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_placed_vm_is_ready() -> None:
    vm = unit.wait_for("web-01", "ready")
    placed = [(node["drift"]["placed"], node["drift"]["by_node"]) for node in vm["guest_nodes"]]
    assert [size for size, _ in placed] == [16 * MIB, 16 * MIB]
    assert placed[0][1]["0"] == 16 * MIB
    assert placed[1][1]["1"] == 16 * MIB


def test_the_spilled_vm_drifts_by_what_its_node_could_not_hold() -> None:
    vm = unit.wait_for("db-01", "degraded")
    drift = vm["guest_nodes"][1]["drift"]
    assert vm["drifting"] is True
    assert drift["cause"] == "spilled"
    assert drift["misplaced"] >= SPILL
    assert drift["placed"] + drift["misplaced"] == vm["guest_nodes"][1]["memory"]


def test_it_runs_without_privileges_in_its_own_slice() -> None:
    assert unit.unit("ControlGroup") == "/gmemd.slice/gmemd.service"
    status = Path(f"/proc/{unit.unit('MainPID')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    user = unit.must("id", "--user", "gmemd").strip()
    assert fields["Uid"].split() == [user] * 4
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[capabilities], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    limits = Path(f"/proc/{unit.unit('MainPID')}/limits").read_text()
    assert [line.split()[4] for line in limits.splitlines() if "core file" in line] == ["0"]


def test_status_shows_both() -> None:
    shown = unit.must("gmemd", "status")
    assert "web-01" in shown
    assert "db-01" in shown
    listed = json.loads(unit.must("gmemd", "status", "--json"))
    assert [vm["vm"] for vm in listed["vms"]] == ["db-01", "web-01"]


def test_promtool_has_no_complaint() -> None:
    unit.wait_for("db-01", "degraded")
    done = unit.run("promtool", "check", "metrics", told=metrics())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_prometheus_scrapes_it_and_answers_for_the_drift(tmp_path: Path) -> None:
    unit.wait_for("db-01", "degraded")
    scrape = {"job_name": "gmemd", "static_configs": [{"targets": ["127.0.0.1:9989"]}]}
    config = {"global": {"scrape_interval": "2s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    address = "127.0.0.1:9090"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml"]
    command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        query = 'gmemd_guest_node_drift_ratio{vm="db-01"} > on(vm, guest_node) '
        query += "gmemd_guest_node_drift_tolerance_ratio"
        found = ask(address, query)
    finally:
        process.terminate()
        process.wait()
    assert found, (tmp_path / "log").read_text()
    assert [(one["metric"]["vm"], one["metric"]["guest_node"]) for one in found] == [("db-01", "1")]
    assert 0.01 < float(found[0]["value"][1]) < 1


def ask(address: str, query: str) -> list[dict[str, dict[str, str]]]:
    """The result of an instant query, once there is one."""
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            answer = json.loads(unit.get(address, f"/api/v1/query?query={quote(query)}"))
        except (OSError, AssertionError):
            answer = {"data": {"result": []}}
        if answer["data"]["result"]:
            return list(answer["data"]["result"])
        time.sleep(1)
    return []


def test_varlinkctl_is_a_client() -> None:
    socket = str(unit.SOCKET)
    described = unit.must("varlinkctl", "introspect", socket, "io.gmemd")
    assert "method List" in described
    assert "method Reload" in described
    assert "gmemd" in unit.must("varlinkctl", "info", socket)
    listed = json.loads(
        unit.must("varlinkctl", "--json=short", "call", socket, "io.gmemd.List", "{}")
    )
    assert {vm["vm"] for vm in listed["vms"]} == {"web-01", "db-01"}
    failed = unit.run("varlinkctl", "call", socket, "io.gmemd.Describe", '{"vm": "nobody"}')
    assert failed.returncode != 0
    assert "io.gmemd.NoSuchVM" in failed.stderr


def test_others_may_read_and_not_reload() -> None:
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert "web-01" in unit.must(*as_nobody, "gmemd", "status")
    assert unit.run(*as_nobody, "gmemd", "reload").returncode == 6


def test_reload_takes_on_a_new_vm_and_releases_a_removed_one() -> None:
    unit.wait_for("db-01", "degraded")
    path = unit.write_spec("new-01", memory="192MiB", host_node=2, at=unit.RUNTIME_SPECS)
    free_before = unit.free_bytes(2)
    unit.must("systemctl", "reload", "gmemd.service")
    vm = unit.wait_for("new-01", "ready", "failed")
    assert vm["state"] == "ready", vm["message"]
    assert vm["guest_nodes"][1]["drift"]["by_node"]["2"] == 192 * MIB
    assert free_before - unit.free_bytes(2) > 128 * MIB
    assert 'vm="new-01"' in metrics()
    path.unlink()
    unit.must("systemctl", "reload", "gmemd.service")
    unit.wait_until_gone("new-01")
    assert abs(free_before - unit.free_bytes(2)) < 64 * MIB
    assert "new-01" not in metrics()
    assert unit.wait_for("web-01", "ready")


def test_a_broken_file_is_said_and_leaves_the_others_running() -> None:
    good = (unit.SPECS / "web-01.yaml").read_text()
    since = unit.wait_for("web-01", "ready")["since"]
    try:
        (unit.SPECS / "web-01.yaml").write_text(good.replace("16MiB", "16MB", 1))
        unit.run("systemctl", "reload", "gmemd.service")
        vm = unit.wait_for("web-01", "ready")
        assert vm["spec_error"] is True
        assert vm["since"] == since
        assert 'gmemd_vm_spec_error{vm="web-01"} 1.0' in metrics()
    finally:
        (unit.SPECS / "web-01.yaml").write_text(good)
    unit.must("systemctl", "reload", "gmemd.service")
    assert unit.wait_for("web-01", "ready")["spec_error"] is False


def test_an_emptied_directory_is_a_failed_reload() -> None:
    aside = Path("/etc/gmemd/aside")
    unit.SPECS.rename(aside)
    try:
        unit.SPECS.mkdir()
        assert unit.run("systemctl", "reload", "gmemd.service").returncode != 0
        assert set(unit.vms()) == {"web-01", "db-01"}
        assert "gmemd_config_last_reload_successful 0.0" in metrics()
        assert unit.unit("ActiveState") == "active"
    finally:
        unit.SPECS.rmdir()
        aside.rename(unit.SPECS)
    unit.must("systemctl", "reload", "gmemd.service")
    assert "gmemd_config_last_reload_successful 1.0" in metrics()


def test_killed_it_comes_back() -> None:
    before = unit.unit("MainPID")
    (unit.SPECS / "db-01.yaml").unlink()
    unit.must("systemctl", "kill", "--signal=KILL", "gmemd.service")
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while unit.unit("MainPID") in {before, "0"} and time.monotonic() < deadline:
        time.sleep(0.5)
    unit.wait_for("web-01", "ready")
    assert unit.unit("NRestarts") == "1"
    unit.wait_until_gone("db-01")


def test_stopped_it_leaves_cleanly_and_systemd_keeps_the_memory() -> None:
    unit.wait_for("web-01", "ready")
    unit.must("systemctl", "stop", "gmemd.service")
    assert int(unit.unit("NFileDescriptorStore")) >= 2
    assert unit.unit("Result") == "success"
    assert unit.unit("ExecMainStatus") == "0"
    assert not unit.SOCKET.exists()
    assert unit.RUNTIME_SPECS.is_dir()
    unit.start()
    assert unit.wait_for("web-01", "ready")
