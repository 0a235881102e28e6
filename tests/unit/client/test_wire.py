from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client import wire
from gmemd.client.errors import BadCallError, CallError, NoSuchVMError
from gmemd.client.wire import MAX_FDS, Incoming, Request
from tests.unit.client.stub import Answer, open_fds, send

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def fds() -> Iterator[list[int]]:
    opened = [os.memfd_create(f"wire{number}") for number in range(3)]
    yield opened
    for fd in opened:
        os.close(fd)


def received(incoming: Incoming, connection: socket.socket) -> wire.Reply:
    while (reply := incoming.next()) is None:
        incoming.receive(connection)
    return reply


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 16])
def test_fds_are_of_the_reply_that_they_came_with(
    ends: tuple[socket.socket, socket.socket],
    fds: list[int],
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
) -> None:
    """All is sent before any is read, so that the kernel joins what it may."""
    monkeypatch.setattr(wire, "_CHUNK_BYTES", chunk_bytes)
    ours, theirs = ends
    for answer in (
        Answer({"n": 0}, continues=True),
        Answer({"n": 1}, (fds[0],), continues=True),
        Answer({"n": 2}, continues=True),
        Answer({"n": 3}, (fds[2], fds[1])),
    ):
        send(theirs, answer.content, answer.fds)
    inodes = [os.fstat(fd).st_ino for fd in fds]
    with Incoming("Acquire") as incoming:
        for number, expected in enumerate([[], inodes[:1], [], [inodes[2], inodes[1]]]):
            with received(incoming, ours) as reply:
                assert reply.parameters == {"n": number}
                assert reply.continues == (number < 3)
                assert [os.fstat(fd).st_ino for fd in reply.fds] == expected
                assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in reply.fds)
    assert [open_fds(f"wire{number}") for number in range(3)] == [1, 1, 1]


def test_a_reply_larger_than_any_buffer(
    ends: tuple[socket.socket, socket.socket], fds: list[int]
) -> None:
    ours, theirs = ends
    answer = Answer({"long": "x" * (10 << 20)}, tuple(fds))
    sending = threading.Thread(target=send, args=(theirs, answer.content, answer.fds))
    sending.start()
    with Incoming("List") as incoming, received(incoming, ours) as reply:
        assert len(reply.parameters["long"]) == 10 << 20
        assert len(reply.fds) == 3
    sending.join()


def test_a_reply_without_end(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_REPLY_BYTES", 1000)
    ours, theirs = ends
    send(theirs, b"x" * 2000)
    with Incoming("List") as incoming, pytest.raises(ConnectionAbortedError, match="1000 bytes"):
        received(incoming, ours)


def test_fds_that_nobody_took_are_closed(
    ends: tuple[socket.socket, socket.socket], fds: list[int]
) -> None:
    ours, theirs = ends
    send(theirs, Answer({}, (fds[0],)).content, (fds[0],))
    send(theirs, b'{"half', (fds[1],))
    with Incoming("Acquire") as incoming:
        incoming.receive(ours)
        incoming.receive(ours)
        assert (open_fds("wire0"), open_fds("wire1")) == (2, 2)
    assert (open_fds("wire0"), open_fds("wire1")) == (1, 1)


@pytest.mark.parametrize("content", [b"no json\0", b"[]\0", b"\xff\0", b'{"parameters": [1]}\0'])
def test_what_is_no_reply(
    ends: tuple[socket.socket, socket.socket], fds: list[int], content: bytes
) -> None:
    ours, theirs = ends
    send(theirs, content, (fds[0],))
    request = Request("Audit", {}, lambda reply: reply.parameters["vm"])
    refused = pytest.raises(CallError, match=r"^Audit: the daemon's reply is")
    with Incoming("Audit") as incoming, refused, received(incoming, ours) as reply:
        request.result(reply)
    assert open_fds("wire0") == 1


def test_an_error_closes_what_came_with_it(
    ends: tuple[socket.socket, socket.socket], fds: list[int]
) -> None:
    ours, theirs = ends
    send(theirs, Answer({"vm": "a"}, error="NoSuchVM").content, (fds[0],))
    with Incoming("Audit") as incoming, pytest.raises(NoSuchVMError):
        received(incoming, ours)
    assert open_fds("wire0") == 1


def test_no_more_fds_than_a_message_carries() -> None:
    Request("Register", {}, lambda _: None, tuple(range(MAX_FDS)))
    with pytest.raises(BadCallError, match="254 file descriptors in one call, of at most 253"):
        Request("Register", {}, lambda _: None, tuple(range(MAX_FDS + 1)))


LIMITED = """
import os, resource, socket, sys
from array import array
from gmemd.client.errors import FdsLostError
from gmemd.client.wire import Incoming
ours, theirs = socket.socketpair()
memfd = os.memfd_create("lost")
theirs.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memfd] * 20))])
before = os.listdir("/proc/self/fd")
resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 4, 4096))
try:
    with Incoming("Acquire") as incoming:
        incoming.receive(ours)
except FdsLostError as error:
    print(error.message)
    print(error.hint)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
print(os.listdir("/proc/self/fd") == before)
"""


def test_too_few_fds_left_to_receive_with() -> None:
    """In a process of its own, whose limit is nobody else's."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    message, hint, same = done.stdout.splitlines()
    assert "RLIMIT_NOFILE" in message
    assert "ulimit -n" in hint
    assert same == "True"


def test_nothing_but_the_standard_library_is_imported() -> None:
    """Without site, whose own .pth files may import what they like."""
    code = (
        "import sys; before = set(sys.modules); from gmemd.client import AsyncClient, Client;"
        "names = {name for name in set(sys.modules) - before};"
        "tops = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names);"
        "ours = {n for n in names if n.startswith('gmemd') and n not in ('gmemd', 'gmemd.errors')"
        " and not n.startswith('gmemd.client')};"
        "print(sorted(tops), sorted(ours))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "['gmemd'] []"


def test_asyncio_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys; from gmemd.client import Client; print('asyncio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
