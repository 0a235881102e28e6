"""Hostile and unlucky peers, on real sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink import transport
from gmemd.daemon.varlink.peer import Peer
from tests.unit.daemon.varlink.conftest import message

if TYPE_CHECKING:
    from tests.unit.daemon.varlink.conftest import Served

PID = message("Pid")
MIB = 1 << 20


@pytest.fixture
def strangers(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(Peer, "privileged", property(lambda _: False))
    return served


def hangs_up(read: int) -> None:
    """Wait until the pipe's writing end is open nowhere any more."""
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_message_may_come_in_pieces(served: Served) -> None:
    with served.connect() as client:
        for byte in PID:
            client.socket.send(bytes([byte]))
        assert client.reply()["parameters"] == {"n": os.getpid()}


def test_a_message_may_be_large(served: Served) -> None:
    with served.connect() as client:
        assert client.call("Length", text="x" * (MIB - 1000))["parameters"] == {"n": MIB - 1000}


def test_calls_may_follow_each_other_without_waiting(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(PID * 50)
        assert all("parameters" in client.reply() for _ in range(50))


def test_a_peer_may_close_its_side_and_still_read_the_reply(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("CountFds"))
        client.socket.shutdown(socket.SHUT_WR)
        assert "parameters" in client.reply()
        assert client.is_closed()


def test_what_was_called_is_done_though_the_caller_is_gone(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(
            message("CountFds", oneway=True) + message("Count", oneway=True, to=0)
        )
        client.socket.shutdown(socket.SHUT_WR)
        served.wait_for("sent")


def test_a_message_without_end_is_cut_off(served: Served) -> None:
    with served.connect() as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                client.socket.sendall(b"x" * (1 << 16))
        assert client.is_closed()
    with served.connect() as another:
        assert another.call("Pid")


def test_what_is_no_json_object_ends_the_connection(served: Served) -> None:
    for content in (b"not json", b"[1]", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"5", b""):
        with served.connect() as client:
            client.socket.sendall(content + b"\0")
            assert client.is_closed(), content
    with served.connect() as client:
        client.socket.sendall(PID)
        assert "parameters" in client.reply()


def test_what_is_no_call_is_told_so(served: Served) -> None:
    for content in (b"{}", b'{"method": 1}', b'{"method": "x"}', b'{"method": "a.b.C"}'):
        with served.connect() as client:
            client.socket.sendall(content + b"\0")
            assert "error" in client.reply()


def test_a_call_has_the_fds_that_came_with_any_of_its_bytes(served: Served) -> None:
    call = message("CountFds", padding="x" * (200 << 10))
    with served.connect() as client, open(os.devnull) as null:  # noqa: PTH123  a file to send
        socket.send_fds(client.socket, [call[:1000]], [null.fileno()] * 3)
        client.socket.sendall(call[1000:-1])
        socket.send_fds(client.socket, [call[-1:] + message("CountFds")], [null.fileno()] * 2)
        assert client.reply()["parameters"] == {"n": 5}
        assert client.reply()["parameters"] == {"n": 0}


def test_received_fds_are_closed(served: Served) -> None:
    for content in (PID, message("CountFds"), b"not json\0", message("Nonsense"), b"half"):
        read, write = os.pipe()
        with served.connect() as client:
            socket.send_fds(client.socket, [content], [write])
            os.close(write)
            if content == b"half":
                client.socket.shutdown(socket.SHUT_WR)
            hangs_up(read)


def test_a_truncated_control_message_ends_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.Transport, "MAX_RECV_FDS", 1)
    read, write = os.pipe()
    with served.connect() as client:
        socket.send_fds(client.socket, [PID], [write] * 8)
        os.close(write)
        assert client.is_closed()
        hangs_up(read)


def test_more_fds_than_one_message_may_have_end_the_connection(served: Served) -> None:
    read, write = os.pipe()
    with served.connect() as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(2):
                socket.send_fds(client.socket, [b"x"], [write] * 200)
        os.close(write)
        assert client.is_closed()
        hangs_up(read)


def test_who_reads_no_replies_is_read_no_further(served: Served) -> None:
    with served.connect() as greedy, served.connect() as other:
        greedy.socket.settimeout(1)
        try:
            while True:
                greedy.socket.sendall(PID * 1000)
        except TimeoutError:
            assert other.call("Pid")


def test_replies_of_a_stream_let_nothing_more_be_read(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Endless", more=True))
        client.reply()
        client.socket.settimeout(1)
        try:
            for _ in range(100):
                client.socket.sendall(PID * 1000)
        except TimeoutError:
            return
    raise AssertionError("the server reads on while it streams")


def lingering(stack: ExitStack) -> socket.socket:
    """A TCP socket with bytes that nobody takes, whose last close waits for a minute."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    sender = socket.create_connection(listener.getsockname())
    stack.enter_context(listener.accept()[0])
    sender.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sender.send(b"x" * MIB)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return sender


@pytest.mark.parametrize("takes_fds", [True, False])
@pytest.mark.parametrize("content", [PID, b"half", b"never read"])
def test_a_close_that_hangs_holds_up_nobody(
    strangers: Served,
    content: bytes,
    takes_fds: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    served = strangers
    served.takes_fds = takes_fds
    with ExitStack() as stack:
        client = served.connect()
        client.socket.sendall(message("Wait", oneway=content != b"never read"))
        with lingering(stack) as sender:
            socket.send_fds(client.socket, [content], [sender.fileno()])
        # The server's is the last descriptor now, in the queue of a connection that it closes.
        client.socket.close()
        served.loop.call_soon_threadsafe(served.trial.go_on.set)
        with served.connect() as other:
            other.socket.settimeout(20)
            for _ in range(10):
                assert other.call("Wait") == {}


def test_fds_are_sent_once_each_and_closed(served: Served) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names alone
    for _ in range(50):
        with served.connect() as client:
            client.socket.sendall(message("Open"))
            _, fds, flags, _ = socket.recv_fds(client.socket, 1000, 10)
            assert (len(fds), flags & socket.MSG_CTRUNC) == (1, 0)
            os.close(fds[0])
    settled = threading.Event()
    for _ in range(600):
        if len(os.listdir("/proc/self/fd")) <= before:  # noqa: PTH208  names alone
            return
        settled.wait(0.1)
    raise AssertionError("file descriptors are left open")


@pytest.mark.parametrize("takes_fds", [True, False])
def test_fds_are_taken_of_those_alone_who_may_send_some(
    strangers: Served,
    takes_fds: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    strangers.takes_fds = takes_fds
    call = message("CountFds")
    with strangers.connect() as client:
        for content in (call, call * 3, call[:9], call[9:]):
            read, write = os.pipe()
            socket.send_fds(client.socket, [content], [write])
            os.close(write)
            counted = [client.reply()["parameters"]["n"] for _ in range(content.count(b"\0"))]
            if content == call[9:]:
                assert counted == [2 * takes_fds]
            elif counted:
                assert counted == [1 * takes_fds] + [0] * (len(counted) - 1)
            if content != call[:9]:
                hangs_up(read)
        assert client.call("CountFds")["parameters"] == {"n": 0}
