"""The alerts in a real Prometheus: of a textfile by node_exporter, and of the daemon's metrics."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
SHIPPED = unit.CHECKOUT / "deploy/prometheus"
UNITS = Path("/etc/systemd/system")
AUDIT_UNITS = ("gmemd-audit.service", "gmemd-audit.timer")
TEXTFILE = Path("/var/lib/prometheus/node-exporter/gmemd.prom")
PROMETHEUS, NODE_EXPORTER, DAEMON = "127.0.0.1:9090", "127.0.0.1:9100", "127.0.0.1:9989"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    for name in AUDIT_UNITS:
        shutil.copy(SHIPPED / name, UNITS)
    unit.must("systemctl", "daemon-reload")
    yield
    TEXTFILE.unlink(missing_ok=True)
    for name in AUDIT_UNITS:
        (UNITS / name).unlink()
    unit.must("systemctl", "daemon-reload")


@contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def drifting_vm(log: Path) -> Iterator[None]:
    """A paused QEMU of another user, bound to host nodes 1 and 2, and moved off the latter."""
    command = [*AS_NOBODY, "qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults"]
    command += ["-display", "none", "-name", "guest=drift-01", "-m", "64M"]
    for guest_node, host_node in enumerate((1, 2)):
        memory = f"size=32M,host-nodes={host_node},policy=bind,prealloc=on"
        command += ["-object", f"memory-backend-ram,id=ram{guest_node},{memory}"]
        command += ["-numa", f"node,nodeid={guest_node},memdev=ram{guest_node}"]
    with running(*command, log=log) as process:
        wait_until(lambda: resident_bytes(process.pid, 2) >= 32 * MIB)
        unit.must("migratepages", str(process.pid), "2", "0")
        yield


def resident_bytes(pid: int, node: int) -> int:
    try:
        text = Path(f"/proc/{pid}/numa_maps").read_text()
    except OSError:
        return 0
    return sum(int(pages) for pages in re.findall(rf" N{node}=(\d+)", text)) * 4096


def wait_until(met: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the condition gives
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := met():
            return found
        time.sleep(1)
    return None


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prometheus and node_exporter on the shipped rules, in seconds instead of their minutes."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules, replaced = re.subn(r"\bfor: \d+[mh]", "for: 4s", (SHIPPED / "alerts.yaml").read_text())
    assert replaced >= 6
    (folder / "alerts.yaml").write_text(rules)
    jobs = {"gmemd": DAEMON, "node": NODE_EXPORTER}
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]}
            for job, target in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    server = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    server += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={PROMETHEUS}"]
    exporter = ["prometheus-node-exporter", "--collector.disable-defaults"]
    exporter += ["--collector.textfile", f"--web.listen-address={NODE_EXPORTER}"]
    exporter += [f"--collector.textfile.directory={TEXTFILE.parent}"]
    with (
        running(*server, log=folder / "prometheus.log"),
        running(*AS_NOBODY, *exporter, log=folder / "node_exporter.log"),
    ):
        assert wait_until(is_ready), (folder / "prometheus.log").read_text()
        yield folder


def asked(path: str) -> dict[str, Any]:
    """What Prometheus answers."""
    return dict(json.loads(unit.get(PROMETHEUS, path))["data"])


def is_ready() -> bool:
    try:
        return bool(unit.get(PROMETHEUS, "/-/ready"))
    except (OSError, AssertionError):
        return False


def alerts() -> list[dict[str, Any]]:
    """The alerts that fire now, each with labels and annotations."""
    found = asked("/api/v1/alerts")["alerts"]
    return [alert for alert in found if alert["state"] == "firing"]


def scraped(metric: str, job: str) -> bool:
    query = quote(f'{metric}{{job="{job}"}}')
    return bool(asked(f"/api/v1/query?query={query}")["result"])


def firing(name: str, **labels: str) -> dict[str, Any] | None:
    wanted = {"alertname": name, **labels}
    return next((one for one in alerts() if wanted.items() <= one["labels"].items()), None)


def fires(name: str, logs: Path, **labels: str) -> dict[str, Any]:
    """The alert, once it fires."""
    found = wait_until(lambda: firing(name, **labels))
    said = "\n".join(path.read_text()[-2000:] for path in logs.glob("*.log"))
    assert found is not None, f"{alerts()}\n{said}"
    return dict(found)


def resolves(name: str, **labels: str) -> None:
    assert wait_until(lambda: firing(name, **labels) is None), alerts()


def audit() -> None:
    """What the timer does."""
    done = unit.run("systemctl", "start", "gmemd-audit.service")
    said = unit.run("journalctl", "--unit=gmemd-audit.service", "--no-pager").stdout
    assert done.returncode == 0, done.stderr + said


def test_units_are_clean() -> None:
    done = unit.run("systemd-analyze", "verify", *(str(UNITS / name) for name in AUDIT_UNITS))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_drift_by_the_textfile(prometheus: Path, tmp_path: Path) -> None:
    where = {"job": "node", "instance": NODE_EXPORTER, "vm": "drift-01"}
    with drifting_vm(tmp_path / "qemu.log"):
        audit()
        assert TEXTFILE.stat().st_mode & 0o777 == 0o644
        alert = fires("GmemdMemoryMisplaced", prometheus, **where)
    assert alert["labels"]["guest_node"] == "1"
    assert alert["annotations"]["runbook_url"] == "runbooks/GmemdMemoryMisplaced.md"
    assert "32MiB on host node 0" in alert["annotations"]["description"]
    assert not [one for one in alerts() if one["labels"].get("guest_node") == "0"]
    audit()
    resolves("GmemdMemoryMisplaced", **where)


def test_a_textfile_that_is_old_then_gone(prometheus: Path) -> None:
    audit()
    where = {"job": "node", "instance": NODE_EXPORTER}
    assert wait_until(lambda: scraped("gmemd_build_info", "node"))
    two_hours_ago = time.time() - 7200
    os.utime(TEXTFILE, (two_hours_ago, two_hours_ago))
    assert "vm" not in fires("GmemdAuditStale", prometheus, **where)["labels"]
    audit()
    resolves("GmemdAuditStale", **where)
    assert firing("GmemdDown", **where) is None
    TEXTFILE.unlink()
    gone = fires("GmemdDown", prometheus, **where)
    assert gone["annotations"]["summary"] == f"gmemd on {NODE_EXPORTER} reports nothing any more"
    audit()
    resolves("GmemdDown", **where)


def test_drift_by_the_daemon_and_the_daemons_end(prometheus: Path) -> None:
    where = {"job": "gmemd", "instance": DAEMON}
    unit.write_spilling_spec("db-01", 96 * MIB)
    unit.start()
    try:
        unit.wait_for("db-01", "degraded")
        alert = fires("GmemdMemoryMisplaced", prometheus, vm="db-01", **where)
        assert alert["labels"]["guest_node"] == "1"
        assert firing("GmemdDown", **where) is None
    finally:
        unit.stop()
        unit.clear_specs()
    down = fires("GmemdDown", prometheus, **where)
    assert down["annotations"]["summary"] == f"gmemd on {DAEMON} is down"
    resolves("GmemdMemoryMisplaced", vm="db-01", **where)
