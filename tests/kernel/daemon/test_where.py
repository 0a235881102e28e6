"""`Audit` with ``where``: each region then says where in it what is, until it is audited again."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.daemon.work import Workers
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy
from tests.qemu import start_qemu
from tests.unit.daemon.vms import region_plan

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
GIB = 1 << 30


def wheres(vm: dict[str, Any]) -> list[dict[str, Any] | None]:
    return [region["where"] for node in vm["guest_nodes"] for region in node["regions"]]


def held(where: dict[str, Any]) -> int:
    cells = [cell for stretch in where["stretches"] for cell in stretch["cells"]]
    return sum(sum(cell["by_node"].values()) + cell["unknown"] for cell in cells)


def test_memory_that_the_daemon_made_has_guest_physical_addresses(daemon: Daemon) -> None:
    daemon.write("db-01")
    with daemon.running():
        before = daemon.wait_for("db-01", "ready")
        assert wheres(before) == [None, None]
        steps: list[tuple[int, int]] = []
        client = Client(daemon.socket)
        vm: Any = client.audit("db-01", where=True, progress=lambda *step: steps.append(step))
        found = wheres(vm)
        assert [where["stretches"][0]["gpa"] for where in found if where] == [0, GIB]
        assert [held(where) for where in found if where] == [8 * MIB, 4 * MIB]
        assert all(where["misplaced"] == [] and where["more"] == 0 for where in found if where)
        assert vm["audit"]["errors"] == {}
        assert all(total in {12 * MIB, 24 * MIB} for _, total in steps)
        assert daemon.describe("db-01") == vm
        again = call(daemon.socket, "Audit", vm="db-01")["vm"]
        assert wheres(again) == [None, None]


def test_a_running_vm_has_offsets_in_its_guest_nodes(daemon: Daemon) -> None:
    daemon.configure(interval="1h", discovery=True)
    name = f"where-{os.getpid()}"
    backends = [
        argument
        for number, size in enumerate((64, 40))
        for argument in (
            *("-object", f"memory-backend-memfd,id=m{number},size={size}M,prealloc=on"),
            *("-numa", f"node,nodeid={number},memdev=m{number}"),
        )
    ]
    with start_qemu(*backends, "-m", "104M", name=name), daemon.running():
        daemon.wait_for(name, "ready")
        sampled = call(daemon.socket, "Audit", vm=name)["vm"]
        assert wheres(sampled) == [None, None]
        vm = call(daemon.socket, "Audit", vm=name, where=True)["vm"]
        assert vm["audit"]["exact"]
        for where, size in zip(wheres(vm), (64, 40), strict=True):
            assert where is not None
            (stretch,) = where["stretches"]
            assert (stretch["gpa"], stretch["offset"], stretch["size"]) == (None, 0, size * MIB)
            assert held(where) == size * MIB


@pytest.mark.parametrize("confidential", [True, False])
def test_confidential_memory_is_not_located(*, confidential: bool) -> None:
    """It is not mapped for reading, even where none of it is resident yet."""
    steps: list[tuple[int, int]] = []

    async def audit(region: Region) -> Any:  # noqa: ANN401  an audit
        return await workers.audit(
            "vm",
            [region],
            confidential=confidential,
            idle=True,
            holders_cgroup=None,
            progress=lambda *step: steps.append(step),
            stop=threading.Event(),
            layout={},
        )

    plan = region_plan()
    with closing(Workers()) as workers:
        for resident in (0, MIB):
            fd = create_memfd("region", plan.size_bytes)
            if resident:
                allocate(fd, 0, resident)
            steps.clear()
            with Region(plan, fd, (0, 0), Strategy.INODE_POLICY, "") as region:
                (seen,) = asyncio.run(audit(region)).regions
            assert (seen.where is None) is confidential
            assert seen.resident_bytes == resident
            looks = 1 if confidential else 2
            assert steps[-1] == (looks * plan.size_bytes, looks * plan.size_bytes)
