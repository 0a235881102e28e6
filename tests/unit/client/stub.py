"""A daemon's place taken by a thread: a real socket, and answers that the test gives."""

from __future__ import annotations

import json
import os
import socket
import threading
from array import array
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Call:
    """A call as it came in; ``inodes`` are those of the fds with it."""

    method: str
    parameters: dict[str, Any]
    more: bool
    inodes: list[int]


@dataclass(frozen=True)
class Answer:
    """A reply, or an error by its unqualified name."""

    parameters: dict[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    continues: bool = False
    error: str | None = None

    @property
    def content(self) -> bytes:
        told: dict[str, Any] = {"parameters": self.parameters}
        if self.error is not None:
            told["error"] = self.error if "." in self.error else f"io.gmemd.{self.error}"
        if self.continues:
            told["continues"] = True
        return json.dumps(told).encode() + b"\0"


class Stub:
    """Answers calls by method: with answers, or by what a function does with the connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[Call] = []
        self.hung_up = threading.Event()
        """Set when a client has closed a connection."""
        self._replies: dict[str, Callable[[socket.socket], None]] = {}

    def on(self, method: str, *answers: Answer) -> None:
        def reply(connection: socket.socket) -> None:
            for answer in answers:
                send(connection, answer.content, answer.fds)

        self._replies[method] = reply

    def does(self, method: str, act: Callable[[socket.socket], None]) -> None:
        self._replies[method] = act

    def serve(self, connection: socket.socket) -> None:
        """Take one call, answer it, and wait for the client to go."""
        if not connection.recv(1, socket.MSG_PEEK):
            return
        content, fds = receive(connection)
        told = json.loads(content)
        inodes = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        method = told["method"].removeprefix("io.gmemd.")
        self.calls.append(Call(method, told["parameters"], told.get("more", False), inodes))
        unknown = Answer({"method": told["method"]}, error="org.varlink.service.MethodNotFound")
        with suppress(ConnectionError):
            self._replies.get(method, lambda peer: send(peer, unknown.content))(connection)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        self.hung_up.set()


@contextmanager
def serving(path: Path) -> Iterator[Stub]:
    stub = Stub(path)
    failures: list[BaseException] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE_SECONDS)
                try:
                    stub.serve(connection)
                except BaseException as error:  # noqa: BLE001  told to the test below
                    failures.append(error)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield stub
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_SECONDS)
    assert not failures, failures


def send(connection: socket.socket, content: bytes, fds: Iterable[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    sent = connection.sendmsg([content], rights if rights[0][2] else [])
    connection.sendall(content[sent:])


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Up to the first NUL, without it, and the fds on the way."""
    content, fds = bytearray(), array("i")
    while not content.endswith(b"\0"):
        data, control, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(253 * 4))
        assert data, "the client went away amid its call"
        content += data
        for _, _, numbers in control:
            fds.frombytes(numbers)
    return bytes(content[:-1]), list(fds)


def open_fds(name: str) -> int:
    """How many fds of this process are of the memfd of that name."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            count += entry.readlink().name.startswith(f"memfd:{name} ")
    return count
