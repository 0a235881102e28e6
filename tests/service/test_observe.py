"""VMs of another user, seen by the unit as shipped: without the drop-in for it, and with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.client.errors import NotReadyError
from tests.qemu import backends, start_qemu
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
DROP_IN = unit.DROP_INS / "observe.conf"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=kvm")
CONFIG = Path("/etc/gmemd/gmemd.yaml")

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def vms() -> Iterator[dict[str, int]]:
    """Two paused VMs of user nobody, by pid: one in KVM and one emulated. An interval of 5 s."""
    unit.install()
    unit.clear_specs()
    CONFIG.write_text("audit: {interval: 5s}\n")
    (unit.SPECS / "adopted-01.yaml").write_text(
        "version: 1\nvm: adopted-01\nsource: adopt\nbackend: memfd\n"
        "match: {unit: adopted-01.service}\nguest_nodes:\n"
        "  - {id: 0, vcpus: 0, memory: 64MiB, host_nodes: 3, policy: bind}\n"
    )
    two_nodes = [*backends(96, 64)]
    two_nodes[5] += ",host-nodes=1,policy=bind"
    two_nodes[9] += ",host-nodes=2,policy=bind"
    with (
        start_qemu(*two_nodes, name="guest=kvm-01", accel="kvm", prefix=AS_NOBODY) as kvm,
        start_qemu(*backends(64, host_nodes="3"), name="tcg-01", prefix=AS_NOBODY) as tcg,
    ):
        yield {"kvm-01": kvm.pid, "tcg-01": tcg.pid}
    unit.clear_specs()
    shutil.copy(unit.CHECKOUT / "config/gmemd.yaml", CONFIG)


@pytest.fixture
def plain() -> Iterator[None]:
    """The unit without its drop-in."""
    unit.start()
    yield
    unit.stop()


@pytest.fixture
def permitted() -> Iterator[None]:
    """The unit with its drop-in."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(unit.CHECKOUT / "systemd/gmemd.service.d/observe.conf", DROP_IN)
    unit.must("systemctl", "daemon-reload")
    unit.start()
    yield
    unit.stop()
    shutil.rmtree(DROP_IN.parent)
    unit.must("systemctl", "daemon-reload")


def metrics() -> str:
    return unit.get("127.0.0.1:9989", "/metrics")


@pytest.mark.usefixtures("plain")
def test_without_the_drop_in_vms_are_listed_and_it_is_named(vms: dict[str, int]) -> None:
    for name, pid in vms.items():
        vm = unit.wait_for(name, "waiting")
        assert (vm["source"], vm["running"]["pid"]) == ("observe", pid)
        assert vm["running"]["program"] == "qemu-system-x86_64"
        assert vm["running"]["unknown"] == "not_permitted"
        assert f"not permitted to look into pid {pid}, which runs as nobody" in vm["message"]
        assert "gmemd.service.d/observe.conf" in vm["hint"]
        assert f'gmemd_vm_memory_unknown{{reason="not_permitted",vm="{name}"}} 1.0' in metrics()
    assert call(unit.SOCKET, "List")["unseen_processes"] > 0
    with pytest.raises(NotReadyError) as refused:
        Client(unit.SOCKET).adopt("adopted-01", pid=vms["kvm-01"])
    assert f"not permitted to look into pid {vms['kvm-01']}" in refused.value.message
    assert "CAP_SYS_PTRACE" in (refused.value.hint or "")
    shown = unit.run("gmemd", "status", "--exit-code")
    assert shown.returncode == 5
    assert "gmemd.service.d/observe.conf" in shown.stdout


@pytest.mark.usefixtures("permitted")
def test_with_it_they_are_audited(vms: dict[str, int]) -> None:
    status = Path(f"/proc/{unit.unit('MainPID')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    ptrace = 1 << 19
    for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[capabilities], 16) == ptrace
    assert fields["NoNewPrivs"].strip() == "1"
    vm = unit.wait_for("kvm-01", "ready")
    assert vm["running"]["pid"] == vms["kvm-01"]
    assert (vm["running"]["kvm"], vm["running"]["unknown"]) == (True, None)
    assert seen(vm) == [{"1": 96 * MIB}, {"2": 64 * MIB}]
    vm = unit.wait_for("tcg-01", "ready")
    assert (vm["running"]["kvm"], vm["running"]["unknown"]) == (False, None)
    assert seen(vm) == [{"3": 64 * MIB}]
    assert call(unit.SOCKET, "List")["unseen_processes"] == 0
    assert unit.run("gmemd", "status", "--exit-code").returncode == 0
    done = unit.run("promtool", "check", "metrics", told=metrics())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.usefixtures("permitted")
def test_what_moves_away_drifts_and_what_ends_is_gone() -> None:
    with start_qemu(*backends(64, host_nodes="2"), name="moved-01", prefix=AS_NOBODY) as qemu:
        unit.wait_for("moved-01", "ready")
        unit.must("migratepages", str(qemu.pid), "2", "1")
        unit.wait_for("moved-01", "degraded")
        deadline = time.monotonic() + unit.PATIENCE_SECONDS
        while seen(unit.vms()["moved-01"]) != [{"1": 64 * MIB}]:  # an audit may meet the move
            assert time.monotonic() < deadline, unit.vms()["moved-01"]
            time.sleep(1)
        assert unit.run("gmemd", "status", "--exit-code").returncode == 1
        assert "moved-01: drifts: " in unit.journal()
    unit.wait_until_gone("moved-01")
    assert "moved-01" not in metrics()
    assert "moved-01: gone" in unit.journal()


@pytest.mark.usefixtures("permitted")
def test_specs_judge_and_adopt_vms_of_units() -> None:
    (unit.SPECS / "db-01.yaml").write_text(
        "version: 1\nvm: db-01\nsource: observe\nmatch: {unit: db-01.service}\nguest_nodes:\n"
        "  - {id: 0, vcpus: 0, memory: 64MiB, host_nodes: 1, policy: bind}\n"
    )
    unit.must("systemctl", "reload", "gmemd.service")
    waiting = unit.wait_for("db-01", "waiting")
    assert waiting["running"] is None
    unit.must(
        "systemd-run", "--unit=db-01", "--uid=nobody", "numactl", "--membind=2",
        "qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-accel", "tcg",
        "-m", "64M", "-mem-prealloc",
    )  # fmt: skip
    unit.must(
        "systemd-run", "--unit=adopted-01", "--uid=nobody",
        "qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "64M",
        "-object", "memory-backend-memfd,id=m0,size=64M", "-machine", "q35,memory-backend=m0",
    )  # fmt: skip
    try:
        vm = unit.wait_for("db-01", "degraded")
        assert vm["running"]["unit"] == "db-01.service"
        assert vm["running"]["declared_by"] == "its spec"
        assert seen(vm) == [{"2": 64 * MIB}]
        holder = unit.wait_for("adopted-01", "ready")["holder"]
        assert holder["unit"] == "adopted-01.service"
        numa_maps = Path(f"/proc/{holder['pid']}/numa_maps").read_text()
        assert "bind:3 file=/memfd:memory-backend-memfd" in numa_maps
    finally:
        unit.must("systemctl", "stop", "db-01.service", "adopted-01.service")
    vm = unit.wait_for("db-01", "waiting")
    assert vm["message"] == "no running VM matches unit=db-01.service"
    unit.wait_for("adopted-01", "waiting")


def seen(vm: dict[str, Any]) -> list[dict[str, int]]:
    return [node["drift"]["by_node"] for node in vm["guest_nodes"]]
