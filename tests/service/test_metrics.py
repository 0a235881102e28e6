"""The metrics under systemd: on its socket, by HTTPS, to a Prometheus with a certificate."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.certificates import certify, hashed
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Path("/etc/gmemd/gmemd.yaml")
WEB = Path("/etc/gmemd/web.yaml")
ADDRESS = "127.0.0.1:9989"
FILES = ("server.crt", "server.key", "clients-ca.crt")
PROTECTED = f"""\
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: clients-ca.crt
basic_auth_users: {{prometheus: {hashed("right")}}}
"""


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    unit.stop()
    before = CONFIG.read_text()
    yield
    unit.stop()
    CONFIG.write_text(before)
    for path in (WEB, *(WEB.parent / name for name in FILES)):
        path.unlink(missing_ok=True)


def state(name: str) -> str:
    return unit.must("systemctl", "show", "--property=ActiveState", "--value", name).strip()


def test_it_serves_on_systemds_socket_and_a_scrape_doesnt_undo_a_stop() -> None:
    unit.start()
    assert state("gmemd-metrics.socket") == "active"
    assert "gmemd_build_info" in unit.get(ADDRESS, "/metrics")
    sockets = unit.must("ss", "--listening", "--tcp", "--processes", "--no-header", "--numeric")
    (line,) = (line for line in sockets.splitlines() if ADDRESS in line)
    assert '"systemd",pid=1,' in line
    unit.stop()
    with pytest.raises(ConnectionRefusedError):
        unit.get(ADDRESS, "/metrics")
    assert unit.unit("ActiveState") == "inactive"


def test_it_is_back_after_a_crash() -> None:
    unit.start()
    before = unit.unit("MainPID")
    unit.must("systemctl", "kill", "--signal=SIGKILL", "gmemd.service")
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            assert "gmemd_build_info" in unit.get(ADDRESS, "/metrics")
            break
        except ConnectionError:
            time.sleep(0.2)
    assert unit.unit("MainPID") not in {before, "0"}


def test_an_address_of_its_own_is_refused_beside_it() -> None:
    CONFIG.write_text("metrics: {listen: 127.0.0.1:9989}\n")
    assert unit.run("systemctl", "start", "gmemd.service").returncode != 0
    journal = unit.journal()
    assert "gmemd.yaml says metrics: listen: 127.0.0.1:9989, and systemd listens" in journal
    assert "leave listen: out, as the address is ListenStream= of gmemd-metrics.socket" in journal


def test_prometheus_scrapes_it_with_a_certificate_and_a_password(tmp_path: Path) -> None:
    ca = certify(tmp_path, "ca")
    server = certify(tmp_path, "server", ca=ca, san="IP:127.0.0.1")
    client = certify(tmp_path, "client", ca=ca, usage="clientAuth")
    WEB.write_text(PROTECTED)
    for source, name in zip((server.cert, server.key, ca.cert), FILES, strict=True):
        shutil.copyfile(source, WEB.parent / name)
        unit.must("chgrp", "gmemd", str(WEB.parent / name), str(WEB))
        (WEB.parent / name).chmod(0o640)
    WEB.chmod(0o640)
    with CONFIG.open("a") as file:
        file.write(f"metrics: {{web_config: {WEB}}}\n")
    assert f"{WEB}: valid web configuration: TLS 1.2" in unit.must("gmemd", "check")
    unit.start()
    told = unit.run(
        "curl", "--silent", "--cacert", str(ca.cert), "--user", "prometheus:right",
        "--write-out", "%{http_code}", f"https://{ADDRESS}/metrics",
    )  # fmt: skip
    assert told.stdout.endswith("000")
    tls = {"ca_file": str(ca.cert), "cert_file": str(client.cert), "key_file": str(client.key)}
    scrape = {
        "job_name": "gmemd",
        "scheme": "https",
        "tls_config": tls,
        "basic_auth": {"username": "prometheus", "password": "right"},
        "static_configs": [{"targets": [ADDRESS]}],
    }
    assert targets_error(tmp_path, scrape) == ""
    unit.stop()


def targets_error(directory: Path, scrape: dict[str, object]) -> str:
    """What Prometheus says was wrong with its scrape; nothing where it was well."""
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (directory / "prometheus.yml").write_text(json.dumps(config))
    address = "127.0.0.1:9090"
    command = ["prometheus", f"--config.file={directory}/prometheus.yml"]
    command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + unit.PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = json.loads(unit.get(address, "/api/v1/targets"))
            except (OSError, AssertionError):
                answer = {"data": {"activeTargets": []}}
            for target in answer["data"]["activeTargets"]:
                if target["health"] != "unknown":
                    return str(target["lastError"])
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()
    raise AssertionError((directory / "log").read_text())
