"""Both clients, by what they send over a real socket and make of what comes back."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import AsyncClient, Client, Memory, Offered, Progress
from gmemd.client.blocking import call
from gmemd.client.errors import (
    AlreadyOwnedError,
    BadCallError,
    CallError,
    NoDaemonError,
    RefusedError,
    TimedOutError,
)
from gmemd.client.memory import Extent
from tests.unit.client.stub import PATIENCE_SECONDS, Answer, Stub, open_fds, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


class Blocking:
    def __init__(self, path: Path) -> None:
        self._client = Client(path)

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return getattr(self._client, method)(*arguments, **named)

    def watched(self, count: int, *arguments: str) -> list[Any]:
        changes = self._client.watch(*arguments)
        return [next(changes) for _ in range(count)]


class Asyncio:
    def __init__(self, path: Path) -> None:
        self._client = AsyncClient(path)

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return asyncio.run(getattr(self._client, method)(*arguments, **named))

    def watched(self, count: int, *arguments: str) -> list[Any]:
        async def some() -> list[Any]:
            seen = []
            async for change in self._client.watch(*arguments):
                seen.append(change)
                if len(seen) == count:
                    break
            return seen

        return asyncio.run(some())


@pytest.fixture(params=[Blocking, Asyncio])
def client(request: pytest.FixtureRequest, stub: Stub) -> Blocking | Asyncio:
    made: Blocking | Asyncio = request.param(stub.path)
    return made


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("handed")
    yield fd
    os.close(fd)


def region(guest_node: int, fd_index: int, **other: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "guest_node": guest_node,
        "index": 0,
        "fd_index": fd_index,
        "offset": 0,
        "size": 4 * MIB,
        "page_size": 4096,
        "backend": "memfd",
        "extents": [{"gpa": guest_node << 30, "offset": 0, "size": 4 * MIB}],
        "strategy": "inode-policy",
        "reason": "the kernel keeps it",
        "policy": "bind",
        "host_nodes": [guest_node],
        "policy_outcome": "applied",
        "policy_achieved": {"mode": "bind", "host_nodes": [guest_node]},
        "of_a_newer_daemon": True,
    } | other


def acquired(*regions: dict[str, Any]) -> dict[str, Any]:
    return {
        "vm": "a",
        "state": "ready",
        "message": "",
        "progress_ratio": None,
        "regions": list(regions),
        "warnings": ["mind this"],
    }


PROVISIONING = acquired() | {
    "state": "provisioning",
    "message": "prefaulting",
    "progress_ratio": 0.25,
    "regions": None,
}
PLACED_REGION = {
    key: value
    for key, value in region(1, 0).items()
    if key not in ("fd_index", "extents", "of_a_newer_daemon")
} | {"id": 7, "resident": 4096, "warnings": ["4KiB were there before"]}
PLACED = {
    "vm": "a",
    "state": "ready",
    "message": "",
    "pid": 42,
    "regions": [PLACED_REGION],
    "warnings": [],
}


def test_acquire_gives_regions_with_their_fds(
    client: Blocking | Asyncio, stub: Stub, memfd: int
) -> None:
    with open(os.dup(memfd), "rb") as other:  # noqa: PTH123  a second number for the same file
        stub.on(
            "Acquire",
            Answer(
                acquired(region(0, 1), region(1, 0), region(2, 1, offset=4 * MIB)),
                (memfd, other.fileno()),
            ),
        )
        memory = client("acquire", "a")
    assert isinstance(memory, Memory)
    with memory:
        first, second = memory.fds
        assert [region.fd for region in memory.regions] == [second, first, second]
        assert {os.fstat(fd).st_ino for fd in memory.fds} == {os.fstat(memfd).st_ino}
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in memory.fds)
        assert memory.regions[1].extents == (Extent(1 << 30, 0, 4 * MIB),)
        assert memory.regions[2].offset == 4 * MIB
        assert memory.regions[0].policy_achieved == {"mode": "bind", "host_nodes": [0]}
        assert memory.warnings == ("mind this",)
    assert open_fds("handed") == 1
    memory.close()
    assert stub.calls[0].parameters == {"vm": "a"}
    assert not stub.calls[0].more


def test_acquire_sends_what_it_is_given(client: Blocking | Asyncio, stub: Stub, memfd: int) -> None:
    """Fds of any kind: it is the daemon that judges them."""
    stub.on("Acquire", Answer(acquired()))
    holder, cgroup = os.pidfd_open(os.getpid()), memfd
    client("acquire", "a", holder=holder, cgroup=cgroup, timeout_seconds=0.0015, spec="vm: a")
    call = stub.calls[0]
    assert call.parameters == {
        "vm": "a",
        "holder": 0,
        "cgroup": 1,
        "timeout_ms": 2,
        "spec": "vm: a",
    }
    assert call.inodes == [os.fstat(holder).st_ino, os.fstat(cgroup).st_ino]
    os.close(holder)


def test_acquire_tells_of_progress_when_asked(
    client: Blocking | Asyncio, stub: Stub, memfd: int
) -> None:
    stub.on(
        "Acquire",
        Answer(PROVISIONING, continues=True),
        Answer(PROVISIONING, (memfd,), continues=True),
        Answer(acquired(region(0, 0)), (memfd,)),
    )
    seen: list[Progress] = []
    with client("acquire", "a", progress=seen.append) as memory:
        assert len(memory.regions) == 1
        assert open_fds("handed") == 2
    assert stub.calls[0].more
    assert seen == [Progress("provisioning", "prefaulting", 0.25)] * 2


def test_what_progress_raises_ends_the_call(
    client: Blocking | Asyncio, stub: Stub, memfd: int
) -> None:
    stub.on("Acquire", Answer(PROVISIONING, (memfd,), continues=True))

    def stop(progress: Progress) -> None:
        raise InterruptedError(progress.message)

    with pytest.raises(InterruptedError, match="prefaulting"):
        client("acquire", "a", progress=stop)
    assert stub.hung_up.wait(PATIENCE_SECONDS)
    assert open_fds("handed") == 1


@pytest.mark.parametrize(
    "broken",
    [
        acquired(region(0, 1)),
        acquired(region(0, -1)),
        acquired({"guest_node": 0}),
        acquired() | {"regions": None},
        {},
    ],
)
def test_a_layout_that_is_none(
    client: Blocking | Asyncio, stub: Stub, memfd: int, broken: dict[str, Any]
) -> None:
    stub.on("Acquire", Answer(broken, (memfd,)))
    with pytest.raises(CallError, match="Acquire: the daemon's reply isn't understood"):
        client("acquire", "a")
    assert open_fds("handed") == 1


def test_errors_come_typed(client: Blocking | Asyncio, stub: Stub) -> None:
    stub.on("Acquire", Answer({"vm": "a", "holder_pid": 42}, error="AlreadyOwned"))
    with pytest.raises(AlreadyOwnedError) as owned:
        client("acquire", "a")
    assert (owned.value.vm, owned.value.holder_pid, owned.value.exit_code) == ("a", 42, 3)
    assert "process 42" in owned.value.message
    told = {"vm": "a", "timeout_ms": 1500, "state": "provisioning", "progress_ratio": 0.5}
    stub.on("Acquire", Answer(PROVISIONING, continues=True), Answer(told, error="Timeout"))
    with pytest.raises(TimedOutError, match=r"not there after 1\.5 s: provisioning, 50% done"):
        client("acquire", "a", timeout_seconds=1.5, progress=lambda _: None)


def test_register_passes_each_file_once(client: Blocking | Asyncio, stub: Stub, memfd: int) -> None:
    stub.on("Register", Answer(PLACED))
    pidfd = os.pidfd_open(os.getpid())
    offered = [
        Offered(0, memfd, 4 * MIB),
        Offered(1, memfd, 4 * MIB, offset=4 * MIB),
        Offered(1, pidfd, MIB),
    ]
    placed = client("register", "a", offered, remove=[3], holder=pidfd)
    call = stub.calls[0]
    assert call.parameters == {
        "vm": "a",
        "regions": [
            {"guest_node": 0, "fd_index": 0, "offset": 0, "size": 4 * MIB},
            {"guest_node": 1, "fd_index": 0, "offset": 4 * MIB, "size": 4 * MIB},
            {"guest_node": 1, "fd_index": 1, "offset": 0, "size": MIB},
        ],
        "remove": [3],
        "holder": 1,
    }
    assert call.inodes == [os.fstat(memfd).st_ino, os.fstat(pidfd).st_ino]
    assert (placed.pid, placed.regions[0].id, placed.regions[0].resident) == (42, 7, 4096)
    os.close(pidfd)


def test_fds_that_cannot_be_passed(client: Blocking | Asyncio, memfd: int) -> None:
    closed = fcntl.fcntl(memfd, fcntl.F_DUPFD, 900)  # a number that nothing takes meanwhile
    os.close(closed)
    with pytest.raises(BadCallError, match=f"passing file descriptors {closed}: Bad file"):
        client("register", "a", [Offered(0, closed, MIB)])


def test_more_files_than_a_call_carries(client: Blocking | Asyncio, stub: Stub, memfd: int) -> None:
    offered = [Offered(0, memfd + number, MIB) for number in range(254)]
    with pytest.raises(BadCallError, match="at most 253"):
        client("register", "a", offered)
    assert stub.calls == []


def test_a_call_larger_than_the_sockets_buffer(
    client: Blocking | Asyncio, stub: Stub, memfd: int
) -> None:
    stub.on("Register", Answer(PLACED))
    client("register", "a", [Offered(0, memfd, MIB)], spec="x" * (4 * MIB))
    assert len(stub.calls[0].parameters["spec"]) == 4 * MIB
    assert stub.calls[0].inodes == [os.fstat(memfd).st_ino]


def test_the_other_calls(client: Blocking | Asyncio, stub: Stub, memfd: int) -> None:
    vm = {"vm": "a", "state": "ready"}
    for method, reply in {
        "List": {"vms": [vm]},
        "Describe": {"vm": vm},
        "Plan": {"vm": "a", "verdict": "fits"},
        "Adopt": PLACED,
        "Handover": {"vm": "a", "pid": 42},
        "Audit": {"vm": vm, "looked_at": None, "total": None},
        "Release": {"vm": "a", "state": "waiting"},
        "Reload": {"successful": True},
    }.items():
        stub.on(method, Answer(reply))
    assert client("list")["vms"] == [vm]
    assert client("describe", "a") == vm
    assert client("plan", spec="vm: a")["verdict"] == "fits"
    assert client("adopt", "a", pid=42).pid == 42
    assert client("handover", "a", memfd) == 42
    assert client("audit", "a") == vm
    assert client("audit", "a", where=True) == vm
    assert client("release", "a") == "waiting"
    assert client("release", "a", force=True) == "waiting"
    assert client("reload") == {"successful": True}
    assert [(call.method, call.parameters) for call in stub.calls] == [
        ("List", {}),
        ("Describe", {"vm": "a"}),
        ("Plan", {"spec": "vm: a"}),
        ("Adopt", {"vm": "a", "pid": 42}),
        ("Handover", {"vm": "a", "holder": 0}),
        ("Audit", {"vm": "a"}),
        ("Audit", {"vm": "a", "where": True}),
        ("Release", {"vm": "a"}),
        ("Release", {"vm": "a", "force": True}),
        ("Reload", {}),
    ]
    assert not any(call.more for call in stub.calls)


def test_an_audit_tells_how_far_it_is(client: Blocking | Asyncio, stub: Stub) -> None:
    vm = {"vm": "a"}
    stub.on(
        "Audit",
        Answer({"vm": vm, "looked_at": None, "total": None}, continues=True),
        Answer({"vm": vm, "looked_at": 3, "total": 8}, continues=True),
        Answer({"vm": vm, "looked_at": 8, "total": 8}),
    )
    seen: list[tuple[int, int]] = []
    assert client("audit", "a", progress=lambda *figures: seen.append(figures)) == vm
    assert seen == [(3, 8)]
    assert stub.calls[0].more


def test_watch_gives_changes_and_hangs_up_at_its_end(
    client: Blocking | Asyncio, stub: Stub
) -> None:
    stub.on(
        "Watch",
        *(Answer({"vm": "a", "status": {"vm": "a"}}, continues=True) for _ in range(2)),
        Answer({"vm": "a", "status": None}, continues=True),
    )
    assert client.watched(3, "a") == [("a", {"vm": "a"})] * 2 + [("a", None)]
    assert stub.hung_up.wait(PATIENCE_SECONDS)
    assert stub.calls[0].parameters == {"vm": "a"}
    assert stub.calls[0].more


def test_a_daemon_that_goes_away(client: Blocking | Asyncio, stub: Stub, memfd: int) -> None:
    stub.does("Acquire", lambda connection: send(connection, b'{"half', (memfd,)))
    with pytest.raises(NoDaemonError, match="closed the connection without a reply"):
        client("acquire", "a")
    assert open_fds("handed") == 1


@pytest.mark.parametrize("kind", [Blocking, Asyncio])
def test_no_daemon(kind: type[Blocking | Asyncio], tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"no daemon answers at .*: No such file"):
        kind(tmp_path / "none")("list")


def test_not_permitted(client: Blocking | Asyncio, stub: Stub) -> None:
    stub.on("Acquire", Answer(error="org.varlink.service.PermissionDenied"))
    stub.on("Reload", Answer(error="org.varlink.service.PermissionDenied"))
    with pytest.raises(RefusedError, match="Acquire: not permitted") as acquire:
        client("acquire", "a")
    assert "owner" in str(acquire.value.hint)
    with pytest.raises(RefusedError) as reload:
        client("reload")
    assert "owner" not in str(reload.value.hint)


def test_a_cancelled_call_closes_its_connection(stub: Stub, memfd: int) -> None:
    begun = threading.Event()

    def wait(connection: socket.socket) -> None:
        send(connection, Answer(PROVISIONING, continues=True).content)
        send(connection, b'{"half', (memfd,))
        begun.set()
        assert connection.recv(1) == b"", "the client sent more"

    stub.does("Acquire", wait)

    async def cancelled() -> None:
        acquiring = asyncio.create_task(AsyncClient(stub.path).acquire("a"))
        await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring

    asyncio.run(cancelled())
    assert stub.hung_up.wait(PATIENCE_SECONDS)
    assert open_fds("handed") == 1


def test_a_loop_goes_on_while_a_call_waits(stub: Stub) -> None:
    called, answer = threading.Event(), threading.Event()

    def slowly(connection: socket.socket) -> None:
        called.set()
        assert answer.wait(PATIENCE_SECONDS)
        for byte in Answer({"vm": {"vm": "a"}}).content:
            send(connection, bytes([byte]))

    stub.does("Describe", slowly)

    async def together() -> Any:  # noqa: ANN401
        describing = asyncio.create_task(AsyncClient(stub.path).describe("a"))
        assert await asyncio.to_thread(called.wait, PATIENCE_SECONDS)
        answer.set()
        return await describing

    assert asyncio.run(together()) == {"vm": "a"}


def busy(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """A listener that takes nobody yet, and connections that fill its backlog."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(0)
    waiting = []
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        waiting.append(connection)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            return listener, waiting


