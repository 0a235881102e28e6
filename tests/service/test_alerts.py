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

from tests.qemu import backends, start_qemu
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHIPPED = unit.CHECKOUT / "deploy/prometheus"
UNITS = Path("/etc/systemd/system")
AUDIT_UNITS = ("gmemd-audit.service", "gmemd-audit.timer")
TEXTFILE = Path("/var/lib/prometheus/node-exporter/gmemd.prom")
PROMETHEUS, NODE_EXPORTER, DAEMON = "127.0.0.1:9090", "127.0.0.1:9100", "127.0.0.1:9989"
BY_TEXTFILE = {"job": "node", "instance": NODE_EXPORTER}
BY_DAEMON = {"job": "gmemd", "instance": DAEMON}
CONFIG = Path("/etc/gmemd/gmemd.yaml")
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


@pytest.fixture(scope="module")
def daemon() -> Iterator[None]:
    """The unit with the drop-in that lets it look into VMs, at it every five seconds."""
    CONFIG.write_text("audit: {interval: 5s}\n")
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    shutil.copy(unit.CHECKOUT / "systemd/gmemd.service.d/observe.conf", unit.DROP_INS)
    unit.must("systemctl", "daemon-reload")
    unit.start()
    yield
    unit.stop()
    shutil.rmtree(unit.DROP_INS)
    unit.must("systemctl", "daemon-reload")
    shutil.copy(unit.CHECKOUT / "config/gmemd.yaml", CONFIG)


@contextmanager
def drifting_vm() -> Iterator[None]:
    """A paused VM of another user, its guest nodes bound to 1 and 2, and moved off the latter."""
    arguments = backends(32, 32)
    for guest_node, host_node in enumerate((1, 2)):
        at = next(i for i, word in enumerate(arguments) if f"id=m{guest_node}," in word)
        arguments[at] += f",host-nodes={host_node},policy=bind"
    with start_qemu(*arguments, name="guest=drift-01", prefix=AS_NOBODY) as qemu:
        unit.must("migratepages", str(qemu.pid), "2", "0")
        yield


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


@pytest.mark.usefixtures("daemon")
def test_drift_by_the_textfile_and_by_the_daemon(prometheus: Path) -> None:
    with drifting_vm():
        audit()
        assert TEXTFILE.stat().st_mode & 0o777 == 0o644
        assert "gmemd_vm_memory_unknown{" not in TEXTFILE.read_text()
        for where in (BY_TEXTFILE, BY_DAEMON):
            alert = fires("GmemdMemoryMisplaced", prometheus, vm="drift-01", **where)
            assert alert["labels"]["guest_node"] == "1"
            assert alert["annotations"]["runbook_url"] == "runbooks/GmemdMemoryMisplaced.md"
            assert "32MiB on host node 0" in alert["annotations"]["description"]
        assert {one["labels"]["alertname"] for one in alerts()} == {"GmemdMemoryMisplaced"}
        assert {one["labels"]["guest_node"] for one in alerts()} == {"1"}
    audit()
    for where in (BY_TEXTFILE, BY_DAEMON):
        resolves("GmemdMemoryMisplaced", vm="drift-01", **where)


@pytest.mark.usefixtures("daemon")
def test_a_textfile_that_is_old_then_gone(prometheus: Path) -> None:
    audit()
    assert wait_until(lambda: scraped("gmemd_build_info", "node"))
    two_hours_ago = time.time() - 7200
    os.utime(TEXTFILE, (two_hours_ago, two_hours_ago))
    assert "vm" not in fires("GmemdAuditStale", prometheus, **BY_TEXTFILE)["labels"]
    audit()
    resolves("GmemdAuditStale", **BY_TEXTFILE)
    assert firing("GmemdDown", **BY_TEXTFILE) is None
    TEXTFILE.unlink()
    gone = fires("GmemdDown", prometheus, **BY_TEXTFILE)
    assert gone["annotations"]["summary"] == f"gmemd on {NODE_EXPORTER} reports nothing any more"
    audit()
    resolves("GmemdDown", **BY_TEXTFILE)


@pytest.mark.usefixtures("daemon")
def test_a_daemon_that_ends(prometheus: Path) -> None:
    unit.must("systemctl", "stop", "gmemd.service")
    down = fires("GmemdDown", prometheus, **BY_DAEMON)
    assert down["annotations"]["summary"] == f"gmemd on {DAEMON} is down"
