"""Clients that stall, flood, and pass what they shouldn't: what everybody else sees of it.

Another client's calls are timed before and during each attack: half of them have to take less than
0.5 s, and none more than 3 s. What they take is a few milliseconds; the bounds are for machines
that do much else. What a hang, or asyncvarlink's own transport, would cost is tens of seconds.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon import hostile
from tests.kernel.daemon.fuse import Trap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.kernel.daemon.conftest import Daemon

STRANGER, OWNER = 54321, 54322
MEDIAN_SECONDS = 0.5
SLOWEST_SECONDS = 3.0
N_CALLS = 60


@contextmanager
def attacking(
    daemon: Daemon, attack: str, uid: int, fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, hostile.__file__, str(uid), attack, *map(str, fds)]
    with subprocess.Popen(
        command, cwd=daemon.socket.parent, stdin=-1, stdout=-1, text=True, pass_fds=fds
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def latencies(daemon: Daemon) -> list[float]:
    measured = []
    for _ in range(N_CALLS):
        started = time.monotonic()
        assert call(daemon.socket, "Describe", vm="theirs")["vm"]
        measured.append(time.monotonic() - started)
    return measured


def n_fds(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208  names alone


@contextmanager
def unharmed(daemon: Daemon, record: Callable[[str, object], None]) -> Iterator[Callable[[], None]]:
    """A daemon whose calls take no longer while something happens, and that is then as before.

    What is given times the calls once it is called.
    """
    owner = f"owner: {{user: {OWNER}}}\n"
    daemon.write("theirs", owner)
    daemon.write("offered", f"{owner}backend: memfd\n", source="register")
    with daemon.running():
        daemon.wait_for("theirs", "ready")
        before = latencies(daemon)
        n_before = n_fds(daemon)

        def measure() -> None:
            during = latencies(daemon)
            median = statistics.median(during)
            record("before", statistics.median(before))
            record("during", median)
            record("slowest", max(during))
            assert median < MEDIAN_SECONDS
            assert max(during) < SLOWEST_SECONDS

        yield measure
        daemon.until(lambda: n_fds(daemon) <= n_before)
        assert daemon.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("uid", [STRANGER, OWNER], ids=["stranger", "owner"])
@pytest.mark.parametrize("attack", hostile.ATTACKS)
def test_nobody_else_is_harmed(
    daemon: Daemon, attack: str, uid: int, record_property: Callable[[str, object], None]
) -> None:
    with unharmed(daemon, record_property) as measure, attacking(daemon, attack, uid) as attacker:
        measure()
        told, _ = attacker.communicate("")
        assert int(told) > 0


@pytest.mark.parametrize("uid", [STRANGER, OWNER], ids=["stranger", "owner"])
def test_a_close_that_never_ends_harms_nobody_else(
    daemon: Daemon, tmp_path: Path, uid: int, record_property: Callable[[str, object], None]
) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no FUSE here")
    with (
        unharmed(daemon, record_property) as measure,
        Trap(tmp_path / "trap") as trap,
        attacking(daemon, "fuse_fds", uid, [trap.fd]),
    ):
        try:
            trap.arm()
            measure()
            # What nobody may send is never open in the daemon, which has nothing to close then.
            daemon.until(lambda: trap.n_waiting > 0 or uid == STRANGER)
            assert (trap.n_waiting > 0) is (uid == OWNER)
            assert trap.asked == []
        finally:
            trap.end()
