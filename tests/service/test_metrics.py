"""The metrics under systemd: on its socket, by HTTPS, to a Prometheus with a certificate."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Pair, certify, hashed
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    """The CA, and a client's certificate of it; a server's one is in place."""
    directory = tmp_path_factory.mktemp("certificates")
    ca = certify(directory, "ca")
    server = certify(directory, "server", ca=ca, san="IP:127.0.0.1")
    for source, name in zip((server.cert, server.key, ca.cert), FILES, strict=True):
        shutil.copyfile(source, WEB.parent / name)
    return ca, certify(directory, "client", ca=ca, usage="clientAuth")


@pytest.fixture(scope="module", autouse=True)
def service(installed: None, certificates: tuple[Pair, Pair]) -> Iterator[None]:  # noqa: ARG001
    """The service with its metrics protected, as shipped else."""
    before = CONFIG.read_text()
    WEB.write_text(PROTECTED)
    for path in (WEB, *(WEB.parent / name for name in FILES)):
        unit.must("chgrp", "gmemd", str(path))
        path.chmod(0o640)
    with CONFIG.open("a") as file:
        file.write(f"metrics: {{web_config: {WEB}}}\n")
    unit.start()
    yield
    unit.stop()
    CONFIG.write_text(before)
    for path in (WEB, *(WEB.parent / name for name in FILES)):
        path.unlink()


@pytest.fixture(scope="module")
def installed() -> None:
    unit.install()
    unit.clear_specs()
    unit.stop()


def curl(certificates: tuple[Pair, Pair], *options: str) -> tuple[int, str]:
    """The status that curl was given, and the answer, once something listens."""
    command = ["curl", "--silent", "--cacert", str(certificates[0].cert), *options]
    command += ["--retry", "60", "--retry-delay", "1", "--retry-connrefused"]
    command += ["--write-out", "%{http_code}", f"https://{ADDRESS}/metrics"]
    told = unit.run(*command).stdout
    return int(told[-3:]), told[:-3]


def let_in(certificates: tuple[Pair, Pair]) -> tuple[str, ...]:
    client = certificates[1]
    pair = ("--cert", str(client.cert), "--key", str(client.key))
    return *pair, "--user", "prometheus:right"


def test_it_serves_on_systemds_socket_whom_it_should(certificates: tuple[Pair, Pair]) -> None:
    shown = unit.must("gmemd", "check", str(CONFIG))
    assert f"{WEB}: valid web configuration: TLS 1.2 and TLS 1.3, client_auth_type Req" in shown
    assert "warning" not in shown
    sockets = unit.must("ss", "--listening", "--tcp", "--processes", "--no-header", "--numeric")
    (line,) = (line for line in sockets.splitlines() if ADDRESS in line)
    assert '"systemd",pid=1,' in line
    code, answer = curl(certificates, *let_in(certificates))
    assert code == 200
    assert "gmemd_web_config_last_reload_successful 1.0" in answer
    assert curl(certificates, "--user", "prometheus:right")[0] == 0
    assert curl(certificates, *let_in(certificates)[:4])[0] == 401


def test_prometheus_scrapes_it(certificates: tuple[Pair, Pair], tmp_path: Path) -> None:
    ca, client = certificates
    tls = {"ca_file": str(ca.cert), "cert_file": str(client.cert), "key_file": str(client.key)}
    scrape = {
        "job_name": "gmemd",
        "scheme": "https",
        "tls_config": tls,
        "basic_auth": {"username": "prometheus", "password": "right"},
        "static_configs": [{"targets": [ADDRESS]}],
    }
    assert targets_error(tmp_path, scrape) == ""


def test_it_is_back_after_a_crash_and_no_scrape_undoes_a_stop(
    certificates: tuple[Pair, Pair],
) -> None:
    before = unit.unit("MainPID")
    unit.must("systemctl", "kill", "--signal=SIGKILL", "gmemd.service")
    assert curl(certificates, *let_in(certificates))[0] == 200
    assert unit.unit("MainPID") not in {before, "0"}
    unit.stop()
    with pytest.raises(ConnectionRefusedError):
        unit.get(ADDRESS, "/metrics")
    assert unit.unit("ActiveState") == "inactive"


def test_an_address_of_its_own_is_refused_beside_it() -> None:
    text = CONFIG.read_text()
    CONFIG.write_text("metrics: {listen: 127.0.0.1:9989}\n")
    assert unit.run("systemctl", "start", "gmemd.service").returncode != 0
    journal = unit.journal()
    unit.stop()
    CONFIG.write_text(text)
    assert "gmemd.yaml says metrics: listen: 127.0.0.1:9989, and systemd listens" in journal
    assert "leave listen: out, as the address is ListenStream= of gmemd-metrics.socket" in journal


def targets_error(directory: Path, scrape: dict[str, object]) -> str:
    """What Prometheus says was wrong with its last scrape; nothing once one was well."""
    config = {"global": {"scrape_interval": "5s"}, "scrape_configs": [scrape]}
    (directory / "prometheus.yml").write_text(json.dumps(config))
    address = "127.0.0.1:9090"
    command = ["prometheus", f"--config.file={directory}/prometheus.yml"]
    command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    error = "no scrape"
    try:
        deadline = time.monotonic() + unit.PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = json.loads(unit.get(address, "/api/v1/targets"))
            except (OSError, AssertionError):
                answer = {"data": {"activeTargets": []}}
            for target in answer["data"]["activeTargets"]:
                if target["health"] == "up":
                    return ""
                error = str(target["lastError"])
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()
    return error
