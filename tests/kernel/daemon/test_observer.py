"""VMs that run on this machine, as a daemon finds them: real QEMUs, whatever else runs here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client.blocking import CallError, call
from gmemd.daemon.observer import Observer
from gmemd.daemon.observing import Finder
from gmemd.daemon.watched import Wanted
from gmemd.daemon.work import Workers
from gmemd.export.instruments import Counters
from tests.qemu import backends, start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.audit.observed import Effort
    from gmemd.daemon.observing import FoundVm
    from gmemd.export.snapshot import VmStatus
    from gmemd.host.model import Host
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
INTERVAL_SECONDS = 2.0
NOBODY = 65534


@pytest.fixture
def watching(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that looks for VMs every two seconds."""
    daemon.configure(interval=f"{INTERVAL_SECONDS}s", discovery=True)
    with daemon.running():
        yield daemon


@pytest.fixture
def vm_name() -> str:
    """A name that no other VM of this machine has."""
    return f"seen-{os.getpid()}-{time.monotonic_ns()}"


def expected(vm: str, *host_nodes: str, match: str = "qemu_name: {vm}") -> str:
    """A spec of a VM that runs elsewhere, with 64 MiB on each of these host nodes."""
    nodes = "".join(
        f"  - {{id: {number}, vcpus: {number}, memory: 64MiB, host_nodes: {node}, policy: bind}}\n"
        for number, node in enumerate(host_nodes)
    )
    return (
        f"version: 1\nvm: {vm}\nsource: observe\nmatch: {{{match.format(vm=vm)}}}\n"
        f"drift_tolerance: 5%\nguest_nodes:\n{nodes}"
    )


def series(daemon: Daemon, vm: str) -> dict[str, float]:
    return {name: value for name, value in daemon.metrics().items() if f'vm="{vm}"' in name}


def held(daemon: Daemon, vm: str) -> list[dict[str, int] | None]:
    drifts = [node["drift"] for node in daemon.describe(vm)["guest_nodes"]]
    return [drift["by_node"] if drift is not None else None for drift in drifts]


def logged(daemon: Daemon, vm: str) -> list[str]:
    return [line for line in daemon.log.read_text().splitlines() if f" {vm}: " in line]


def test_a_vm_that_runs_is_shown_as_it_declares_itself(watching: Daemon, vm_name: str) -> None:
    with start_qemu(*backends(64, 32, host_nodes="0"), name=f"guest={vm_name}") as qemu:
        # A QEMU that is still making its memory is seen without it at first.
        sizes = [{"0": 64 * MIB}, {"0": 32 * MIB}]
        watching.until(lambda: vm_name in watching.names() and held(watching, vm_name) == sizes)
        vm = watching.wait_for(vm_name, "ready")
        assert (vm["source"], vm["running"]["pid"]) == ("observe", qemu.pid)
        assert "command line" in vm["running"]["declared_by"]
        drifts = [node["drift"] for node in vm["guest_nodes"]]
        assert [drift["host_nodes_allowed"] for drift in drifts] == [[0], [0]]
        assert vm["drifting"] is False
        shown = watching.gmemd("status", vm_name)
        assert f"{vm_name}  ready  observe" in shown.stdout
        found = series(watching, vm_name)
        assert found[f'gmemd_vm_state{{state="ready",vm="{vm_name}"}}'] == 1
        assert any(name.startswith("gmemd_audit_last_success_timestamp_seconds") for name in found)
        assert watching.metrics()["gmemd_audit_pages_total"] > 0
        assert watching.metrics()["gmemd_audit_duration_seconds_count"] > 0


def test_vms_come_and_go_within_an_interval(watching: Daemon, vm_name: str) -> None:
    watching.until(lambda: call(watching.socket, "List")["unseen_processes"] is not None)
    with start_qemu(name=vm_name):
        started = time.monotonic()
        watching.wait_for(vm_name, "ready")
        came = time.monotonic() - started
        assert series(watching, vm_name)
    ended = time.monotonic()
    watching.until(lambda: vm_name not in watching.names())
    went = time.monotonic() - ended
    assert not series(watching, vm_name)
    found, *_, gone = logged(watching, vm_name)
    assert "found running" in found
    assert gone.endswith(": gone")
    # Its own round apart, what takes longer is this machine, which others use as well.
    assert max(came, went) < 3 * INTERVAL_SECONDS


