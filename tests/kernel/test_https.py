"""The metrics by HTTPS, with passwords and clients' certificates, to real curl and openssl."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from gmemd.export import http as server_module
from gmemd.export import protection as protection_module
from gmemd.export import web as web_module
from gmemd.export.http import MetricsServer
from gmemd.export.instruments import Counters
from gmemd.export.listening import parse_listen
from gmemd.export.snapshot import Snapshot
from gmemd.export.web import Web
from tests.certificates import Pair, certify, hashed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SNAPSHOT = Snapshot(version="0.1.0", taken_timestamp=1.0)
TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key"
CLIENTS = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt"
USERS = f"basic_auth_users: {{prometheus: {hashed('right')}}}\n"
DRIP_SECONDS = 0.05
NAMES = "DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return certify(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture
def directory(tmp_path: Path, ca: Pair) -> Path:
    """A directory for web.yaml, with a server's certificate and the CA's."""
    certify(tmp_path, "server", ca=ca, san=NAMES)
    (tmp_path / "ca.crt").write_bytes(ca.cert.read_bytes())
    return tmp_path


@contextmanager
def serving(directory: Path, text: str) -> Iterator[MetricsServer]:
    path = directory / "web.yaml"
    path.write_text(text)
    with MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters(), Web(path)) as server:
        yield server


def curl(
    server: MetricsServer,
    directory: Path,
    *options: str,
    path: str = "/metrics",
    scheme: str = "https",
) -> tuple[int, str]:
    """The status that curl was given, or (0 and) what it says of why there is none."""
    address = server.addresses[0]
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--include"]
    command += ["--cacert", str(directory / "ca.crt"), *options, f"{scheme}://{address}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return 0, done.stderr
    return int(done.stdout.split()[1]), done.stdout


def with_pair(pair: Pair) -> tuple[str, ...]:
    return "--cert", str(pair.cert), "--key", str(pair.key)


def serial(server: MetricsServer, *options: str) -> str:
    """The serial number of the certificate that openssl is shown, or what went wrong."""
    command = ["openssl", "s_client", "-connect", server.addresses[0], *options]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"],
        input=done.stdout,
        capture_output=True,
        check=False,
    )
    return (shown.stdout if done.returncode == 0 else done.stderr).decode()


@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_passwords(directory: Path, path: str) -> None:
    with serving(directory, f"{TLS}}}\n{USERS}") as server:
        for options in ((), ("--user", "prometheus:wrong"), ("--user", "nobody:right")):
            code, answer = curl(server, directory, *options, path=path)
            assert code == 401
            assert 'WWW-Authenticate: Basic realm="gmemd"' in answer
            assert "gmemd_build_info" not in answer
        assert curl(server, directory, path="/nothing")[0] == 401
        code, answer = curl(server, directory, "--user", "prometheus:right", path=path)
        assert code == 200
        assert "Content-Security-Policy: default-src 'none'" in answer
        if path == "/metrics":
            assert "gmemd_web_config_last_reload_successful 1.0" in answer


def test_clients_certificates(directory: Path, ca: Pair) -> None:
    other_ca = certify(directory, "other-ca")
    right = certify(directory, "right", ca=ca, usage="clientAuth")
    wrong = certify(directory, "wrong", ca=other_ca, usage="clientAuth")
    unfit = certify(directory, "unfit", ca=ca, usage="serverAuth")
    with serving(directory, f"{TLS}, {CLIENTS}}}") as server:
        assert curl(server, directory)[0] == 0
        assert curl(server, directory, *with_pair(wrong))[0] == 0
        assert curl(server, directory, *with_pair(unfit))[0] == 0
        assert curl(server, directory, *with_pair(right))[0] == 200


def test_certificates_need_the_name_and_may_be_optional(directory: Path, ca: Pair) -> None:
    named = certify(directory, "named", ca=ca, san="DNS:a.example,IP:10.0.0.1")
    unnamed = certify(directory, "unnamed", ca=ca, san="DNS:b.example")
    with serving(directory, f"{TLS}, {CLIENTS}, client_allowed_sans: [10.0.0.1]}}") as server:
        assert curl(server, directory, *with_pair(unnamed))[0] == 0
        assert curl(server, directory, *with_pair(named))[0] == 200
    optional = CLIENTS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    stranger = certify(directory, "stranger")
    with serving(directory, f"{TLS}, {optional}}}") as server:
        assert curl(server, directory)[0] == 200
        assert curl(server, directory, *with_pair(stranger))[0] == 0


def test_a_client_whose_own_certificate_is_trusted_gets_in(directory: Path) -> None:
    lonely = certify(directory, "lonely")
    clients = CLIENTS.replace("ca.crt", "lonely.crt")
    with serving(directory, f"{TLS}, {clients}}}") as server:
        assert curl(server, directory, *with_pair(lonely))[0] == 200


def test_a_rotated_certificate_is_served_without_a_restart_and_a_broken_one_isnt(
    directory: Path, ca: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = directory / "fresh"
    fresh.mkdir()
    with serving(directory, f"{TLS}}}\n{USERS}") as server:
        first = serial(server)
        assert re.fullmatch("serial=[0-9A-F]+\n", first)
        renewed = certify(fresh, "server", ca=ca, san=NAMES)
        renewed.cert.replace(directory / "server.crt")
        assert serial(server) == first
        code, answer = curl(server, directory, "--user", "prometheus:right")
        assert code == 200
        assert "gmemd_web_config_last_reload_successful 0.0" in answer
        assert caplog.text.count("key_file: is not the certificate's key") == 1
        renewed.key.replace(directory / "server.key")
        second = serial(server)
        assert re.fullmatch("serial=[0-9A-F]+\n", second)
        assert second != first
        with (directory / "server.key").open("w") as file:
            file.write("nothing of use\n")
        assert serial(server) == second
        assert "key_file: holds no private key" in caplog.text
        (directory / "web.yaml").write_text(f"{TLS}}}\n{USERS.replace('prometheus', 'alice')}")
        assert curl(server, directory, "--user", "prometheus:right")[0] == 200


def test_versions_and_suites_are_those_asked_for(directory: Path) -> None:
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    with serving(directory, f"{TLS}, cipher_suites: [{suite}], max_version: TLS12}}") as server:
        assert serial(server).startswith("serial=")
        assert "alert protocol version" in serial(server, "-tls1_3")
        others = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305"
        assert "alert handshake failure" in serial(server, "-cipher", others)
    with serving(directory, f"{TLS}, min_version: TLS13, curve_preferences: [X25519]}}") as server:
        assert "alert" in serial(server, "-tls1_2")
        assert "alert" in serial(server, "-groups", "P-256")
        assert serial(server, "-groups", "X25519").startswith("serial=")


def test_headers_and_rate(directory: Path) -> None:
    headers = "{X-Frame-Options: deny, Content-Security-Policy: default-src 'self'}"
    text = f"http_server_config: {{headers: {headers}}}\nrate_limit: {{interval: 1h, burst: 1}}\n"
    with serving(directory, text) as server:
        code, answer = curl(server, directory, scheme="http")
        assert code == 200
        assert "X-Frame-Options: deny" in answer
        assert answer.count("Content-Security-Policy: ") == 1
        assert "Content-Security-Policy: default-src 'self'" in answer
        code, answer = curl(server, directory, scheme="http")
        assert code == 429
        assert "X-Frame-Options: deny" in answer


def test_who_speaks_http_is_told_that_it_is_https(directory: Path) -> None:
    with serving(directory, f"{TLS}}}") as server:
        code, answer = curl(server, directory, scheme="http")
    assert code == 400
    assert answer.endswith("this is a server of https\n")


def test_clients_that_never_finish_a_handshake_hold_nobody_up_and_are_cut_off(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "READ_TIMEOUT_SECONDS", 2.0)
    context = ssl.create_default_context(cafile=directory / "ca.crt")
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    begun = hello.read()
    with serving(directory, f"{TLS}}}") as server, ExitStack() as stack:
        slow = [
            stack.enter_context(
                socket.create_connection(parse_listen(server.addresses[0]), timeout=20)
            )
            for _ in range(server_module.MAX_REQUESTS - 1)
        ]
        began = time.monotonic()
        for client in slow[1:]:
            client.sendall(begun[: len(begun) // 2])
        assert curl(server, directory)[0] == 200
        handlers = [thread for thread in threading.enumerate() if thread.name == "metrics request"]
        assert len(handlers) >= len(slow)
        drip(slow[1], begun[len(begun) // 2 :])
        for client in slow:
            assert ended(client)
        # Dripping on, it would take longer than this.
        assert time.monotonic() - began < DRIP_SECONDS * len(begun) / 2
        assert curl(server, directory)[0] == 200


def drip(client: socket.socket, data: bytes) -> None:
    """Go on sending, a byte at a time, from another thread."""

    def send() -> None:
        try:
            for byte in data[:-1]:
                client.send(bytes([byte]))
                time.sleep(DRIP_SECONDS)
        except OSError:
            return

    threading.Thread(target=send, daemon=True).start()


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_stop_ends_handshakes(directory: Path) -> None:
    with serving(directory, f"{TLS}}}") as server:
        client = socket.create_connection(parse_listen(server.addresses[0]), timeout=20)
        assert curl(server, directory)[0] == 200
    with client:
        assert ended(client)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("metrics")]


def test_sessions_of_old_clients_are_forgotten_before_they_are_many(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_module, "MOST_SESSIONS", 3)
    monkeypatch.setattr(protection_module, "SETTLED_SECONDS", 0.0)
    context = ssl.create_default_context(cafile=directory / "ca.crt")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    path = directory / "web.yaml"
    path.write_text(f"{TLS}}}")
    web = Web(path)
    kept = []
    with MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters(), web) as server:
        for _ in range(10):
            address = parse_listen(server.addresses[0])
            connection = http.client.HTTPSConnection(*address, timeout=20, context=context)
            connection.request("GET", "/")
            assert connection.getresponse().read()
            connection.close()
            in_force = web.protection().context
            assert in_force is not None
            kept.append(in_force.session_stats()["number"])
    assert max(kept) in {3, 4}
