"""Helpers and VMMs that die or hang at the worst moment: the VM's failure, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import CallError, call
from tests.kernel.daemon.faults import Left, helpers, stop_next_helper
from tests.kernel.daemon.vmms import vmm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
SPEC = """\
version: 1
vm: {vm}
source: {source}
backend: memfd
prefault: true
guest_nodes:
  - {{id: 0, memory: {size}, host_nodes: 0}}
"""


def spec(vm: str, source: str = "create", size: str = "512MiB") -> str:
    return SPEC.format(vm=vm, source=source, size=size)


def write(daemon: Daemon, vm: str, source: str = "create", size: str = "512MiB") -> None:
    (daemon.vms / f"{vm}.yaml").write_text(spec(vm, source, size))


@pytest.fixture
def running(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with a bystander, who is as it was at the end."""
    write(daemon, "bystander", size="16MiB")
    with daemon.running(), vmm(daemon) as guest:
        guest.do("acquire", "bystander")
        guest.do("fill", "bystander", 5)
        since = daemon.wait_for("bystander", "ready")["since"]
        yield daemon
        assert guest.do("look", "bystander") == [5]
        told = daemon.describe("bystander")
        assert (told["state"], told["since"]) == ("ready", since)


def test_a_helper_that_is_killed_is_told_and_the_vm_heals(running: Daemon) -> None:
    left = Left(running)
    write(running, "vm")
    call(running.socket, "Reload")
    os.kill(stop_next_helper(running, set()), signal.SIGKILL)
    told = running.wait_for("vm", "failed")
    assert "was killed by SIGKILL" in told["message"]
    left.check()
    running.wait_for("vm", "ready")


@pytest.mark.parametrize("until", ["its memory is prefaulted", "it was sent"])
def test_a_vmm_that_dies_half_way_through_register(running: Daemon, until: str) -> None:
    write(running, "reg", "register")
    call(running.socket, "Reload")
    running.wait_for("reg", "waiting")
    left = Left(running)
    with vmm(running) as guest:
        guest.do("make", "reg", 512 * MIB)
        guest.begin("register", "reg", [(0, 0, 0, 512 * MIB)])
        if until == "its memory is prefaulted":
            stop_next_helper(running, set())
        else:
            running.until(lambda: bool(helpers(running)))
        guest.kill()
        running.wait_for("reg", "waiting")
        left.check()
    with vmm(running) as guest:
        guest.do("make", "reg", 512 * MIB)
        guest.do("register", "reg", [(0, 0, 0, 512 * MIB)])
        assert running.describe("reg")["holder"]["pid"] == guest.pid
    running.wait_for("reg", "waiting")
    left.check()


def test_who_waits_for_a_helper_that_hangs_may_give_up(running: Daemon) -> None:
    """Its spec came with the call, and goes with it."""
    left = Left(running)
    with vmm(running) as guest:
        guest.begin("acquire", "new", spec=spec("new"))
        stop_next_helper(running, set())
        guest.kill()
        running.until(lambda: "new" not in running.names())
    left.check()


def fill(file: Path) -> None:
    """Write until there is no room."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@pytest.fixture
def small_disk(daemon: Daemon) -> Iterator[Path]:
    """A state directory with little room."""
    state = daemon.directory / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount")
    yield state
    subprocess.run(["umount", str(state)], check=True)


def test_a_full_disk_is_told_and_nobody_else_suffers(small_disk: Path, running: Daemon) -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(small_disk / "filling")
    with pytest.raises(CallError) as refused:
        call(running.socket, "Acquire", vm="new", spec=spec("new"), timeout_seconds=60)
    assert refused.value.error == "NotReady"
    assert "No space left" in str(refused.value)
    write(running, "late", size="16MiB")
    call(running.socket, "Reload")
    running.wait_for("late", "ready")
    running.until(lambda: "state.json: No space left" in running.log.read_text())
    os.truncate(small_disk / "filling", (small_disk / "filling").stat().st_size - 4096)
    call(running.socket, "Acquire", vm="new", spec=spec("new"), timeout_seconds=60)
    assert (small_disk / "vms.d/new.yaml").exists(), "there is room for that, and for no more"
    (small_disk / "filling").unlink()
    write(running, "later", size="16MiB")
    call(running.socket, "Reload")
    running.until(lambda: '"late"' in (small_disk / "state.json").read_text())