def test_a_spec_waits_for_its_vm_and_judges_it(watching: Daemon, vm_name: str) -> None:
    (watching.vms / "db-01.yaml").write_text(
        expected("db-01", "0", "1", match=f"qemu_name: {vm_name}")
    )
    watching.gmemd("reload")
    vm = watching.wait_for("db-01", "waiting")
    watching.until(
        lambda: (
            watching.describe("db-01")["message"] == f"no running VM matches qemu_name={vm_name}"
        )
    )
    with pytest.raises(CallError) as refused:
        call(watching.socket, "Audit", vm="db-01")
    assert refused.value.error == "NotAuditable"
    with start_qemu(*backends(64, 64), name=vm_name) as qemu:
        vm = watching.wait_for("db-01", "degraded")
        assert vm["running"]["pid"] == qemu.pid
        assert vm["running"]["declared_by"] == "its spec"
        assert vm["drift_tolerance"] == 0.05
        drifts = [node["drift"] for node in vm["guest_nodes"]]
        assert [drift["misplaced"] for drift in drifts] == [0, 64 * MIB]
        assert vm_name not in watching.names()
        assert watching.gmemd("status", "db-01", "--exit-code").returncode == 1
        told = watching.gmemd("audit", "db-01", "--json")
        assert told.returncode == 1
        assert json.loads(told.stdout)["running"]["declared_by"] == "its spec"
        in_full = json.loads(watching.gmemd("audit", "db-01", "--full", "--json").stdout)
        assert (in_full["vm"], in_full["running"]["pid"]) == ("db-01", qemu.pid)
        assert sum("drifts" in line for line in logged(watching, "db-01")) == 1
    watching.wait_for("db-01", "waiting")


def test_several_vms_for_one_spec_are_told_and_none_is_taken(
    watching: Daemon, vm_name: str
) -> None:
    (watching.vms / "db-01.yaml").write_text(expected("db-01", "0", match=f"qemu_name: {vm_name}"))
    watching.gmemd("reload")
    with start_qemu(name=vm_name) as one, start_qemu(name=vm_name) as two:
        mine = {vm_name, f"{vm_name}@{two.pid}"}
        watching.until(lambda: mine <= watching.names())
        vm = watching.describe("db-01")
        assert vm["message"] == (
            f"2 running VMs match qemu_name={vm_name}: pids {one.pid}, {two.pid}"
        )
        assert vm["hint"]
        assert watching.describe(vm_name)["running"]["pid"] == one.pid
        other = watching.gmemd("audit", f"{vm_name}@{two.pid}", "--json")
        assert json.loads(other.stdout)["running"]["pid"] == two.pid
        asked = watching.gmemd("audit", "db-01")
        assert asked.returncode == 5
        assert "hint: `gmemd status db-01`" in asked.stderr


def test_memory_that_cant_be_told_apart_is_unknown(watching: Daemon, vm_name: str) -> None:
    """A backend that is hot-added in a declared one's size: no figure is made up, none is lost."""
    more = ("-m", "64M,slots=2,maxmem=256M")
    backend = "memory-backend-ram,id=r0,size=64M,prealloc=on,host-nodes=0,policy=bind"
    with start_qemu(*more, "-object", backend, "-numa", "node,memdev=r0", name=vm_name) as qemu:
        watching.wait_for(vm_name, "ready")
        unknown = f'gmemd_vm_memory_unknown{{reason="unmatched",vm="{vm_name}"}}'
        assert unknown not in series(watching, vm_name)
        qemu.command(
            "object-add",
            **{"qom-type": "memory-backend-ram", "id": "hot", "size": 64 * MIB, "prealloc": True},
        )
        watching.until(lambda: series(watching, vm_name).get(unknown) == 1)
        vm = watching.describe(vm_name)
        assert vm["running"]["unknown"] == "unmatched"
        assert "`gmemd audit --full`" in vm["warnings"][0]
        told = json.loads(watching.gmemd("audit", vm_name, "--full", "--json").stdout)
        assert told["running"]["unknown"] is None
        assert told["guest_nodes"][0]["drift"]["placed"] == 64 * MIB


