"""What goes wrong around a daemon: each VM fails by its cause and heals; nobody else notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.kernel.memfd import create_memfd
from tests.kernel.daemon.conftest import Daemon
from tests.kernel.daemon.faults import Left, helpers, stop_next_helper
from tests.kernel.daemon.vmms import vmm
from tests.numa.handing import audited, bound, cgroup, write_spec
from tests.numa.provisioning import MIB, bytes_by_node, difference, filled, huge_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.daemon.vmms import Vmm

MADE = {"source": "create"}
MEMFD = ", backend: memfd"
HUGE = ", backend: memfd, page_size: 2MiB"
DAY = 86400
POISON = """
import mmap, sys
MADV_HWPOISON = 100
memory = mmap.mmap(int(sys.argv[1]), 8 << 20)
memory[3 * 4096] = 1
memory.madvise(MADV_HWPOISON, 3 * 4096, 4096)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    made = Daemon(tmp_path)
    made.configure(interval="2s")
    return made


@contextmanager
def in_use(daemon: Daemon) -> Iterator[Vmm]:
    """A bystander, with something in its memory on each node, that notices nothing."""
    write_spec(daemon, "bystander", *(bound(8, node) for node in range(4)), **MADE)
    with daemon.running(), vmm(daemon) as guest:
        guest.do("acquire", "bystander", timeout_seconds=60)
        guest.do("fill", "bystander", 5)
        since = daemon.wait_for("bystander", "ready")["since"]
        yield guest
        assert guest.do("look", "bystander") == [5] * 4
        told = daemon.describe("bystander")
        assert (told["state"], told["holder"]["pid"]) == ("ready", guest.pid)
        assert abs(told["since"] - since) < 1


def memory_by_node() -> dict[int, int]:
    """What files and guests have of each node."""
    files, pinned = bytes_by_node(), bytes_by_node("Unevictable")
    return {node: files[node] + pinned[node] for node in files}


def stopped(daemon: Daemon, vm: str, *guest_nodes: str, **keys: str) -> int:
    """Write a spec, and stop the helper that prefaults it first, at its beginning; its pid."""
    before = helpers(daemon)
    write_spec(daemon, vm, *guest_nodes, **(MADE | keys))
    call(daemon.socket, "Reload")
    return stop_next_helper(daemon, before)


def failed(daemon: Daemon, vm: str, words: str) -> None:
    """It fails for that reason, once: what heals by itself may have done so meanwhile."""
    daemon.until(lambda: f"ERROR: {vm}: {words}" in daemon.log.read_text())


def test_each_fails_by_its_cause_and_heals(daemon: Daemon) -> None:
    with in_use(daemon), huge_pages(1, 32), ExitStack() as world:
        left, memory = Left(daemon), memory_by_node()
        payer = world.enter_context(cgroup("gmemd-test-payer", "memory"))
        later = payer.with_name("gmemd-test-later")
        pids = [
            stopped(daemon, "full", bound(260, 2)),
            stopped(daemon, "limited", bound(160, 3), cgroup=f"/{payer.name}"),
            stopped(daemon, "pool", bound(160, 1), bound(64, 1, HUGE)),
        ]
        os.kill(stopped(daemon, "killed", bound(160, 0)), signal.SIGKILL)
        write_spec(daemon, "nowhere", bound(16, 0), cgroup=f"/{later.name}", **MADE)
        call(daemon.socket, "Reload")
        with filled(2, 24 * MIB), ExitStack() as faults:
            (payer / "memory.max").write_text(str(MIB))
            taken = create_memfd("taken", 64 * MIB, page_size=2 * MIB)
            faults.callback(os.close, taken)
            os.posix_fallocate(taken, 0, 64 * MIB)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            failed(daemon, "full", "node 2 is full")
            failed(daemon, "limited", f"cgroup {payer} is full")
            failed(daemon, "pool", "no 2MiB pages are left on nodes 1")
            failed(daemon, "killed", "the prefault helper of killed: guest node 0 was killed")
            failed(daemon, "nowhere", f"nowhere: cgroup /{later.name} does not exist")
            (payer / "memory.max").write_text("max")
            later.mkdir()
            world.callback(later.rmdir)
        daemon.wait_for("killed", "ready")
        call(daemon.socket, "Reload")  # or later by themselves: they wait longer each time
        for vm in ("full", "limited", "pool", "nowhere", "killed"):
            daemon.wait_for(vm, "ready")
            (daemon.vms / f"{vm}.yaml").unlink()
        call(daemon.socket, "Reload")
        daemon.until(lambda: daemon.names() == {"bystander"})
        left.check()
        grown = difference(memory_by_node(), memory)
        assert all(abs(mebibytes) < 16 for mebibytes in grown.values()), grown


def test_a_page_that_memory_errors_took_is_unknown(daemon: Daemon) -> None:
    write_spec(daemon, "poisoned", bound(8, 2), bound(8, 3, MEMFD), **MADE)
    with in_use(daemon), Client(daemon.socket).acquire("poisoned", timeout_seconds=60) as memory:
        for region in memory.regions:
            program = [sys.executable, "-c", POISON, str(region.fd)]
            done = subprocess.run(program, pass_fds=[region.fd], check=False)
            assert done.returncode in {0, -signal.SIGBUS}
        told: Any = audited(daemon, "poisoned")
        for node in told["guest_nodes"]:
            assert node["drift"]["unknown"] == 4096
            assert node["drift"]["placed"] == 8 * MIB - 4096
            assert "memory error" in node["drift"]["unknown_reason"]
        assert told["state"] == "ready"
        assert daemon.metrics()['gmemd_audit_errors_total{reason="poisoned"}'] >= 2


def test_a_clock_that_is_set_confuses_nobody(daemon: Daemon) -> None:
    with in_use(daemon):
        for days in (3, -6, 3):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + days * DAY)
            call(daemon.socket, "Reload")  # or half a minute later by itself
            daemon.until(lambda: sane(daemon.describe("bystander")))
            seen = daemon.describe("bystander")["audit"]["started_timestamp"]
            daemon.until(
                lambda before=seen: (
                    daemon.describe("bystander")["audit"]["started_timestamp"] > before + 1
                )
            )
            told = daemon.describe("bystander")
            assert sane(told), told
            verified = daemon.metrics()[
                'gmemd_guest_node_verified_timestamp_seconds{guest_node="0",vm="bystander"}'
            ]
            assert time.time() - 600 < verified <= time.time()
            assert "ago" in daemon.gmemd("status", "bystander").stdout


def sane(told: dict[str, Any]) -> bool:
    """Whether all times of a VM are of the last minutes, and none is still to come."""
    now, audit = time.time(), told["audit"]
    if audit is None:  # not looked at yet
        return False
    times = [told["since"], told["holder"]["since"], audit["started_timestamp"]]
    times.append(audit["verified_timestamp"])
    return all(now - 600 < each <= now + 1 for each in times)
