"""Varlink messages at a real daemon: what it answers, whom it keeps waiting, what grows."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self

from tests.fuzz import calls
from tests.fuzz.checking import Finding, require

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.fuzz.calls import Message
    from tests.fuzz.target import Target

PATIENCE_SECONDS = 20.0
"""Until a call without an answer counts as one that is never answered, on a busy machine."""

MOST_FINDINGS = 10
_MOST_LEFT = 20
_ERRORS = (
    *("InterfaceNotFound", "MethodNotFound", "MethodNotImplemented", "InvalidParameter"),
    *("PermissionDenied", "ExpectedMore"),
)
KNOWN_ERRORS = {f"org.varlink.service.{name}" for name in _ERRORS} | {
    f"io.gmemd.{line.split()[1]}"
    for line in calls.INTERFACE.splitlines()
    if line.startswith("error ")
}
_NOT_A_CALL = "invalid.asyncvarlink.ProtocolViolation"
_MAY_WAIT = frozenset({"io.gmemd.Watch", "io.gmemd.Acquire"})
_A_WHILE_SECONDS = 0.2
_MOMENT_SECONDS = 0.002
"""What may wait for ever is waited for so long."""


@dataclass
class Tally:
    """What became of the messages."""

    n: int = 0
    n_replies: int = 0
    n_errors: int = 0
    seconds: float = 0.0
    found: list[tuple[int, str]] = field(default_factory=list)


class Fds:
    """One file descriptor of each kind that somebody may send."""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        os.mkfifo(directory / "fifo")
        (directory / "file").write_text("x")
        opened = [
            _memfd(8 * calls.MIB),
            _memfd(8 * calls.MIB),
            _memfd(4 * calls.MIB),
            _memfd(0),
            os.open(directory / "fifo", os.O_RDWR),
            os.open(directory / "file", os.O_RDWR),
            os.open(directory, os.O_RDONLY),
            os.open(directory, os.O_PATH),
            os.open("/dev/zero", os.O_RDWR),
            os.open("/proc/self/maps", os.O_RDONLY),
            os.pidfd_open(os.getpid()),
            os.eventfd(0),
            os.dup(self._stack.enter_context(select.epoll()).fileno()),
            socket.socket(socket.AF_UNIX).detach(),
            *os.pipe(),
        ]
        for fd in opened:
            self._stack.callback(os.close, fd)
        require(len(opened) == calls.N_FDS, f"{len(opened)} kinds of file descriptors")
        self.numbers = opened
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _memfd(size: int) -> int:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def message_of(seed: int, number: int) -> Message:
    """The message of that number."""
    return calls.make(Random(f"{seed} message {number}"))


def run(
    target: Target, numbers: range, seed: int, tell: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Send the messages of those numbers."""
    tally = Tally()
    begun = time.monotonic()
    with Fds() as fds, Connections(target.socket) as connections:
        for number in numbers:
            try:
                _send(connections, message_of(seed, number), fds.numbers, tally)
            except Finding as finding:
                tally.found.append((number, str(finding)))
                connections.close()
            except OSError:
                require(not target.alive(), "it lets nobody connect")
            tally.n += 1
            if tally.n % 500 == 0:
                tell(tally)
            if len(tally.found) >= MOST_FINDINGS or not target.alive():
                break
    tally.seconds = time.monotonic() - begun
    tell(tally)
    return tally


class Connections:
    """A connection for each user, made anew where it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[int, socket.socket] = {}
        self._left: deque[socket.socket] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, uid: int) -> socket.socket:
        """The user's; connects where there is none."""
        if uid not in self._open:
            connection = socket.socket(socket.AF_UNIX)
            os.seteuid(uid)
            try:
                connection.connect(str(self._path))
            finally:
                os.seteuid(0)
            connection.settimeout(PATIENCE_SECONDS)
            self._open[uid] = connection
        return self._open[uid]

    def drop(self, uid: int) -> None:
        """Hang up."""
        if uid in self._open:
            self._open.pop(uid).close()

    def leave(self, uid: int) -> None:
        """Read no more from a connection, and hang up when there are many such."""
        if uid in self._open:
            self._left.append(self._open.pop(uid))
        while len(self._left) > _MOST_LEFT:
            self._left.popleft().close()

    def close(self) -> None:
        """Hang up all."""
        for uid in list(self._open):
            self.drop(uid)
        while self._left:
            self._left.popleft().close()


def _send(connections: Connections, message: Message, fds: list[int], tally: Tally) -> None:
    connection = connections.get(message.uid)
    connection.settimeout(PATIENCE_SECONDS if message.call else _A_WHILE_SECONDS)
    try:
        for content, places in message.pieces:
            _send_all(connection, content, [fds[place] for place in places])
        if message.end == "end":
            connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        connections.drop(message.uid)
        return
    except TimeoutError:  # many calls at once: nothing is read from whoever reads no replies
        require(not message.call, "it doesn't read")
        connections.drop(message.uid)
        return
    if message.end == "no reading":
        connections.leave(message.uid)
        return
    if message.end in {"hang up", "half"}:
        connections.drop(message.uid)
        return
    whole = _read(connection, message, tally)
    if not whole or not message.call:
        connections.drop(message.uid)


def _send_all(connection: socket.socket, content: bytes, fds: list[int]) -> None:
    while True:
        try:
            sent = socket.send_fds(connection, [content], fds[: calls.MOST_FDS])
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(0.01)
        else:
            break
    if sent < len(content):
        connection.sendall(content[sent:])


def _read(connection: socket.socket, message: Message, tally: Tally) -> bool:
    """Read a call's replies; returns whether its last one came, and nothing else did.

    What isn't a call may be answered or not: it is waited for just as long as it takes to see
    whether the connection is closed.
    """
    called = _called(message) if message.call else {}
    if called.get("oneway"):
        return False
    if not message.call or str(called.get("method")) in _MAY_WAIT or called.get("upgrade"):
        connection.settimeout(_MOMENT_SECONDS)
    content = b""
    try:
        while True:
            chunk, received, _, _ = socket.recv_fds(connection, 1 << 16, calls.MOST_FDS)
            for fd in received:
                os.close(fd)
            content += chunk
            if not chunk:
                break
            if content.endswith(b"\0") and not _goes_on(content):
                break
    except TimeoutError:
        require(connection.gettimeout() != PATIENCE_SECONDS, f"no answer to {called!r:.500}")
        content = content[: content.rfind(b"\0") + 1]
        _check_replies(content, tally)
        return False
    except ConnectionResetError:
        return False
    require(content or not message.call, f"hung up on {called!r:.500}")
    _check_replies(content, tally)
    return bool(content)


def _called(message: Message) -> dict[str, object]:
    called: dict[str, object] = json.loads(b"".join(piece for piece, _ in message.pieces)[:-1])
    return called


def _goes_on(content: bytes) -> bool:
    last = content[:-1].rpartition(b"\0")[2]
    return bool(json.loads(last).get("continues"))


def _check_replies(content: bytes, tally: Tally) -> None:
    """Every reply is an object, and every error one that the interface has."""
    for reply in content.split(b"\0")[:-1]:
        told = json.loads(reply)
        tally.n_replies += 1
        error = told.get("error")
        if error is not None:
            tally.n_errors += 1
            known = error in KNOWN_ERRORS or error == _NOT_A_CALL
            require(known, f"an error that isn't documented: {reply!r:.500}")
