"""What is put in the store and removed from it, and what becomes of that where something fails."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.daemon.fleet import Fleet
from gmemd.daemon.store import keeper as keeping
from gmemd.daemon.store.fdstore import FdStore, region_name
from gmemd.daemon.store.keeper import Keeper
from gmemd.daemon.store.manager import Told
from gmemd.daemon.store.recovery import Recovered
from gmemd.daemon.store.statefile import choose_state
from gmemd.daemon.vm import ManagedVm
from gmemd.daemon.work import Workers
from gmemd.export.instruments import Counters
from gmemd.memory.regions import Region
from gmemd.plan.admission import Reserve
from gmemd.plan.model import Strategy
from gmemd.spec.loading import parse_spec
from tests.unit.daemon.store.test_records import PLAN, SPEC

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest


class Systemd:
    """Its end of the socket: what it was sent, and what it has; it answers barriers."""

    def __init__(self, path: Path, limit: int) -> None:
        self.limit = limit
        self.stored: set[str] = set()
        self.removed: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END=1", str(path))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
            told = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            for fd in fds:
                os.close(fd)
            if "END" in told:
                return
            if "FDSTORE" in told and len(self.stored) < self.limit:
                self.stored.add(told["FDNAME"])
            if "FDSTOREREMOVE" in told:
                self.stored.discard(told["FDNAME"])
                self.removed.append(told["FDNAME"])


class Kept:
    """A fleet with a keeper, and the systemd that it tells."""

    def __init__(self, fleet: Fleet, keeper: Keeper, systemd: Systemd) -> None:
        self.fleet = fleet
        self.keeper = keeper
        self.systemd = systemd

    def have(self, name: str) -> str:
        """Have a VM have memory; what that is called in the store."""
        fd = os.memfd_create(name)
        status = os.fstat(fd)
        inode = status.st_dev, status.st_ino
        vm = ManagedVm(name, spec=parse_spec(SPEC, file="db-01.yaml"))
        vm.regions = [Region(replace(PLAN, vm=name), fd, inode, Strategy.INODE_POLICY, "kept")]
        self.fleet.vms[name] = vm
        return region_name(inode)

    async def let_go(self, name: str) -> None:
        (region,) = self.fleet.vms.pop(name).regions
        await self.keeper.secure()
        region.close()


@asynccontextmanager
async def kept(directory: Path, *, limit: int = 10, told: int | None = None) -> AsyncIterator[Kept]:
    path = directory / "notify"
    systemd = Systemd(path, limit)
    environment = {"NOTIFY_SOCKET": str(path)}
    if told != 0:
        environment["FDSTORE"] = str(told or limit)
    workers = Workers()
    fleet = Fleet(workers, Counters(), reserve=Reserve(0.0, 0), audit_interval_seconds=60)
    keeper = Keeper(fleet, directory / "state", FdStore(environment), "boot")
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    try:
        yield Kept(fleet, keeper, systemd)
    finally:
        for vm in fleet.vms.values():
            for region in vm.regions:
                region.close()
        task.cancel()
        await keeper.close()
        systemd.close(path)
        workers.close()


def test_a_place_that_becomes_free_is_taken_at_once(tmp_path: Path) -> None:
    async def exchange() -> None:
        async with kept(tmp_path, limit=2) as it:
            first = it.have("a")
            await it.keeper.secure()
            assert it.systemd.stored == {"s.1", first}
            region = it.fleet.vms.pop("a").regions[0]
            second = it.have("b")
            await it.keeper.secure()
            region.close()
            assert it.systemd.stored == {"s.1", second}
            assert it.keeper.keeps(it.fleet.vms["b"])

    asyncio.run(exchange())


def test_where_nobody_tells_the_limit_all_is_put(tmp_path: Path) -> None:
    async def put() -> None:
        async with kept(tmp_path, told=0) as it:
            it.keeper.take_on(Recovered(unclaimed=("r.1.1", "r.1.2", "r.1.3")))
            names = {it.have("a"), it.have("b")}
            await it.keeper.secure()
            assert it.systemd.stored == {"s.1", *names}

    asyncio.run(put())


def test_no_descriptor_free_is_told_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put() -> None:
        async with kept(tmp_path) as it:
            await it.keeper.secure()
            commits: list[object] = []
            prepared = it.keeper._prepare
            monkeypatch.setattr(it.keeper, "_prepare", lambda: (commits.append(0), prepared())[1])
            name = it.have("a")
            with monkeypatch.context() as patched:
                patched.setattr(fcntl, "fcntl", _too_many)
                await it.keeper.secure()
                await asyncio.sleep(0.2)
            assert "Too many open files" in it.fleet.vms["a"].unstored[1]
            assert len(commits) == 1
            it.keeper._retry_at = 0.0
            await it.keeper.secure()
            assert name in it.systemd.stored
            assert it.fleet.vms["a"].unstored == (0, "")

    asyncio.run(put())


def test_what_was_put_is_removed_although_nothing_could_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put() -> None:
        async with kept(tmp_path) as it:
            await it.keeper.secure()
            name = it.have("a")
            with monkeypatch.context() as patched:
                patched.setattr(os, "pipe2", _too_many)
                await it.keeper.secure()
            await it.let_go("a")
            assert name not in it.systemd.stored

    asyncio.run(put())


def _too_many(*_: int) -> tuple[int, int]:
    raise OSError(24, os.strerror(24))


def test_what_may_be_there_is_removed_where_systemd_dropped_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drop() -> None:
        monkeypatch.setattr(keeping, "CHECK_SECONDS", 0.01)
        monkeypatch.setattr(keeping, "ask", lambda _: Told(len(it.systemd.stored), 10))
        async with kept(tmp_path) as it:
            there, dropped = it.have("a"), it.have("b")
            it.systemd.limit = 2
            await it.keeper.secure()
            assert len(it.systemd.stored & {there, dropped}) == 1
            async with asyncio.timeout(20):
                while not it.fleet.vms["a"].unstored[0]:
                    await asyncio.sleep(0.01)
                    await it.keeper.secure()
            await it.let_go("a")
            await it.let_go("b")
            assert it.systemd.stored == {"s.1"}

    asyncio.run(drop())


def test_a_start_that_failed_ends(tmp_path: Path) -> None:
    async def end() -> None:
        keeper = Keeper(None, tmp_path, FdStore({}), "boot")  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await keeper.finish()
        await keeper.close()

    asyncio.run(end())


def test_of_the_states_slots_one_is_whole_whatever_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write() -> None:
        async with kept(tmp_path) as it:
            name = it.have("a")
            await it.keeper.secure()
            whole = os.pwrite

            def cut_off(fd: int, data: bytes, at: int) -> int:
                whole(fd, data[:100], at)
                raise OSError(12, os.strerror(12))

            memory = it.keeper._committer._memory
            assert memory is not None
            monkeypatch.setattr(os, "pwrite", cut_off)
            for _ in range(3):
                await it.keeper.secure()
                found = choose_state([("", slot) for slot in memory.read()], "boot")
                assert found.state is not None
                assert [region_name(r.inode) for r in found.state.vms[0].regions] == [name]

    asyncio.run(write())