def test_a_daemon_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "busy"
    listener, waiting = busy(path)

    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(1, socket.MSG_PEEK):
                    receive(connection)
                    send(connection, Answer({"vms": []}).content)
                    return

    async def listed() -> Any:  # noqa: ANN401
        listing = asyncio.create_task(AsyncClient(path).list())
        await asyncio.sleep(0)
        for connection in waiting:
            connection.close()
        await asyncio.to_thread(answer)
        return await listing

    with listener:
        assert asyncio.run(listed()) == {"vms": []}


def test_threads_may_share_a_client(stub: Stub) -> None:
    stub.on("List", Answer({"vms": []}))
    client = Client(stub.path)
    results: list[Any] = []
    ask: Callable[[], None] = lambda: results.append(client.list())  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{"vms": []}] * 8


def test_a_caller_with_a_timeout_waits_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as queue:
        listener.bind(str(path))
        listener.listen(0)
        waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))  # and the queue is full

        def serve() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b'{"parameters": {"vms": []}}\0')

        serving = threading.Timer(0.2, serve)
        serving.start()
        assert call(path, "List", timeout_seconds=60) == {"vms": []}
        serving.join()


def test_a_caller_with_a_timeout_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(NoDaemonError):
            call(path, "List", timeout_seconds=0.1)
