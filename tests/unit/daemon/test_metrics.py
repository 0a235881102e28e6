"""Where the metrics' server listens: on what systemd passes, or on its own, and never on both."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.daemon.metrics import metrics_server
from gmemd.errors import Exit
from gmemd.export.instruments import Counters
from gmemd.export.listening import ListenError
from gmemd.export.snapshot import Snapshot
from gmemd.spec.config import DaemonConfig, parse_config
from gmemd.spec.problems import SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from gmemd.export.http import MetricsServer

SNAPSHOT = Snapshot(version="0.1.0", taken_timestamp=1.0)


def make(config: DaemonConfig, *passed: int) -> MetricsServer:
    return metrics_server(config, passed, lambda: SNAPSHOT, Counters())


def listening(family: socket.AddressFamily, address: Any) -> int:  # noqa: ANN401  as bind has it
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.bind(address)
        one.listen()
        return one.detach()


def refuse_sockets(*_: object, **__: object) -> socket.socket:
    raise AssertionError("an address family may be forbidden")


def test_passed_sockets_are_served_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    tcp = listening(socket.AF_INET, ("127.0.0.1", 0))
    unix = listening(socket.AF_UNIX, path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_sockets)
    with make(DaemonConfig(), tcp, unix) as server:
        address, at_path = server.addresses
        assert at_path == path
        monkeypatch.undo()
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            assert b"gmemd_build_info" in answer.read()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 200 OK")
    for fd in (tcp, unix):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize("listen", ["127.0.0.1:9989", "[]"])
def test_an_address_in_the_configuration_is_refused_beside_them(listen: str) -> None:
    config = parse_config(f"metrics: {{listen: {listen}}}".encode(), file="gmemd.yaml")
    fd = listening(socket.AF_INET, ("127.0.0.1", 0))
    with socket.socket(fileno=os.dup(fd)) as twin:
        port = twin.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        make(config, fd)
    assert caught.value.message == (
        f"gmemd.yaml says metrics: listen: {listen}, and systemd listens for metrics at "
        f"127.0.0.1:{port}"
    )
    assert "leave listen: out" in str(caught.value.hint)
    assert caught.value.exit_code is Exit.HOST
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_other_keys_beside_them_are_no_matter(tmp_path: Path) -> None:
    web = tmp_path / "web.yaml"
    web.write_text("http_server_config: {http2: false}\n")
    config = parse_config(f"metrics: {{web_config: {web}}}".encode(), file="gmemd.yaml")
    make(config, listening(socket.AF_INET, ("127.0.0.1", 0))).stop()


@pytest.mark.parametrize("kind", ["file", "datagram", "connected", "not listening"])
def test_what_nobody_can_connect_to_is_refused_and_closed(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    elif kind == "connected":
        one, other = socket.socketpair()
        other.close()
        fd = one.detach()
    else:
        type_ = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
        fd = socket.socket(socket.AF_INET, type_).detach()
    with pytest.raises(ListenError, match="is no socket that listens for streams"):
        make(DaemonConfig(), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_nothing_is_served_where_the_protection_is_broken(tmp_path: Path) -> None:
    web = tmp_path / "web.yaml"
    web.write_text("basic_auth_users: {a: b}\n")
    text = f"metrics: {{listen: '127.0.0.1:0', web_config: {web}}}"
    fd = listening(socket.AF_INET, ("127.0.0.1", 0))
    with pytest.raises(SpecError, match="is not a bcrypt hash"):
        make(parse_config(text.encode(), file="gmemd.yaml"))
    with pytest.raises(SpecError, match="is not a bcrypt hash"):
        make(parse_config(f"metrics: {{web_config: {web}}}".encode(), file="gmemd.yaml"), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_where_network_sockets_are_forbidden_the_socket_unit_is_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forbidding(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **options: Any) -> None:  # noqa: ANN401
            if family == socket.AF_INET:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *args, **options)

    config = parse_config(b"metrics: {listen: '127.0.0.1:0'}", file="gmemd.yaml")
    monkeypatch.setattr(socket, "socket", Forbidding)
    with pytest.raises(ListenError, match="may not open network sockets") as caught:
        make(config)
    assert "install gmemd-metrics.socket beside gmemd.service" in str(caught.value.hint)
