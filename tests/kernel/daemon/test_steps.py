"""Killed at each of its steps, the daemon finds all as it was, and goes on from there.

Beside what it is about there is always a VM that somebody holds and has written to.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gmemd
from gmemd.client.blocking import call
from tests.kernel.daemon.keeping import Store
from tests.kernel.daemon.outliving import REGIONS, Outliving
from tests.kernel.daemon.vmms import Vmm, vmm
from tests.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
STORED = ("store.recorded", "store.stored", "store.barred")
MADE = ("provision.admitted", "provision.made", *STORED)
HELD = ("acquire.held",)
HANDED_OVER = ("hand_over.held",)
TAKEN = ("place.placed", "place.settled")
APPLIED = ("apply.begun", "apply.bound")
RELEASED = ("release.begun", "release.unstored", "release.closed", "release.forgotten")
AUDITED = ("audit.begun", "audit.done")
STOPPED = ("stop.begun",)
STARTED = ("start.recovered",)
ALL = (*MADE, *HELD, *HANDED_OVER, *TAKEN, *APPLIED, *RELEASED, *AUDITED, *STOPPED, *STARTED)

QEMU = (
    *("-object", "memory-backend-memfd,id=m0,size=8M,share=on"),
    *("-object", "memory-backend-memfd,id=m1,size=4M,share=on"),
    *("-m", "12M", "-smp", "2", "-numa", "node,cpus=0,memdev=m0", "-numa", "node,memdev=m1"),
)


@pytest.fixture
def outliving(daemon: Daemon) -> Iterator[Outliving]:
    with Store(daemon.directory / "notify") as store:
        daemon.store = store
        daemon.write("held")
        yield Outliving(daemon, store)


@pytest.fixture
def holder(outliving: Outliving) -> Iterator[Vmm]:
    """Who holds the other VM's memory, and has written to it."""
    with outliving.life() as daemon, vmm(daemon) as holder:
        daemon.wait_for("held", "ready")
        holder.do("acquire", "held")
        holder.do("fill", "held", 7)
        yield holder


def as_it_was(outliving: Outliving, holder: Vmm) -> None:
    """The other VM is its holder's as before, and what was written is there."""
    told = outliving.vms()["held"]
    assert (told["state"], told["holder"]["pid"], told["holder"]["alive"]) == (
        "ready",
        holder.pid,
        True,
    )
    assert holder.do("look", "held") == [7, 7]


def test_every_step_is_one_that_it_is_killed_at() -> None:
    source = Path(gmemd.__file__).parent
    steps = {
        name
        for path in source.rglob("*.py")
        for name in re.findall(r'\bstep\("([a-z_.]+)"\)', path.read_text())
    }
    assert steps == set(ALL)


@pytest.mark.parametrize("step", MADE)
def test_memory_is_made(outliving: Outliving, holder: Vmm, step: str) -> None:
    outliving.daemon.write("new")
    outliving.dies_at(step, outliving.reload())
    with outliving.life() as daemon:
        as_it_was(outliving, holder)
        daemon.wait_for("new", "ready")
        outliving.check(2 * REGIONS, 1)


@pytest.mark.parametrize("step", HELD)
def test_memory_is_acquired(outliving: Outliving, holder: Vmm, step: str) -> None:
    with vmm(outliving.daemon) as caller:
        daemon = outliving.daemon
        daemon.write("new")
        call(daemon.socket, "Reload")
        daemon.wait_for("new", "ready")
        made = set(outliving.store.names("r"))
        outliving.dies_at(step, lambda: caller.do("acquire", "new"))
        with outliving.life():
            as_it_was(outliving, holder)
            assert len(caller.do("acquire", "new")) == REGIONS
            assert outliving.vms()["new"]["holder"]["pid"] == caller.pid
            outliving.check(2 * REGIONS, 2)
            assert set(outliving.store.names("r")) == made


@pytest.mark.parametrize("step", HANDED_OVER)
def test_memory_is_handed_over(outliving: Outliving, holder: Vmm, step: str) -> None:
    with vmm(outliving.daemon) as other:
        outliving.dies_at(step, lambda: holder.do("hand_over", "held", other.pid))
        with outliving.life():
            assert outliving.vms()["held"]["holder"]["pid"] in {holder.pid, other.pid}
            call(outliving.daemon.socket, "Audit", vm="held")
            if outliving.vms()["held"]["holder"]["pid"] == holder.pid:
                holder.do("hand_over", "held", other.pid)
            assert outliving.vms()["held"]["holder"]["pid"] == other.pid
            assert len(other.do("acquire", "held")) == REGIONS
            assert other.do("look", "held") == [7, 7]
            outliving.check(REGIONS, 2)  # who handed it over may do so again, and is kept too


