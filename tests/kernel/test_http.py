"""The metrics server on real sockets."""

from __future__ import annotations

import errno
import gzip
import http.client
import socket
import threading
import time
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.errors import Exit
from gmemd.export import http as server_module
from gmemd.export.http import MetricsServer
from gmemd.export.instruments import Counters
from gmemd.export.listening import ListenError, parse_listen
from gmemd.export.snapshot import Snapshot, VmState, VmStatus
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

VM = VmStatus(vm="db-01", source=Source.CREATE, state=VmState.READY, since=1.0)
SNAPSHOT = Snapshot(version="0.1.0", taken_timestamp=1.0, vms=(VM,))


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters()) as server:
        yield server


def connect(server: MetricsServer, index: int = 0) -> http.client.HTTPConnection:
    host, port = parse_listen(server.addresses[index])
    return http.client.HTTPConnection(host, port, timeout=20)


def ask(
    server: MetricsServer, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = connect(server)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def open_socket(server: MetricsServer) -> socket.socket:
    return socket.create_connection(parse_listen(server.addresses[0]), timeout=20)


def test_metrics(server: MetricsServer) -> None:
    response, body = ask(server, "GET", "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert b'gmemd_vm_state{state="ready",vm="db-01"} 1.0' in body


def test_metrics_gzipped_on_request(server: MetricsServer) -> None:
    response, body = ask(server, "GET", "/metrics", {"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert b"gmemd_build_info" in gzip.decompress(body)


def test_openmetrics_on_request(server: MetricsServer) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response, body = ask(server, "GET", "/metrics", accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_metrics_by_name(server: MetricsServer) -> None:
    _, body = ask(server, "GET", "/metrics?name[]=gmemd_build_info")
    assert b"gmemd_build_info" in body
    assert b"gmemd_vm_state" not in body


def test_page(server: MetricsServer) -> None:
    response, body = ask(server, "GET", "/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert b"db-01" in body


def test_head_has_the_headers_alone(server: MetricsServer) -> None:
    response, body = ask(server, "HEAD", "/")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/../etc/passwd"])
def test_other_paths_are_not_found(server: MetricsServer, path: str) -> None:
    response, _ = ask(server, "GET", path)
    assert response.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(server: MetricsServer, method: str) -> None:
    response, _ = ask(server, method, "/metrics")
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", ["http://[::1/metrics", "http://[a]/"])
def test_a_request_for_no_address_is_refused(server: MetricsServer, target: str) -> None:
    with open_socket(server) as client:
        client.sendall(b"GET " + target.encode() + b" HTTP/1.0\r\n\r\n")
        assert client.recv(4096).split()[1] == b"400"


@pytest.mark.parametrize("version", ["x", "1.0.0'", ""])
def test_a_format_of_no_version_is_the_plain_one(server: MetricsServer, version: str) -> None:
    for kind in ("text/plain", "application/openmetrics-text"):
        response, body = ask(server, "GET", "/metrics", {"Accept": f"{kind};version={version}"})
        assert response.status == 200
        assert b"gmemd_build_info" in body


def test_a_failure_to_render_is_a_500_and_the_server_lives() -> None:
    states = [Snapshot(version="0.1.0", taken_timestamp=1.0)]

    with MetricsServer(["127.0.0.1:0"], lambda: states[0], Counters()) as server:
        snapshot = states.pop()
        assert ask(server, "GET", "/metrics")[0].status == 500
        assert ask(server, "GET", "/")[0].status == 500
        states.append(snapshot)
        assert ask(server, "GET", "/metrics")[0].status == 200


def test_garbage_is_answered_and_survived(server: MetricsServer) -> None:
    for garbage in (b"\x00\xff\n\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G" * 70000):
        with open_socket(server) as client:
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    assert ask(server, "GET", "/metrics")[0].status == 200


def test_a_silent_client_is_cut_off(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module._Handler, "timeout", 0.1)
    with open_socket(server) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n")
        assert client.recv(1) == b""


def test_a_dripping_client_is_cut_off_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_DEADLINE_SECONDS", 0.3)
    over = threading.Event()
    with (
        MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters()) as server,
        open_socket(server) as client,
    ):

        def drip() -> None:
            try:
                while not over.wait(0.02):
                    client.send(b"G")
            except OSError:
                over.set()

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            ended = client.recv(1) == b""
        except ConnectionResetError:
            ended = True
        over.set()
        dripper.join()
        assert ended


def test_more_clients_than_threads_are_turned_away_and_served_later(
    server: MetricsServer,
) -> None:
    idle = [open_socket(server) for _ in range(server_module.MAX_REQUESTS)]
    with open_socket(server) as extra:
        assert extra.recv(100).startswith(b"HTTP/1.0 503")
    handlers = [thread for thread in threading.enumerate() if thread.name == "metrics request"]
    assert len(handlers) == server_module.MAX_REQUESTS
    for client in idle:
        client.close()
    for handler in handlers:
        handler.join()
    assert ask(server, "GET", "/metrics")[0].status == 200


def test_where_no_descriptor_is_free_it_waits_and_goes_on(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[float] = []

    def refuse(_: TCPServer) -> Any:  # noqa: ANN401  it gives nothing
        refused.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(TCPServer, "get_request", refuse)
    with open_socket(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        time.sleep(0.3)
        assert 1 <= len(refused) <= 3
        monkeypatch.undo()
        assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_stop_ends_open_connections_and_threads() -> None:
    server = MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters())
    server.start()
    with open_socket(server) as client:
        client.sendall(b"GET /met")
        ask(server, "GET", "/")
        server.stop()
        assert client.recv(1) == b""
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("metrics")]
    with pytest.raises(ConnectionRefusedError):
        open_socket(server)


def test_stop_before_start_frees_the_address() -> None:
    server = MetricsServer(["127.0.0.1:0"], lambda: SNAPSHOT, Counters())
    address = server.addresses[0]
    server.stop()
    with MetricsServer([address], lambda: SNAPSHOT, Counters()) as again:
        assert again.addresses == (address,)


def test_a_busy_address_is_named_with_a_way_out(server: MetricsServer) -> None:
    address = server.addresses[0]
    with pytest.raises(ListenError) as caught:
        MetricsServer(["127.0.0.1:0", address], lambda: SNAPSHOT, Counters())
    assert caught.value.message == (
        f"metrics listen address {address}: Address already in use: another program has it"
    )
    port = address.rpartition(":")[2]
    assert caught.value.hint is not None
    assert f"ss -ltnp 'sport = :{port}'" in caught.value.hint
    assert caught.value.exit_code is Exit.HOST


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match="Cannot assign requested address"):
        MetricsServer(["192.0.2.1:0"], lambda: SNAPSHOT, Counters())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_both_families_on_one_port() -> None:
    with MetricsServer(["0.0.0.0:0"], lambda: SNAPSHOT, Counters()) as first:
        port = parse_listen(first.addresses[0])[1]
        with MetricsServer([f"[::]:{port}"], lambda: SNAPSHOT, Counters()) as second:
            assert second.addresses == (f"[::]:{port}",)
            connection = http.client.HTTPConnection("::1", port, timeout=20)
            connection.request("GET", "/metrics")
            assert connection.getresponse().status == 200
            connection.close()


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:9989", ("127.0.0.1", 9989)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:80", ("localhost", 80)),
        (":9989", ("", 9989)),
    ],
)
def test_listen_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(address) == parsed


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:http", "::1:80", ""]
)
def test_unreadable_listen_addresses(address: str) -> None:
    with pytest.raises(ListenError) as caught:
        parse_listen(address)
    assert caught.value.hint is not None
