"""The client against the real daemon: what comes back is memory, and errors are typed."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from gmemd.client import AsyncClient, Client, Offered
from gmemd.client.errors import (
    AlreadyOwnedError,
    BadSpecError,
    CallError,
    DoesNotFitError,
    FdRejectedError,
    LayoutMismatchError,
    NoSuchVMError,
    TimedOutError,
)
from tests.kernel.daemon.conftest import VM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
SPEC = VM.format(
    vm="new", source="create", more="backend: memfd\n", size="8MiB", host_nodes="0", policy="bind"
)

HOLDER = """
import mmap, sys
from gmemd.client import Client
memory = Client(sys.argv[1]).acquire(sys.argv[2])
mmap.mmap(memory.regions[0].fd, 4096)[:5] = b"guest"
print("has it", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(daemon: Daemon, vm: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has acquired the VM's memory and written to it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(daemon.socket), vm],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
        process.send_signal(signal.SIGKILL)


@contextmanager
def idling() -> Iterator[tuple[int, int]]:
    """Another process that does nothing: its pid and a pidfd."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            yield process.pid, pidfd
        finally:
            os.close(pidfd)
            process.kill()


def has_no_holder(client: Client, vm: str) -> bool:
    return client.describe(vm)["holder"] is None


def test_memory_that_was_made(daemon: Daemon, client: Client) -> None:
    daemon.write("vm")
    with daemon.running():
        with client.acquire("vm") as memory, client.acquire("vm", progress=lambda _: None) as again:
            assert [(region.guest_node, region.size) for region in memory.regions] == [
                (0, 8 * MIB),
                (1, 4 * MIB),
            ]
            for region, same in zip(memory.regions, again.regions, strict=True):
                assert os.fstat(region.fd).st_ino == os.fstat(same.fd).st_ino
                assert sum(extent.size for extent in region.extents) == region.size
                with mmap.mmap(region.fd, region.size, offset=region.offset) as mapping:
                    assert mapping[:] == bytes(region.size)
            holder = client.describe("vm")["holder"]
            assert holder is not None
            assert (holder["pid"], holder["alive"]) == (os.getpid(), True)
            assert client.audit("vm", progress=lambda _looked_at, _all: None)["audit"] is not None
        assert client.release("vm") == "waiting"
        assert client.describe("vm")["holder"] is None


def test_one_holder_at_a_time(daemon: Daemon, client: Client) -> None:
    daemon.write("vm")
    with daemon.running():
        with holding(daemon, "vm") as other:
            with pytest.raises(AlreadyOwnedError) as owned:
                client.acquire("vm")
            assert (owned.value.vm, owned.value.holder_pid) == ("vm", other.pid)
        daemon.until(lambda: has_no_holder(client, "vm"))
        client.acquire("vm").close()


def test_memory_that_is_kept(daemon: Daemon, client: Client) -> None:
    daemon.write("vm", "on_vmm_exit: keep\n")
    with daemon.running():
        with holding(daemon, "vm"):
            pass
        daemon.until(lambda: (client.describe("vm")["holder"] or {"alive": True})["alive"] is False)
        assert "kept, pid " in daemon.gmemd("status").stdout
        with client.acquire("vm") as memory:
            assert mmap.mmap(memory.regions[0].fd, 4096)[:5] == b"guest"


def test_somebody_else_holds_it(daemon: Daemon, client: Client) -> None:
    daemon.write("vm")
    with daemon.running():
        with idling() as (pid, pidfd):
            client.acquire("vm", holder=pidfd).close()
            assert (client.describe("vm")["holder"] or {})["pid"] == pid
            with idling() as (next_pid, next_pidfd):
                assert client.handover("vm", next_pidfd) == next_pid
                assert (client.describe("vm")["holder"] or {})["pid"] == next_pid
        daemon.until(lambda: has_no_holder(client, "vm"))


def test_memory_that_never_comes(daemon: Daemon, client: Client) -> None:
    daemon.write("big", size="512TiB")
    daemon.write("vm")
    with daemon.running():
        with pytest.raises(DoesNotFitError) as refused:
            client.acquire("big")
        assert refused.value.refusals[0]["host_nodes"] == [0]
        assert refused.value.refusals[0]["needed"] >= 512 << 40
        client.acquire("vm").close()
        client.release("vm")
        with pytest.raises(TimedOutError) as late:
            client.acquire("vm", timeout_seconds=0)
        assert (late.value.vm, late.value.timeout_ms) == ("vm", 0)
        with pytest.raises(NoSuchVMError):
            client.acquire("none")


def test_a_spec_that_comes_along(daemon: Daemon, client: Client) -> None:
    with daemon.running():
        assert client.plan(spec=SPEC)["verdict"] == "fits"
        with pytest.raises(BadSpecError) as wrong:
            client.acquire("new", spec=SPEC.replace("8MiB", "8M"))
        assert "8M" in str(wrong.value.problems[0]["value"])
        client.acquire("new", spec=SPEC).close()
        assert client.describe("new")["inline"]
        assert "inline spec" in daemon.gmemd("status").stdout
        client.release("new")
        daemon.until(lambda: "new" not in daemon.names())


def test_memory_of_ones_own(daemon: Daemon, client: Client) -> None:
    daemon.write("vm", "backend: memfd\n", source="register")
    memfd = os.memfd_create("own")
    os.ftruncate(memfd, 12 * MIB)
    os.pwrite(memfd, b"x", 8 * MIB)
    whole = [Offered(0, memfd, 8 * MIB), Offered(1, memfd, 4 * MIB, offset=8 * MIB)]
    with daemon.running():
        with pytest.raises(LayoutMismatchError) as mismatch:
            client.register("vm", [Offered(7, memfd, 8 * MIB)])
        assert mismatch.value.guest_node == 7
        with (
            open("/dev/null", "rb") as wrong,  # noqa: PTH123  what is no memory
            pytest.raises(FdRejectedError) as rejected,
        ):
            client.register("vm", [whole[0], Offered(1, wrong.fileno(), 4 * MIB)])
        assert rejected.value.index == 1
        placed = client.register("vm", whole)
        assert placed.pid == os.getpid()
        assert [(region.guest_node, region.offset) for region in placed.regions] == [
            (0, 0),
            (1, 8 * MIB),
        ]
        assert placed.regions[1].resident == 4096
        assert all(region.policy == "bind" for region in placed.regions)
        client.register("vm", [], remove=[placed.regions[0].id])
        left = [node["id"] for node in client.describe("vm")["guest_nodes"] if node["memory"]]
        assert left == [1]
        client.release("vm")
    os.close(memfd)


def test_nothing_to_adopt(daemon: Daemon, client: Client) -> None:
    daemon.write("vm", "match: {qemu_name: nobody}\n", source="adopt")
    with daemon.running():
        with pytest.raises(CallError) as nobody:
            client.adopt("vm")
        assert type(nobody.value) is not CallError


def test_changes_as_they_come(daemon: Daemon, client: Client) -> None:
    daemon.write("vm")
    daemon.write("other")
    with daemon.running():
        daemon.wait_for("vm", "ready")
        changes = client.watch("vm")
        name, status = next(changes)
        assert (name, (status or {})["state"]) == ("vm", "ready")
        client.acquire("vm").close()
        while status is None or status["holder"] is None:
            name, status = next(changes)
        assert status["holder"]["pid"] == os.getpid()
        (daemon.vms / "vm.yaml").unlink()
        client.release("vm")
        client.reload()
        while status is not None:
            name, status = next(changes)


async def both(first: AsyncClient, vm: str) -> None:
    """Acquire and watch at once."""
    changes = first.watch(vm)
    await anext(changes)
    memory = await first.acquire(vm, timeout_seconds=60, progress=lambda _: None)
    with memory:
        async for _, status in changes:
            if status is not None and status["holder"] is not None:
                break
        assert mmap.mmap(memory.regions[1].fd, 4 * MIB)[:] == bytes(4 * MIB)
    assert await first.release(vm) == "waiting"


def test_the_same_with_asyncio(daemon: Daemon) -> None:
    daemon.write("vm")
    with daemon.running():
        asyncio.run(both(AsyncClient(daemon.socket), "vm"))