@pytest.mark.parametrize("step", TAKEN)
def test_memory_is_registered(outliving: Outliving, holder: Vmm, step: str) -> None:
    daemon = outliving.daemon
    daemon.write("its-own", "backend: memfd\n", source="register")
    call(daemon.socket, "Reload")
    pieces = [(0, 0, 0, 8 * MIB), (1, 1, 0, 4 * MIB)]
    with vmm(daemon) as caller:
        caller.do("make", "its-own", 8 * MIB, 4 * MIB)
        outliving.dies_at(step, lambda: caller.do("register", "its-own", pieces))
        with outliving.life():
            as_it_was(outliving, holder)
            if outliving.vms()["its-own"]["holder"] is None:
                caller.do("register", "its-own", pieces)
            told = daemon.wait_for("its-own", "ready")
            assert told["holder"]["pid"] == caller.pid
            outliving.check(2 * REGIONS, 2)


@pytest.mark.parametrize("step", TAKEN)
def test_memory_is_adopted(outliving: Outliving, holder: Vmm, step: str) -> None:
    daemon = outliving.daemon
    daemon.write("adopted", "backend: memfd\nmatch: {qemu_name: it}\n", source="adopt")
    call(daemon.socket, "Reload")
    with start_qemu(*QEMU, name="it") as qemu:
        outliving.dies_at(step, lambda: call(daemon.socket, "Adopt", vm="adopted"))
        with outliving.life():
            as_it_was(outliving, holder)
            told = daemon.wait_for("adopted", "ready")
            assert told["holder"]["pid"] == qemu.pid
            outliving.check(2 * REGIONS, 2)


@pytest.mark.parametrize("step", APPLIED)
def test_a_changed_policy_is_applied(outliving: Outliving, holder: Vmm, step: str) -> None:
    daemon = outliving.daemon
    daemon.write("held", policy="preferred")
    outliving.dies_at(step, outliving.reload())
    with outliving.life():
        daemon.until(lambda: policies(daemon) == ["preferred", "bind"])
        daemon.until(lambda: daemon.describe("held")["state"] == "ready")
        as_it_was(outliving, holder)
        outliving.check(REGIONS, 1)
        assert sorted(outliving.policies()) == ["bind [0]", "preferred [0]"]


def policies(daemon: Daemon) -> list[str]:
    """The policies by which the other VM's guest nodes are judged."""
    nodes = daemon.describe("held")["guest_nodes"]
    return [region["policy"] for node in nodes for region in node["regions"]]


@pytest.mark.parametrize("step", RELEASED)
def test_memory_without_a_spec_is_given_back(outliving: Outliving, holder: Vmm, step: str) -> None:
    daemon = outliving.daemon
    path = daemon.write("leaving")
    call(daemon.socket, "Reload")
    daemon.wait_for("leaving", "ready")
    path.unlink()
    outliving.dies_at(step, outliving.reload())
    with outliving.life():
        daemon.until(lambda: "leaving" not in daemon.names())
        as_it_was(outliving, holder)
        outliving.check(REGIONS, 1)


@pytest.mark.parametrize("step", RELEASED)
def test_memory_of_who_exited_is_given_to_nobody(
    outliving: Outliving, holder: Vmm, step: str
) -> None:
    daemon = outliving.daemon
    daemon.write("new")
    call(daemon.socket, "Reload")
    daemon.wait_for("new", "ready")
    with vmm(daemon) as leaving:
        leaving.do("acquire", "new")
        leaving.do("fill", "new", 9)
        outliving.dies_at(step, leaving.kill)
    with outliving.life(), vmm(daemon) as caller:
        as_it_was(outliving, holder)
        caller.do("acquire", "new")
        assert caller.do("look", "new") == [0, 0]
        outliving.check(2 * REGIONS, 2)


@pytest.mark.parametrize("step", AUDITED)
def test_memory_is_audited(outliving: Outliving, holder: Vmm, step: str) -> None:
    daemon = outliving.daemon
    outliving.dies_at(step, lambda: call(daemon.socket, "Audit", vm="held"))
    with outliving.life():
        as_it_was(outliving, holder)
        call(daemon.socket, "Audit", vm="held")
        outliving.check(REGIONS, 1)


@pytest.mark.parametrize("step", STOPPED)
def test_it_stops(outliving: Outliving, holder: Vmm, step: str) -> None:
    assert outliving.daemon.process is not None
    process = outliving.daemon.process
    outliving.dies_at(step, lambda: process.send_signal(signal.SIGTERM))
    with outliving.life():
        as_it_was(outliving, holder)
        outliving.check(REGIONS, 1)


@pytest.mark.parametrize("step", STARTED)
def test_it_starts(outliving: Outliving, holder: Vmm, step: str) -> None:
    outliving.daemon.stop(signal.SIGKILL)
    outliving.dies_starting(step)
    with outliving.life():
        as_it_was(outliving, holder)
        outliving.check(REGIONS, 1)
