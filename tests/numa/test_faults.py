"""What goes wrong around a daemon: each VM fails by its cause and heals; nobody else notices."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.client.blocking import call
from gmemd.kernel.memfd import create_memfd
from tests.kernel.daemon.vmms import vmm
from tests.numa.handing import bound, cgroup, write_spec
from tests.numa.provisioning import (
    MIB,
    bytes_by_node,
    difference,
    filled,
    huge_pages,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon
    from tests.kernel.daemon.vmms import Vmm

HELPER = b"gmemd.memory.prefault_child"


class Left:
    """What a daemon has, by which a fault that leaves something behind shows."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._daemon = daemon
        self._proc = Path(f"/proc/{daemon.process.pid}")
        self._before = self._now()
        self._memory = self._bytes()

    def _now(self) -> dict[str, object]:
        links = []
        for fd in (self._proc / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                links.append(re.sub(r"\d+", "N", str(fd.readlink())))
        maps = (self._proc / "maps").read_text()
        return {
            "memory": Counter(link for link in links if "memfd" in link or "kvm" in link),
            "pidfds": sum("pidfd" in link for link in links),
            "mappings": len(re.findall("memfd:gmemd|kvm-gmem", maps)),
            "helpers": helpers(self._daemon),
            "committed": sum(
                size
                for name, size in self._daemon.metrics().items()
                if name.startswith("gmemd_host_node_committed_bytes")
            ),
        }

    @staticmethod
    def _bytes() -> dict[int, int]:
        files, pinned = bytes_by_node(), bytes_by_node("Unevictable")
        return {node: files[node] + pinned[node] for node in files}

    def check(self) -> None:
        """All is as it was."""
        self._daemon.until(lambda: self._now() == self._before)
        grown = difference(self._bytes(), self._memory)
        assert all(abs(mebibytes) < 16 for mebibytes in grown.values()), grown


def helpers(daemon: Daemon) -> set[int]:
    """The prefault helpers that the daemon has now."""
    assert daemon.process is not None
    found = set()
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in (task / "children").read_text().split():
                if HELPER in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def stopped_helper(daemon: Daemon, vm: str, *guest_nodes: str, **keys: str) -> int:
    """Write a spec and stop its prefault helper when it has begun; its pid."""
    before = helpers(daemon)
    write_spec(daemon, vm, *guest_nodes, **keys)
    call(daemon.socket, "Reload")
    daemon.until(lambda: bool(helpers(daemon) - before))
    (pid,) = helpers(daemon) - before
    os.kill(pid, signal.SIGSTOP)
    return pid


def failed(daemon: Daemon, vm: str, *words: str) -> dict[str, Any]:
    """The VM once it has failed, for a reason and with a hint."""
    told = daemon.wait_for(vm, "failed")
    assert all(word in told["message"] for word in words), told["message"]
    assert told["hint"] or "SIGKILL" in told["message"]
    assert daemon.metrics()[f'gmemd_vm_state{{state="failed",vm="{vm}"}}'] == 1
    return told


@contextmanager
def in_use(daemon: Daemon) -> Iterator[Vmm]:
    """A bystander: a VM with something in its memory on nodes 0 to 3."""
    with vmm(daemon) as guest:
        guest.do("acquire", "bystander")
        guest.do("fill", "bystander", 5)
        yield guest
        assert guest.do("look", "bystander") == [5] * 4
        told = daemon.describe("bystander")
        assert (told["state"], told["holder"]["pid"]) == ("ready", guest.pid)


def test_each_fails_by_its_cause_and_heals(daemon: Daemon) -> None:
    write_spec(daemon, "bystander", *(bound(8, node) for node in range(4)), source="create")
    made = {"source": "create"}
    with daemon.running(), in_use(daemon), huge_pages(1, 32), ExitStack() as world:
        since = daemon.wait_for("bystander", "ready")["since"]
        left = Left(daemon)
        payer = world.enter_context(cgroup("gmemd-test-payer", "memory"))
        huge = ", backend: memfd, page_size: 2MiB"
        stopped = [
            stopped_helper(daemon, "full", bound(500, 2), **made),
            stopped_helper(daemon, "limited", bound(200, 3), cgroup=f"/{payer.name}", **made),
            stopped_helper(daemon, "pool", bound(64, 1), bound(64, 1, huge), **made),
        ]
        os.kill(stopped_helper(daemon, "killed", bound(64, 0), **made), signal.SIGKILL)
        write_spec(daemon, "nowhere", bound(16, 0), cgroup="/gmemd-test-later", **made)
        call(daemon.socket, "Reload")
        with ExitStack() as faults:
            faults.enter_context(filled(2, 24 * MIB))
            (payer / "memory.max").write_text(str(MIB))
            taken = create_memfd("taken", 64 * MIB, page_size=2 * MIB)
            faults.callback(os.close, taken)
            os.posix_fallocate(taken, 0, 64 * MIB)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            failed(daemon, "full", "node 2 is full")
            failed(daemon, "limited", f"cgroup {payer} is full")
            failed(daemon, "pool", "no 2MiB pages are left on nodes 1")
            failed(daemon, "killed", "killed by SIGKILL")
            failed(daemon, "nowhere", "does not exist")
            left.check()
            (payer / "memory.max").write_text("max")
            (later := payer.with_name("gmemd-test-later")).mkdir()
            world.callback(later.rmdir)
        for vm in ("full", "limited", "pool", "killed", "nowhere"):
            daemon.wait_for(vm, "ready")
            (daemon.vms / f"{vm}.yaml").unlink()
        call(daemon.socket, "Reload")
        daemon.until(lambda: daemon.names() == {"bystander"})
        left.check()
        assert daemon.describe("bystander")["since"] == since
