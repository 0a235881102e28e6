"""The blocking client: a connection per call."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gmemd.client import requests
from gmemd.client.errors import (
    BadCallError,
    CallError,
    NoDaemonError,
    RefusedError,
    reaching,
)
from gmemd.client.wire import DEFAULT_SOCKET, Incoming, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import Unpack

    from gmemd.client.memory import Memory, Offered, Placed, Progress
    from gmemd.client.requests import Change
    from gmemd.client.types import AuditOptions, Listed, Planned, Reloaded, Vm
    from gmemd.client.wire import Reply

__all__ = [
    "DEFAULT_SOCKET",
    "BadCallError",
    "CallError",
    "Client",
    "NoDaemonError",
    "RefusedError",
    "call",
]

T = TypeVar("T")


def call(
    socket_path: Path, method: str, *, timeout_seconds: float | None = None, **parameters: object
) -> dict[str, Any]:
    """Call a method of io.gmemd and return the reply's parameters.

    Raises NoDaemonError where nobody answers, RefusedError, BadCallError or CallError where the
    daemon says no. Without a timeout it waits as long as the daemon takes.
    """
    request = Request(method, parameters, lambda reply: reply.parameters)
    return _last(request, Path(socket_path), timeout_seconds)


class Client:
    """The daemon at a socket. Every call has its own connection, so threads may share a client.

    Fds that are passed stay the caller's. All calls raise NoDaemonError where nobody answers, and
    the CallError of gmemd.client.errors that the daemon's error is.
    """

    def __init__(self, socket_path: str | Path = DEFAULT_SOCKET) -> None:
        self._path = Path(socket_path)

    def list(self) -> Listed:
        """All VMs and the host's nodes, of one moment."""
        return self._last(requests.listing())

    def describe(self, vm: str) -> Vm:
        """Return one VM."""
        return self._last(requests.describe(vm))

    def plan(self, vm: str | None = None, *, spec: str | None = None) -> Planned:
        """What would be placed where, of a VM that has a spec or of ``spec`` (YAML or JSON)."""
        return self._last(requests.plan(vm, spec))

    def acquire(
        self,
        vm: str,
        *,
        holder: int | None = None,
        timeout_seconds: float | None = None,
        cgroup: int | None = None,
        spec: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Memory:
        """Wait until a VM's memory is there, for so long at most, and hold it from then on.

        ``holder`` is a pidfd of who holds it instead of this process; ``cgroup`` is an fd, open
        for writing, of the cgroup.procs of who pays where the spec says peer. ``progress`` is
        called while it waits.
        """
        return self._last(
            requests.acquire(
                vm,
                holder=holder,
                timeout_seconds=timeout_seconds,
                cgroup=cgroup,
                spec=spec,
                progress=progress,
            )
        )

    def register(
        self,
        vm: str,
        regions: Sequence[Offered],
        *,
        remove: Sequence[int] = (),
        holder: int | None = None,
        cgroup: int | None = None,
        spec: str | None = None,
    ) -> Placed:
        """Have memory of this process placed, before its first touch; ``remove`` lets go by id."""
        return self._last(
            requests.register(vm, regions, remove=remove, holder=holder, cgroup=cgroup, spec=spec)
        )

    def adopt(self, vm: str, *, pid: int | None = None) -> Placed:
        """Have the memory of a VM that runs already placed."""
        return self._last(requests.adopt(vm, pid))

    def handover(self, vm: str, holder: int) -> int:
        """Make the process of a pidfd the holder; returns its pid."""
        return self._last(requests.handover(vm, holder))

    def audit(
        self,
        vm: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        **asked: Unpack[AuditOptions],
    ) -> Vm:
        """Audit a VM now; ``progress`` is called with the bytes that were looked at, and all.

        Of memory that the daemon holds every page is looked at, unless ``asked`` says otherwise.
        """
        return self._last(requests.audit(vm, progress, **asked))

    def release(self, vm: str, *, force: bool = False) -> str:
        """Give a VM's memory back; returns the state that it is in then."""
        return self._last(requests.release(vm, force=force))

    def reload(self) -> Reloaded:
        """Have the configuration and the VM specs read again."""
        return self._last(requests.reload())

    def watch(self, vm: str | None = None) -> Iterator[Change]:
        """Every VM, or one, as it is and then whenever it is another; never ends by itself."""
        request = requests.watch(vm)
        with closing(_replies(request, self._path)) as replies:
            for reply in replies:
                yield request.result(reply)

    def _last(self, request: Request[T]) -> T:
        return _last(request, self._path)


def _last(request: Request[T], path: Path, timeout_seconds: float | None = None) -> T:
    """Make a call; the result is that of its last reply."""
    with closing(_replies(request, path, timeout_seconds)) as replies:
        for reply in replies:
            if not reply.continues:
                return request.result(reply)
            if request.progress is not None:
                request.progress(reply.parameters)
    raise AssertionError("replies end with an exception or the last one")


def _connect(connection: socket.socket, path: Path, timeout_seconds: float | None) -> None:
    """Connect; with a timeout too it waits its turn where the daemon has a queue of callers.

    A socket that has Python's timeout doesn't block, and is turned away there (EAGAIN).
    """
    if timeout_seconds is not None:
        seconds, rest = divmod(timeout_seconds, 1)
        limit = struct.pack("@ll", int(seconds), int(rest * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.connect(str(path))
    connection.settimeout(timeout_seconds)


def _replies(
    request: Request[T], path: Path, timeout_seconds: float | None = None
) -> Generator[Reply]:
    """Make a call and yield its replies; what is taken of one, is taken before the next."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        with reaching(path):
            _connect(connection, path, timeout_seconds)
            content = request.content
            rest = content[request.send_first(connection, content) :]
            if rest:  # sending nothing fails where the daemon has answered and closed already
                connection.sendall(rest)
        with Incoming(request.method) as incoming:
            while True:
                while (reply := incoming.next()) is None:
                    with reaching(path):
                        incoming.receive(connection)
                with reply:
                    yield reply