def test_a_spec_by_the_vms_own_name_comes_and_goes(watching: Daemon, vm_name: str) -> None:
    """The VM is shown all the while; what it is judged by changes."""
    with start_qemu(*backends(64), name=vm_name):
        watching.wait_for(vm_name, "ready")
        spec = watching.vms / f"{vm_name}.yaml"
        spec.write_text(expected(vm_name, "1"))
        watching.gmemd("reload")
        watching.wait_for(vm_name, "degraded")
        spec.write_text(expected(vm_name, "1").replace("64MiB", "64"))
        watching.gmemd("reload")
        watching.until(lambda: watching.describe(vm_name)["spec_error"])
        vm = watching.describe(vm_name)
        assert vm["state"] == "degraded"
        assert "last good version" in vm["warnings"][0]
        spec.write_text(expected(vm_name, "0"))
        (watching.vms / "other.yaml").write_text(expected("other", "0"))
        watching.gmemd("reload")
        watching.wait_for(vm_name, "ready")
        spec.unlink()
        watching.gmemd("reload")
        watching.until(lambda: not watching.describe(vm_name)["running"]["declared_by"])
        assert "gone" not in "".join(logged(watching, vm_name))


def test_without_discovery_only_specs_have_their_vms_shown(daemon: Daemon, vm_name: str) -> None:
    daemon.configure(interval="1s", discovery=False)
    (daemon.vms / "db-01.yaml").write_text(expected("db-01", "0", match=f"qemu_name: {vm_name}"))
    with start_qemu(name=vm_name), start_qemu(name=f"{vm_name}-b"), daemon.running():
        daemon.wait_for("db-01", "ready")
        assert daemon.names() == {"db-01"}
        assert call(daemon.socket, "List")["unseen_processes"] is None
        daemon.configure(interval="1s", discovery=True)
        daemon.gmemd("reload")
        daemon.until(lambda: f"{vm_name}-b" in daemon.names())
        daemon.configure(interval="1s", discovery=False)
        daemon.gmemd("reload")
        daemon.until(lambda: daemon.names() == {"db-01"})


def test_gmemd_itself_is_no_vm(daemon: Daemon) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here")
    daemon.configure(interval="1s", discovery=True)
    daemon.write("made", backend="guest_memfd")
    with daemon.running():
        daemon.wait_for("made", "ready")
        daemon.gmemd("audit", "made")
        told = call(daemon.socket, "List")["vms"]
        assert daemon.process is not None
        assert [vm["source"] for vm in told if vm["vm"] == "made"] == ["create"]
        assert daemon.process.pid not in {vm["running"]["pid"] for vm in told if vm["running"]}


def test_an_audit_looks_at_once_at_what_is_there_now(daemon: Daemon, vm_name: str) -> None:
    daemon.configure(interval="1h", discovery=True)
    with start_qemu(*backends(64), name=vm_name) as qemu, daemon.running():
        before = daemon.wait_for(vm_name, "ready")
        qemu.command("object-add", **{"qom-type": "memory-backend-ram"}, id="more", size=96 * MIB,
                     prealloc=True)  # fmt: skip
        vm = call(daemon.socket, "Audit", vm=vm_name)["vm"]
        assert vm["audit"]["started_timestamp"] > before["audit"]["started_timestamp"]
        assert 96 * MIB in [piece["size"] for piece in vm["running"]["unmatched"]]
        assert daemon.describe(vm_name) == vm
        qemu.process.kill()
        qemu.process.wait()
        with pytest.raises(CallError) as refused:
            call(daemon.socket, "Audit", vm=vm_name)
        assert refused.value.error == "NotAuditable"
        assert vm_name not in daemon.names()


@contextmanager
def restricted(daemon: Daemon, *capabilities: str) -> Iterator[None]:
    """The daemon as root in name only: with these capabilities, and no others."""
    allowed = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    command = ["setpriv", f"--inh-caps={allowed}", f"--bounding-set={allowed}"]
    plain = daemon.command
    daemon.command = lambda *arguments: [*command, *plain(*arguments)]  # type: ignore[method-assign]
    with daemon.running():
        daemon.command = plain  # type: ignore[method-assign]
        yield


def test_another_users_vm_is_seen_with_ptrace_alone(daemon: Daemon, vm_name: str) -> None:
    """What the drop-in gives: no capability to override file permissions, as root has."""
    with foreign_qemu(vm_name) as pid:
        daemon.configure(interval="1s", discovery=True)
        with restricted(daemon, "sys_ptrace"):
            vm = daemon.wait_for(vm_name, "ready")
            assert vm["running"]["pid"] == pid
            assert vm["running"]["unknown"] is None
            assert vm["running"]["kvm"] is False
            assert vm["guest_nodes"][0]["drift"]["by_node"] == {"0": 64 * MIB}


