"""An API server in a thread of its own, on a service that does nothing."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest

from gmemd.daemon.varlink.api import protocol_factory
from gmemd.daemon.varlink.errors import NotAuditable, ReloadFailed
from gmemd.daemon.varlink.listener import Listener
from gmemd.daemon.varlink.server import Server
from gmemd.export.snapshot import Snapshot, VmState, VmStatus
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from gmemd.audit.asked import Asked
    from gmemd.daemon.varlink.interface import ReloadResult
    from gmemd.daemon.varlink.peer import Peer


class IdleService:
    """Knows one VM, which can't be audited, and has nothing to reload."""

    snapshot = Snapshot(
        "0", 0.0, vms=(VmStatus("idle", Source.OBSERVE, VmState.WAITING, since=0.0),)
    )

    async def reload(self) -> ReloadResult:
        raise ReloadFailed(message="nothing to read", hint="write something")

    async def usable(self, peer: Peer) -> frozenset[str]:
        return frozenset({"idle"} if peer.privileged else ())

    async def may_pass_specs(self, peer: Peer) -> bool:
        return peer.privileged

    async def change(self) -> None:
        await asyncio.Event().wait()

    async def audit(self, vm: str, asked: Asked) -> AsyncIterator[tuple[int, int] | None]:
        yield (0, 1) if asked.where else None
        raise NotAuditable(vm=vm, state="waiting", message="no memory")


async def nobody(_: Peer) -> bool:
    return False


class Api:
    """The server under test: its path, and whether its loop still goes round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with Listener(self.path) as listener:
            self.loop.run_until_complete(self._serve(listener))
        self.loop.close()

    async def _serve(self, listener: Listener) -> None:
        self._stop = asyncio.Event()
        server = Server(listener.socket.dup(), protocol_factory(IdleService()), nobody)
        await server.start_serving()
        self._ready.set()
        await self._stop.wait()
        server.close()
        server.abort_clients()
        await asyncio.sleep(0)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(60)
        connection.connect(str(self.path))
        return connection


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with Api(tmp_path / "api") as served:
        yield served
