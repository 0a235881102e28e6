"""The asyncio client: a connection per call, closed where a call is cancelled."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gmemd.client import requests
from gmemd.client.errors import reaching
from gmemd.client.wire import DEFAULT_SOCKET, Incoming, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from typing import Unpack

    from gmemd.client.memory import Memory, Offered, Placed, Progress
    from gmemd.client.requests import Change
    from gmemd.client.types import AuditOptions, Listed, Planned, Reloaded, Vm
    from gmemd.client.wire import Reply

_BUSY_PAUSE_SECONDS = 0.02

T = TypeVar("T")


class AsyncClient:
    """What Client is, with coroutines; its documentation holds for this as well."""

    def __init__(self, socket_path: str | Path = DEFAULT_SOCKET) -> None:
        self._path = Path(socket_path)

    async def list(self) -> Listed:
        """All VMs and the host's nodes, of one moment."""
        return await self._last(requests.listing())

    async def describe(self, vm: str) -> Vm:
        """Return one VM."""
        return await self._last(requests.describe(vm))

    async def plan(self, vm: str | None = None, *, spec: str | None = None) -> Planned:
        """What would be placed where, of a VM that has a spec or of ``spec`` (YAML or JSON)."""
        return await self._last(requests.plan(vm, spec))

    async def acquire(
        self,
        vm: str,
        *,
        holder: int | None = None,
        timeout_seconds: float | None = None,
        cgroup: int | None = None,
        spec: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Memory:
        """Wait until a VM's memory is there, and hold it from then on."""
        return await self._last(
            requests.acquire(
                vm,
                holder=holder,
                timeout_seconds=timeout_seconds,
                cgroup=cgroup,
                spec=spec,
                progress=progress,
            )
        )

    async def register(
        self,
        vm: str,
        regions: Sequence[Offered],
        *,
        remove: Sequence[int] = (),
        holder: int | None = None,
        cgroup: int | None = None,
        spec: str | None = None,
    ) -> Placed:
        """Have memory of this process placed, before its first touch."""
        return await self._last(
            requests.register(vm, regions, remove=remove, holder=holder, cgroup=cgroup, spec=spec)
        )

    async def adopt(self, vm: str, *, pid: int | None = None) -> Placed:
        """Have the memory of a VM that runs already placed."""
        return await self._last(requests.adopt(vm, pid))

    async def handover(self, vm: str, holder: int) -> int:
        """Make the process of a pidfd the holder; returns its pid."""
        return await self._last(requests.handover(vm, holder))

    async def audit(
        self,
        vm: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        **asked: Unpack[AuditOptions],
    ) -> Vm:
        """Audit a VM now."""
        return await self._last(requests.audit(vm, progress, **asked))

    async def release(self, vm: str, *, force: bool = False) -> str:
        """Give a VM's memory back; returns the state that it is in then."""
        return await self._last(requests.release(vm, force=force))

    async def reload(self) -> Reloaded:
        """Have the configuration and the VM specs read again."""
        return await self._last(requests.reload())

    async def watch(self, vm: str | None = None) -> AsyncIterator[Change]:
        """Every VM, or one, as it is and then whenever it is another; never ends by itself."""
        request = requests.watch(vm)
        async with aclosing(_replies(request, self._path)) as replies:
            async for reply in replies:
                yield request.result(reply)

    async def _last(self, request: Request[T]) -> T:
        """Make a call; the result is that of its last reply."""
        async with aclosing(_replies(request, self._path)) as replies:
            async for reply in replies:
                if not reply.continues:
                    return request.result(reply)
                if request.progress is not None:
                    request.progress(reply.parameters)
        raise AssertionError("replies end with an exception or the last one")


async def _replies(request: Request[T], path: Path) -> AsyncGenerator[Reply, None]:
    """Make a call and yield its replies; what is taken of one, is taken before the next."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection,
        Incoming(request.method) as incoming,
    ):
        with reaching(path):
            await _connect(connection, path)
            await _send(connection, request)
        while True:
            while (reply := incoming.next()) is None:
                with reaching(path):
                    await _receive(connection, incoming)
            with reply:
                yield reply


async def _connect(connection: socket.socket, path: Path) -> None:
    """Connect; a listener whose backlog is full tells nobody when it no longer is."""
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:
            await asyncio.sleep(_BUSY_PAUSE_SECONDS)
        else:
            return


async def _send(connection: socket.socket, request: Request[T]) -> None:
    content = request.content
    loop = asyncio.get_running_loop()
    while True:
        try:
            sent = request.send_first(connection, content)
        except BlockingIOError:
            await _until(connection, loop.add_writer, loop.remove_writer)
        else:
            if content[sent:]:  # sending nothing fails where the daemon has closed already
                await loop.sock_sendall(connection, content[sent:])
            return


async def _receive(connection: socket.socket, incoming: Incoming) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            incoming.receive(connection)
        except BlockingIOError:
            await _until(connection, loop.add_reader, loop.remove_reader)
        else:
            return


async def _until(
    connection: socket.socket,
    add: Callable[[int, Callable[[], None]], None],
    remove: Callable[[int], bool],
) -> None:
    """Wait until a connection can be read, or written."""
    ready = asyncio.Event()
    add(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        remove(connection.fileno())