def test_another_users_vm_is_listed_without_any_capability(daemon: Daemon, vm_name: str) -> None:
    with foreign_qemu(vm_name) as pid:
        daemon.configure(interval="1s", discovery=True)
        with restricted(daemon):
            vm = daemon.wait_for(vm_name, "waiting")
            assert vm["running"]["unknown"] == "not_permitted"
            assert f"not permitted to look into pid {pid}" in vm["message"]
            assert "CAP_SYS_PTRACE" in vm["hint"]
            unknown = f'gmemd_vm_memory_unknown{{reason="not_permitted",vm="{vm_name}"}}'
            assert daemon.metrics()[unknown] == 1
            assert daemon.gmemd("status", vm_name, "--exit-code").returncode == 5
            with pytest.raises(CallError) as refused:
                call(daemon.socket, "Audit", vm=vm_name)
            assert refused.value.error == "NotAuditable"


@contextmanager
def foreign_qemu(name: str) -> Iterator[int]:
    """A VM of another user; its pid."""
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with start_qemu(*backends(64, host_nodes="0"), name=name, prefix=prefix) as qemu:
        yield qemu.pid


def test_the_end_does_not_wait_for_a_round(watching: Daemon) -> None:
    watching.until(lambda: call(watching.socket, "List")["unseen_processes"] is not None)
    began = time.monotonic()
    assert watching.stop() == 0
    assert time.monotonic() - began < 5


MANY = 200


def test_many_vms_hold_up_nobody(daemon: Daemon) -> None:
    """Programs of a VMM's name, as real ones take seconds each to start."""
    daemon.configure(interval="10s", discovery=True)
    names = {f"many-{os.getpid()}-{number}" for number in range(MANY)}
    processes = [
        subprocess.Popen(
            ["qemu-system-x86_64", "-c", "read x", "-name", name],
            executable="/bin/sh",
            stdin=subprocess.PIPE,
        )
        for name in names
    ]
    try:
        with daemon.running():
            slowest = 0.0
            began = time.monotonic()
            while not names <= daemon.names():
                asked = time.monotonic()
                daemon.metrics()
                slowest = max(slowest, time.monotonic() - asked)
                assert time.monotonic() < began + 120
            assert slowest < 5
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_what_goes_wrong_with_one_vm_is_that_vms_alone(
    vm_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = f"{vm_name}-bad"
    broken = True

    class Failing(Finder):
        def observe(self, found: FoundVm, host: Host, effort: Effort) -> VmStatus:
            if found.name == bad and broken:
                raise ZeroDivisionError("no reason")
            return super().observe(found, host, effort)

    counters = Counters()

    async def watch() -> None:
        nonlocal broken
        workers = Workers()
        watcher = Observer(
            workers,
            counters,
            host=workers.read_host,
            changed=lambda: None,
            held=frozenset,
            adoptable=lambda _spec, _vm: None,
            new_finder=Failing,
        )
        watcher.want(Wanted(discovery=True, interval_seconds=0.2))
        task = asyncio.create_task(watcher.run())
        try:
            await until(lambda: status(watcher, bad) is not None)
            await until(lambda: counters.read().audit_errors["failed"] > 2)
            told = status(watcher, bad)
            assert told.state == "failed"
            assert told.message == "looking at it failed: no reason"
            assert status(watcher, vm_name).state == "ready"
            assert sum("looking at it failed" in text for text in caplog.messages) == 1
            broken = False
            await until(lambda: status(watcher, bad).state == "ready")
            broken = True
            await until(lambda: status(watcher, bad).warnings[0].startswith("the last audit"))
            assert status(watcher, bad).audit is not None
        finally:
            watcher.stop()
            task.cancel()
            await asyncio.to_thread(workers.close)

    with start_qemu(*backends(64), name=vm_name), start_qemu(*backends(64), name=bad):
        asyncio.run(watch())


def status(watcher: Observer, name: str) -> Any:  # noqa: ANN401  None before it is there
    return next((vm for vm in watcher.beside(()) if vm.vm == name), None)


async def until(holds: Any) -> None:  # noqa: ANN401  a test of whatever kind
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
