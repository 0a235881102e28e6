"""Hostile and unlucky peers, on real sockets."""

from __future__ import annotations

import json
import os
import resource
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from gmemd.client.blocking import call
from gmemd.daemon.varlink import transport
from gmemd.daemon.varlink.peer import Peer

if TYPE_CHECKING:
    import pytest

    from tests.unit.daemon.conftest import Api

LIST = json.dumps({"method": "io.gmemd.List", "parameters": {}}).encode() + b"\0"


def reply(connection: socket.socket) -> dict[str, object]:
    received = b""
    while not received.endswith(b"\0"):
        chunk = connection.recv(1 << 16)
        assert chunk, received
        received += chunk
    told: dict[str, object] = json.loads(received[:-1])
    return told


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_message_may_come_in_pieces(api: Api) -> None:
    with api.connect() as connection:
        for byte in LIST:
            connection.send(bytes([byte]))
        assert "parameters" in reply(connection)


def test_calls_may_follow_each_other_without_waiting(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(LIST * 50)
        received = b""
        while received.count(b"\0") < 50:
            received += connection.recv(1 << 16)
        assert all(b'"vms"' in part for part in received.split(b"\0")[:50])


def test_a_peer_may_close_its_side_and_still_read_the_reply(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(LIST)
        connection.shutdown(socket.SHUT_WR)
        assert "parameters" in reply(connection)
        assert is_closed(connection)


def test_a_message_without_end_is_cut_off(api: Api) -> None:
    with api.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                connection.sendall(b"x" * (1 << 16))
        assert is_closed(connection)
    assert call(api.path, "List")["vms"]


def test_what_is_no_json_gets_no_reply_and_harms_nobody(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(b"not json\0[1]\0" + LIST)
        assert "parameters" in reply(connection)


def test_received_fds_are_closed(api: Api) -> None:
    read, write = os.pipe()
    with api.connect() as connection:
        socket.send_fds(connection, [LIST], [write])
        os.close(write)
        reply(connection)
        assert os.read(read, 1) == b""
    os.close(read)


def test_a_truncated_control_message_ends_the_connection(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.Transport, "MAX_RECV_FDS", 1)
    read, write = os.pipe()
    with api.connect() as connection:
        socket.send_fds(connection, [LIST], [write] * 8)
        os.close(write)
        assert is_closed(connection)
        assert os.read(read, 1) == b""
    os.close(read)


def test_who_reads_no_replies_is_read_no_further(api: Api) -> None:
    with api.connect() as greedy:
        greedy.settimeout(1)
        try:
            while True:
                greedy.sendall(LIST * 1000)
        except TimeoutError:
            assert call(api.path, "List")["vms"]


def test_the_listener_outlives_a_shortage_of_fds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ACCEPT_BACKOFF_SECONDS", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    in_use = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  names alone
    hoard = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(in_use, *hoard) + 1, hard))
    try:
        while True:
            try:
                hoard.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        connection.settimeout(60)
        connection.connect(str(api.path))
        connection.sendall(LIST)
        while hoard:
            os.close(hoard.pop())
        assert "parameters" in reply(connection)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connection.close()


def test_one_user_cannot_take_every_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "privileged", property(lambda _: False))
    monkeypatch.setattr(transport, "MAX_CONNECTIONS_PER_USER", 2)
    held = [api.connect(), api.connect()]
    for connection in held:
        connection.sendall(LIST)
        reply(connection)
    with api.connect() as refused:
        assert is_closed(refused)
    held.pop().close()
    while True:
        with api.connect() as another:
            try:
                another.sendall(LIST)
                reply(another)
            except (AssertionError, ConnectionError, BrokenPipeError):
                continue
            break
    held.pop().close()
