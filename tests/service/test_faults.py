"""Limits set on the unit while it runs, and a daemon that hangs: nobody's memory is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client.blocking import call
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
CONFIG = Path("/etc/gmemd/gmemd.yaml")
GROUP = Path("/sys/fs/cgroup/gmemd.slice/gmemd.service")
CORES = Path("/proc/sys/kernel/core_pattern")
PANIC_ON_OOM = Path("/proc/sys/vm/panic_on_oom")


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    """The unit with a VM on each of nodes 0 to 2, that looks around every two seconds."""
    unit.install()
    unit.clear_specs()
    CONFIG.write_text("audit: {interval: 2s}\n")
    unit.write_spec("near-01")
    unit.write_spec("far-01", memory="128MiB", host_node=2)
    drop_in = unit.DROP_INS / "watchdog.conf"
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=10s\n")
    unit.must("systemctl", "daemon-reload")
    unit.start()
    unit.wait_for("far-01", "ready")
    yield
    unit.stop()
    unit.clear_specs()
    unit.run("systemctl", "clean", "--what=fdstore", "gmemd.service")
    drop_in.unlink()
    CONFIG.write_text((unit.CHECKOUT / "config/gmemd.yaml").read_text())
    unit.must("systemctl", "daemon-reload")


@pytest.fixture(autouse=True)
def _nobody_else_notices() -> Iterator[None]:
    pid, near = unit.unit("MainPID"), unit.wait_for("near-01", "ready")
    yield
    now = unit.wait_for("near-01", "ready")
    assert abs(now["since"] - near["since"]) < 1
    if unit.unit("NRestarts") == "0":
        assert unit.unit("MainPID") == pid


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{unit.vms()}\n{unit.journal()}"
        time.sleep(0.3)


def warnings(vm: str) -> str:
    described: dict[str, Any] = call(unit.SOCKET, "Describe", vm=vm)["vm"]
    return "\n".join(described["warnings"])


def set_property(name: str, *, of: str, to: str) -> None:
    unit.must("systemctl", "set-property", "--runtime", of, f"{name}={to}")


def test_limits_that_are_set_on_the_unit_are_told_and_lifted_heal() -> None:
    limit = int((GROUP / "memory.current").read_text()) + 60 * MIB
    free = unit.free_bytes(1)
    set_property("AllowedMemoryNodes", of="gmemd.slice", to="0-1")
    set_property("MemoryMax", of="gmemd.service", to=str(limit))
    PANIC_ON_OOM.write_text("2")
    try:
        unit.write_spec("late-01", host_node=2)
        unit.write_spec("big-01", memory="160MiB", host_node=1)
        call(unit.SOCKET, "Reload")
        late, big = unit.wait_for("late-01", "failed"), unit.wait_for("big-01", "failed")
        assert "outside gmemd's own cpuset" in late["message"]
        assert "AllowedMemoryNodes=" in late["hint"]
        assert f"cgroup {GROUP}/" in big["message"]
        assert " is full: " in big["message"]
        assert "memory.max" in big["hint"]
        until(lambda: abs(free - unit.free_bytes(1)) < 48 * MIB)  # it got up to 60
        until(lambda: "outside gmemd's own cpuset" in warnings("far-01"))
        assert unit.wait_for("far-01", "ready")["guest_nodes"][1]["drift"]["placed"] == 128 * MIB
        until(lambda: "vm.panic_on_oom is 2" in unit.journal())
    finally:
        PANIC_ON_OOM.write_text("0")
        set_property("MemoryMax", of="gmemd.service", to="infinity")
        set_property("AllowedMemoryNodes", of="gmemd.slice", to="")
    until(lambda: not warnings("far-01"))
    call(unit.SOCKET, "Reload")
    for vm in ("late-01", "big-01"):
        unit.wait_for(vm, "ready")
        (unit.SPECS / f"{vm}.yaml").unlink()
    call(unit.SOCKET, "Reload")
    for vm in ("late-01", "big-01"):
        unit.wait_until_gone(vm)
    until(lambda: abs(free - unit.free_bytes(1)) < 64 * MIB)


def test_a_vms_own_cgroup_that_is_removed() -> None:
    (GROUP / "vm-far-01").rmdir()
    seen = call(unit.SOCKET, "Audit", vm="far-01")["vm"]
    assert seen["state"] == "ready"
    assert seen["guest_nodes"][1]["drift"]["placed"] == 128 * MIB


def test_a_daemon_that_hangs_is_replaced_and_no_core_is_written(tmp_path: Path) -> None:
    pid, pattern = unit.unit("MainPID"), CORES.read_text()
    tmp_path.chmod(0o777)
    CORES.write_text(f"{tmp_path}/core.%p")
    free = unit.free_bytes(2)
    try:
        os.kill(int(pid), signal.SIGSTOP)
        until(lambda: unit.unit("MainPID") not in {pid, "0"})
        unit.wait_for("far-01", "ready")
    finally:
        CORES.write_text(pattern)
    assert "Watchdog timeout" in unit.journal()
    assert list(tmp_path.iterdir()) == []
    assert abs(free - unit.free_bytes(2)) < 64 * MIB, "its memory was there all the time"
