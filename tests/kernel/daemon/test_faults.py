"""Helpers and VMMs that die or hang at the worst moment: the VM's failure, and nobody else's."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.faults import Left, helpers, stop_next_helper
from tests.kernel.daemon.vmms import vmm

if TYPE_CHECKING:
    from collections.abc import Iterator

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
