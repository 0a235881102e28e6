"""Many connections, too many, and a shortage of file descriptors."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink import server
from gmemd.daemon.varlink.peer import Peer
from tests.unit.daemon.varlink.conftest import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.daemon.varlink.conftest import Client, Served

PID = message("Pid")

HOLDER = """\
import socket, sys
held = []
for line in sys.stdin:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(line))
    connection.recv(1 << 16)
    held.append(connection)
    print("held", flush=True)
"""


@pytest.fixture
def limited(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(Peer, "privileged", property(lambda _: False))
    monkeypatch.setattr(server, "MAX_CONNECTIONS_PER_USER", 4)
    return served


class Process:
    """Another process of the same user, which holds connections."""

    def __init__(self, served: Served) -> None:
        self._served = served
        command = [sys.executable, "-c", HOLDER, str(served.path)]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)

    def hold(self, content: bytes, times: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for _ in range(times):
            print(content.hex(), file=self._process.stdin, flush=True)
            assert self._process.stdout.readline() == "held\n"

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def greedy(limited: Served) -> Iterator[Process]:
    process = Process(limited)
    yield process
    process.end()


def in_use(stack: ExitStack, served: Served) -> Client:
    client = stack.enter_context(served.connect())
    client.call("Pid")
    return client


def is_open(client: Client) -> bool:
    client.socket.settimeout(0)
    try:
        return client.socket.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_the_longest_idle_one_makes_room(limited: Served) -> None:
    with ExitStack() as stack:
        clients = [in_use(stack, limited) for _ in range(4)]
        clients[0].call("Pid")
        in_use(stack, limited)
        assert clients.pop(1).is_closed()
        assert all(is_open(client) for client in clients)


def test_a_process_that_has_most_makes_room_for_others(limited: Served, greedy: Process) -> None:
    with ExitStack() as stack:
        mine = in_use(stack, limited)
        greedy.hold(PID, 3)
        newcomer = in_use(stack, limited)
        assert is_open(mine)
        assert is_open(newcomer)


def test_a_call_under_way_is_left_alone(limited: Served) -> None:
    with ExitStack() as stack:
        waiting = stack.enter_context(limited.connect())
        waiting.socket.sendall(message("Wait"))
        idle = [in_use(stack, limited) for _ in range(3)]
        in_use(stack, limited)
        assert idle[0].is_closed()
        limited.loop.call_soon_threadsafe(limited.trial.go_on.set)
        assert waiting.reply() == {}


def test_a_process_is_refused_more_than_it_keeps_busy(limited: Served) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(limited.connect()) for _ in range(4)]
        for client in busy:
            client.socket.sendall(message("Endless", more=True))
            client.reply()
        assert stack.enter_context(limited.connect()).is_closed()
        assert all(is_open(client) for client in busy)


def test_calls_that_never_end_keep_out_nobody_else(limited: Served, greedy: Process) -> None:
    greedy.hold(message("Endless", more=True), 4)
    with limited.connect() as client:
        assert client.call("Pid")
    limited.wait_for("endless")


def test_who_reads_no_replies_isnt_busy(limited: Served, greedy: Process) -> None:
    greedy.hold(message("Flood", more=True), 4)
    with limited.connect() as client:
        assert client.call("Pid")
    limited.wait_for("flood")


def test_all_users_together_are_limited(limited: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS_OF_USERS", 2)
    with ExitStack() as stack:
        clients = [in_use(stack, limited) for _ in range(3)]
        assert clients.pop(0).is_closed()
        assert all(is_open(client) for client in clients)


def test_closed_connections_dont_count(limited: Served) -> None:
    for _ in range(20):
        with limited.connect() as client:
            client.call("Pid")
    with ExitStack() as stack:
        clients = [in_use(stack, limited) for _ in range(4)]
        assert all(is_open(client) for client in clients)


@pytest.mark.parametrize(
    ("n_fds", "limit"), [(0, "MAX_UNFINISHED_BYTES"), (2, "MAX_UNFINISHED_FDS")]
)
def test_halves_of_messages_are_limited(
    limited: Served, monkeypatch: pytest.MonkeyPatch, n_fds: int, limit: str
) -> None:
    monkeypatch.setattr(server, limit, 5)
    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull))  # noqa: PTH123  a file to send
        clients = []
        for _ in range(3):
            clients.append(stack.enter_context(limited.connect()))
            socket.send_fds(clients[-1].socket, [PID[:2]], [null.fileno()] * n_fds)
            assert stack.enter_context(limited.connect()).call("Pid")
        assert clients[0].is_closed()
        for client in clients[1:]:
            client.socket.sendall(PID[2:])
            assert client.reply()


def test_the_listener_outlives_a_shortage_of_fds(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ACCEPT_BACKOFF_SECONDS", 0.05)
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
        connection.connect(str(served.path))
        connection.sendall(PID)
        while hoard:
            os.close(hoard.pop())
        assert b"parameters" in connection.recv(1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connection.close()
