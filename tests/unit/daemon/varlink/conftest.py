"""A server of an interface made for these tests, in a thread of its own.

asyncvarlink reads the methods' annotations at run time, so they are real types here.
"""

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self, TypedDict

import pytest
from asyncvarlink import (
    AnnotatedResult,
    FileDescriptor,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    varlinkmethod,
)

from gmemd.daemon.varlink.listener import Listener
from gmemd.daemon.varlink.peer import Peer
from gmemd.daemon.varlink.protocol import Protocol, current_call
from gmemd.daemon.varlink.server import Server

PATIENCE_SECONDS = 60


class Counted(TypedDict):
    n: int


class Opened(TypedDict):
    fd: FileDescriptor


class OpenedMany(TypedDict):
    fds: list[FileDescriptor]


class Nothing(TypedDict):
    pass


class Trial(VarlinkInterface, name="org.example.trial"):
    """Methods of every kind; ``ended`` tells how streams came to their end."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.happened = threading.Condition()
        self.go_on = asyncio.Event()

    def note(self, what: str) -> None:
        with self.happened:
            self.ended.append(what)
            self.happened.notify_all()

    @varlinkmethod
    def Pid(self) -> Counted:  # noqa: N802  varlink's spelling
        return {"n": current_call().peer.pid}

    @varlinkmethod
    def Length(self, *, text: str) -> Counted:  # noqa: N802
        return {"n": len(text)}

    @varlinkmethod
    async def CountFds(self, *, padding: str = "") -> Counted:  # noqa: ARG002, N802
        await asyncio.sleep(0)
        for fd in current_call().fds:
            os.fstat(fd)
        return {"n": len(current_call().fds)}

    @varlinkmethod
    def Open(self) -> Opened:  # noqa: N802
        return {"fd": FileDescriptor(os.open("/dev/null", os.O_RDONLY), should_close=True)}

    @varlinkmethod
    def OpenMany(self) -> OpenedMany:  # noqa: N802  more than one message may have
        return {"fds": [FileDescriptor(os.dup(0), should_close=True) for _ in range(300)]}

    @varlinkmethod
    async def Fail(self) -> Nothing:  # noqa: N802
        raise RuntimeError("it went wrong")

    @varlinkmethod
    async def Cancelled(self) -> Nothing:  # noqa: N802
        raise asyncio.CancelledError

    @varlinkmethod
    async def Wait(self) -> Nothing:  # noqa: N802
        await self.go_on.wait()
        return {}

    @varlinkmethod(return_type=Counted)
    async def Count(self, *, to: int) -> AsyncIterator[AnnotatedResult]:  # noqa: N802
        for n in range(to + 1):
            yield AnnotatedResult({"n": n}, continues=n < to)
        self.note("sent")

    @varlinkmethod(return_type=Counted)
    async def Endless(self) -> AsyncIterator[AnnotatedResult]:  # noqa: N802
        try:
            yield AnnotatedResult({"n": 0}, continues=True)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.note("endless")

    @varlinkmethod(return_type=Counted)
    async def Flood(self) -> AsyncIterator[AnnotatedResult]:  # noqa: N802
        try:
            while True:
                yield AnnotatedResult({"n": 10**4000}, continues=True)
        finally:
            self.note("flood")

    @varlinkmethod(return_type=Counted)
    async def Watch(self) -> AsyncIterator[AnnotatedResult]:  # noqa: N802
        yield AnnotatedResult({"n": 1})

    @varlinkmethod(return_type=Counted)
    async def Unended(self) -> AsyncIterator[AnnotatedResult]:  # noqa: N802
        yield AnnotatedResult({"n": 1}, continues=True)


def message(
    method: str, *, more: bool = False, oneway: bool = False, **parameters: object
) -> bytes:
    call = {"method": f"org.example.trial.{method}", "parameters": parameters}
    flags = {"more": more, "oneway": oneway}
    return json.dumps(call | {name: True for name, on in flags.items() if on}).encode() + b"\0"


class Client:
    """A connection to the server under test."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(str(path))
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self.socket.sendall(message(method, **parameters))  # type: ignore[arg-type]
        return self.reply()

    def reply(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            chunk = self.socket.recv(1 << 16)
            assert chunk, "hung up"
            self._received += chunk
        first, _, self._received = self._received.partition(b"\0")
        told: dict[str, Any] = json.loads(first)
        return told

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


class Served:
    """The server under test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self.trial = Trial()
        self.takes_fds = True
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
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(self.trial)
        self._stop = asyncio.Event()
        self.server = Server(listener.socket.dup(), lambda: Protocol(registry), self.may_send_fds)
        await self.server.start_serving()
        self._ready.set()
        await self._stop.wait()
        self.server.close()
        self.server.abort_clients()
        await asyncio.sleep(0)

    async def may_send_fds(self, _: Peer) -> bool:
        return self.takes_fds

    def connect(self) -> Client:
        return Client(self.path)

    def wait_for(self, what: str) -> None:
        """Wait until a stream has noted that it ended so."""
        trial = self.trial
        with trial.happened:
            assert trial.happened.wait_for(lambda: what in trial.ended, PATIENCE_SECONDS)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "trial") as server:
        yield server
