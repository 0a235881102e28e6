"""The varlink protocol without its I/O: calls as bytes, received bytes and fds as replies."""

from __future__ import annotations

import json
import os
import resource
import socket
from array import array
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from gmemd.client.errors import BadCallError, CallError, FdsLostError, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

INTERFACE = "io.gmemd"
DEFAULT_SOCKET = Path("/run/gmemd/io.gmemd")
MAX_REPLY_BYTES = 256 << 20
MAX_FDS = 253
"""The kernel's own limit of one message (SCM_MAX_FD)."""

_CHUNK_BYTES = 1 << 16
_FD_BYTES = array("i").itemsize

T = TypeVar("T")


class Reply:
    """A reply to a call: its parameters and its fds, which close with it unless they are taken."""

    def __init__(self, parameters: dict[str, Any], fds: list[int], *, continues: bool) -> None:
        self.parameters = parameters
        self.fds: Sequence[int] = tuple(fds)
        self.continues = continues
        self._owned = fds

    def take_fds(self) -> tuple[int, ...]:
        """All fds, the caller's from now on."""
        taken, self._owned = tuple(self._owned), []
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all(self.take_fds())


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A call to make: what it sends, and how its last reply becomes the result.

    ``fds`` stay the caller's. With ``progress`` the replies before the last one are asked for, and
    handed to it.
    """

    method: str
    parameters: dict[str, Any]
    decode: Callable[[Reply], T]
    fds: tuple[int, ...] = ()
    progress: Callable[[dict[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        if len(self.fds) > MAX_FDS:
            raise BadCallError(
                "",
                {},
                f"{self.method}: {len(self.fds)} file descriptors in one call, of at most "
                f"{MAX_FDS}",
                hint="pass the rest with further calls",
            )

    @property
    def content(self) -> bytes:
        """The message to send."""
        message: dict[str, object] = {
            "method": f"{INTERFACE}.{self.method}",
            "parameters": {
                name: value for name, value in self.parameters.items() if value is not None
            },
        }
        if self.progress is not None:
            message["more"] = True
        return json.dumps(message).encode() + b"\0"

    def send_first(self, connection: socket.socket, content: bytes) -> int:
        """Send the message's beginning, with the fds; returns how many bytes of it were sent.

        Raises OSError where the connection fails, BadCallError where an fd can't be passed.
        """
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self.fds))]
            return connection.sendmsg([content], rights if self.fds else [])
        except OSError as error:
            if not self.fds or isinstance(error, ConnectionError | BlockingIOError | TimeoutError):
                raise
            passed = ", ".join(map(str, self.fds))
            raise BadCallError(
                "", {}, f"{self.method}: passing file descriptors {passed}: {error.strerror}"
            ) from error

    def result(self, reply: Reply) -> T:
        """Return the last reply as the result. Raises CallError where it isn't understood."""
        try:
            return self.decode(reply)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CallError(
                "",
                {},
                f"{self.method}: the daemon's reply isn't understood: "
                f"{type(error).__name__}: {error}",
                hint="it may be another version than this client",
            ) from error


@dataclass(slots=True)
class _Message:
    content: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)


class Incoming:
    """What comes in on a connection, taken apart into replies; closes the fds of those unread."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._whole: deque[_Message] = deque()
        self._begun = _Message()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for message in (*self._whole, self._begun):
            close_all(message.fds)

    def receive(self, connection: socket.socket) -> None:
        """Receive once, fds close-on-exec. Raises OSError, FdsLostError, BlockingIOError."""
        data, control, flags, _ = connection.recvmsg(
            _CHUNK_BYTES, socket.CMSG_SPACE(MAX_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
        )
        fds = _fds_of(control)
        if flags & socket.MSG_CTRUNC:
            close_all(fds)
            raise _fds_lost(self._method)
        if not data:
            raise ConnectionResetError("the daemon closed the connection without a reply")
        self.add(data, fds)

    def add(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take bytes, at least one, and the fds that came with them.

        The kernel ends a chunk with the bytes that the fds were sent with, so they are of the
        message that the last byte belongs to; bytes of earlier ones may stand before it.
        """
        parts = data.split(b"\0")
        of_the_fds = len(parts) - (1 if parts[-1] else 2)
        for number, part in enumerate(parts):
            self._begun.content += part
            if number == of_the_fds:
                self._begun.fds += fds
            if number < len(parts) - 1:
                self._whole.append(self._begun)
                self._begun = _Message()
        if len(self._begun.content) > MAX_REPLY_BYTES:
            raise ConnectionAbortedError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")

    def next(self) -> Reply | None:
        """The next whole reply, or None. Raises CallError where it is an error."""
        if not self._whole:
            return None
        message = self._whole.popleft()
        try:
            told = json.loads(message.content)
            parameters = told.get("parameters") or {}
            failure = told.get("error")
            error = error_of(self._method, failure, parameters) if failure else None
        except (ValueError, AttributeError) as unreadable:
            error = CallError(
                "", {}, f"{self._method}: the daemon's reply is no JSON object: {unreadable}"
            )
        if error is not None:
            close_all(message.fds)
            raise error
        return Reply(parameters, message.fds, continues=bool(told.get("continues")))


def close_all(fds: Iterable[int]) -> None:
    """Close fds."""
    for fd in fds:
        os.close(fd)


def _fds_of(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The fds of received control messages."""
    fds = array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return list(fds)


def _fds_lost(method: str) -> FdsLostError:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FdsLostError(
        f"{method}: file descriptors of the reply were lost: this process may have {most} open, "
        "and has as many (RLIMIT_NOFILE)",
        hint="raise the limit (ulimit -n, or LimitNOFILE= of its unit) and call again: the VM's "
        "memory is still this process's",
    )
