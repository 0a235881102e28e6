"""Under systemd, while guests write, the daemon kills itself at each of its steps.

The daemon tests do so without systemd; this is for the longer run of the crash tests.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from tests import stepping
from tests.service import unit
from tests.service.crash_daemon import PATIENCE_SECONDS, daemon_pid, kill
from tests.service.crash_vmm import running
from tests.service.crash_vms import CHURNED, CHURNING, MIB, Node, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.service.crash import Scene
    from tests.service.crash_vmm import Running

STEP = Path("/run/gmemd/step")
"""Names the step, in a directory of the daemon's own."""

EXTRA = Vm("extra", "register", (Node(4, "bind", (2,)),))


def acquire() -> None:
    """Have memory be made and handed out."""
    Client(unit.SOCKET).acquire(CHURNED, timeout_seconds=PATIENCE_SECONDS).close()


def audit() -> None:
    """Have memory be looked at that somebody has."""
    acquire()
    call(unit.SOCKET, "Audit", vm=CHURNED)


def release() -> None:
    """Have memory be given back."""
    acquire()
    call(unit.SOCKET, "Release", vm=CHURNED)


def hand_over() -> None:
    """Have memory be another process's."""
    acquire()
    pidfd = os.pidfd_open(os.getppid())
    try:
        Client(unit.SOCKET).handover(CHURNED, pidfd)
    finally:
        os.close(pidfd)


def apply() -> None:
    """Have a policy be another one."""
    acquire()
    path = CHURNING.write()
    path.write_text(path.read_text().replace("bind", "preferred"))
    call(unit.SOCKET, "Reload")


def stop() -> None:
    """Have it stop, and start again."""
    unit.run("systemctl", "stop", "gmemd.service")
    unit.start()


def start() -> None:
    """Have it start."""
    kill()


OPERATIONS: dict[Callable[[], None], tuple[str, ...]] = {
    acquire: (
        *("provision.admitted", "provision.made"),
        *("store.recorded", "store.stored", "store.barred", "acquire.held"),
    ),
    audit: ("audit.begun", "audit.done"),
    hand_over: ("hand_over.held",),
    apply: ("apply.begun", "apply.bound"),
    release: ("release.begun", "release.unstored", "release.closed", "release.forgotten"),
    stop: ("stop.begun",),
    start: ("start.recovered",),
}
REGISTERED = ("place.placed", "place.settled")


def walk(scene: Scene) -> Iterator[str]:
    """Have it die at each step; all has to be as it was. Gives the steps, one after the other."""
    with _stepping(scene):
        for operation, steps in OPERATIONS.items():
            for step in steps:
                _die_at(scene, step, operation)
                CHURNING.write()
                scene.settle()
                yield step
        for step in REGISTERED:
            with running(f"crash-{EXTRA.name}") as vmm:
                vmm.do("make", *(node.mib * MIB for node in EXTRA.nodes))
                _die_at(scene, step, lambda vmm=vmm: _register(vmm))
                if unit.vms()[EXTRA.name]["holder"] is None:
                    _register(vmm)
                unit.wait_for(EXTRA.name, "ready")
            scene.settle()
            yield step


def _register(vmm: Running) -> None:
    vmm.do("register", EXTRA.name)


def _die_at(scene: Scene, step: str, work: Callable[[], None]) -> None:
    before = daemon_pid()
    STEP.write_text(step)
    began = time.monotonic()
    with suppress(CallError, NoDaemonError, OSError, AssertionError):
        work()
    scene.note_answer(before, began)
    assert not STEP.exists(), f"{step} was not reached"


@contextmanager
def _stepping(scene: Scene) -> Iterator[None]:
    """The service runs a program that is gmemd, and dies where it is told to."""
    drop_in = unit.DROP_INS / "stepping.conf"
    environment = f"PYTHONPATH={unit.CHECKOUT} {stepping.VARIABLE}={STEP}"
    command = f"{sys.executable} -m tests.stepping daemon"
    with ExitStack() as stack:
        stack.callback(STEP.unlink, missing_ok=True)
        stack.callback(EXTRA.write().unlink)
        lines = f"Environment={environment}\nExecStart=\nExecStart={command}\n"
        drop_in.write_text(f"[Service]\n{lines}")
        stack.callback(drop_in.unlink)
        unit.must("systemctl", "daemon-reload")
        before = daemon_pid()
        unit.must("systemctl", "restart", "gmemd.service")
        scene.note_answer(before)
        yield
    unit.must("systemctl", "daemon-reload")
