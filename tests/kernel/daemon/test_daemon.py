"""The daemon end to end, on whatever kernel and node this machine has."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import BadCallError, CallError, NoDaemonError, call

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20


def memory_fds(daemon: Daemon) -> list[str]:
    assert daemon.process is not None
    fds = Path(f"/proc/{daemon.process.pid}/fd")
    targets = []
    for fd in fds.iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            targets.append(str(fd.readlink()))
    return [target for target in targets if "memfd:gmemd" in target or "kvm-gmem" in target]


def test_a_vm_is_brought_about_audited_and_placed(running: Daemon) -> None:
    vm = running.describe("db-01")
    assert vm["drifting"] is False
    assert [node["drift"]["placed"] for node in vm["guest_nodes"]] == [8 * MIB, 4 * MIB]
    assert vm["audit"]["exact"]
    assert len(memory_fds(running)) == 2
    assert running.metrics()['gmemd_vm_state{state="ready",vm="db-01"}'] == 1
    assert running.metrics()["gmemd_config_last_reload_successful"] == 1


def test_a_guest_memfd_vm_is_brought_about(daemon: Daemon) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here")
    daemon.write("kvm", backend="guest_memfd")
    with daemon.running():
        vm = daemon.wait_for("kvm", "ready")
        assert [node["drift"]["resident"] for node in vm["guest_nodes"]] == [8 * MIB, 4 * MIB]


def test_it_starts_with_nothing_to_do(daemon: Daemon) -> None:
    with daemon.running():
        assert call(daemon.socket, "List")["vms"] == []
        assert "no VMs" in daemon.gmemd("status").stdout


def test_a_broken_file_leaves_the_good_ones_running(daemon: Daemon) -> None:
    daemon.write("good")
    daemon.write("bad", size="lots")
    with daemon.running():
        daemon.wait_for("good", "ready")
        bad = daemon.describe("bad")
        assert bad["state"] == "failed"
        assert bad["spec_error"]
        assert "bad.yaml" in bad["message"]
        assert daemon.metrics()["gmemd_config_last_reload_successful"] == 0
        assert daemon.metrics()['gmemd_vm_spec_error{vm="bad"}'] == 1


def test_other_sources_wait_and_say_so(daemon: Daemon) -> None:
    daemon.write("later", source="register")
    with daemon.running():
        vm = daemon.wait_for("later", "waiting")
        assert "register" in vm["message"]


def test_what_does_not_fit_is_refused_with_figures(daemon: Daemon) -> None:
    daemon.write("huge", size="64TiB")
    daemon.write("small")
    with daemon.running():
        daemon.wait_for("small", "ready")
        huge = daemon.wait_for("huge", "failed")
        assert "64TiB" in huge["message"]
        assert huge["hint"]
        assert daemon.gmemd("status", "--exit-code").returncode == 3


def test_a_refused_vm_is_healed_by_a_reload_of_a_smaller_one(daemon: Daemon) -> None:
    daemon.write("vm", size="64TiB")
    with daemon.running():
        daemon.wait_for("vm", "failed")
        daemon.write("vm")
        assert daemon.json("reload")["changed"] == ["vm"]
        daemon.wait_for("vm", "ready")


def test_reload_takes_up_new_files_and_releases_removed_ones(running: Daemon) -> None:
    running.write("new")
    (running.vms / "db-01.yaml").unlink()
    result = running.json("reload")
    assert (result["added"], result["removed"], result["successful"]) == (["new"], ["db-01"], True)
    running.wait_for("new", "ready")
    running.until(lambda: running.names() == {"new"})
    running.until(lambda: len(memory_fds(running)) == 2)
    assert not any("db-01" in name for name in running.metrics())


def test_sighup_reloads(running: Daemon) -> None:
    running.write("new")
    assert running.process is not None
    running.process.send_signal(signal.SIGHUP)
    running.wait_for("new", "ready")


def test_a_file_that_breaks_leaves_its_last_good_version_in_force(running: Daemon) -> None:
    running.write("db-01", size="lots")
    done = running.gmemd("reload")
    assert done.returncode == 2
    assert "db-01.yaml:9:13: guest_nodes[0].memory" in done.stderr
    vm = running.describe("db-01")
    assert (vm["state"], vm["spec_error"]) == ("ready", True)
    assert running.metrics()["gmemd_config_last_reload_successful"] == 0
    running.write("db-01")
    assert running.gmemd("reload").returncode == 0
    assert running.describe("db-01")["spec_error"] is False
    assert running.metrics()["gmemd_config_last_reload_successful"] == 1


@pytest.mark.parametrize("how", ["emptied", "missing", "no directory"])
def test_vms_d_that_is_gone_is_a_failed_reload(running: Daemon, how: str) -> None:
    (running.vms / "db-01.yaml").unlink()
    if how != "emptied":
        running.vms.rmdir()
    if how == "no directory":
        running.vms.write_text("")
    done = running.gmemd("reload")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert running.describe("db-01")["state"] == "ready"
    assert running.metrics()["gmemd_config_last_reload_successful"] == 0
    assert len(memory_fds(running)) == 2


def test_another_size_waits_and_says_what_to_do(running: Daemon) -> None:
    running.write("db-01", size="16MiB")
    assert running.json("reload")["pending"] == ["db-01"]
    vm = running.describe("db-01")
    assert vm["guest_nodes"][0]["memory"] == 8 * MIB
    assert "size of guest node 0" in vm["warnings"][0]
    running.write("db-01")
    assert running.json("reload")["pending"] == []
    assert running.describe("db-01")["warnings"] == []


def test_another_policy_is_set_for_the_pages_to_come(running: Daemon) -> None:
    running.write("db-01", policy="preferred")
    assert running.json("reload")["changed"] == ["db-01"]
    running.until(
        lambda: (
            running.describe("db-01")["guest_nodes"][0]["regions"][0]["policy_read"]["mode"]
            == "preferred"
        )
    )
    assert running.describe("db-01")["state"] == "ready"


def test_another_tolerance_is_taken_over(running: Daemon) -> None:
    running.write("db-01", more="drift_tolerance: 7%\n")
    running.gmemd("reload")
    running.until(lambda: running.describe("db-01")["drift_tolerance"] == 0.07)


def test_a_changed_interval_is_taken_over_and_a_changed_address_noted(running: Daemon) -> None:
    running.port += 1
    running.configure(interval="120s")
    result = running.json("reload")
    assert result["notes"] == ["metrics: listen changed: restart gmemd for it"]
    assert call(running.socket, "List")["audit_interval_seconds"] == 120


def test_audit_looks_anew(running: Daemon) -> None:
    before = running.describe("db-01")["audit"]["started_timestamp"]
    told = running.json("audit", "db-01")
    assert told["audit"]["started_timestamp"] > before
    assert running.gmemd("audit", "db-01", "--full").returncode == 0
    seen = running.describe("db-01")["audit"]["started_timestamp"]
    assert seen > told["audit"]["started_timestamp"]


def test_audits_come_at_their_interval(daemon: Daemon) -> None:
    daemon.configure(interval="1s")
    daemon.write("vm")
    with daemon.running():
        first = daemon.wait_for("vm", "ready")["audit"]["started_timestamp"]
        daemon.until(lambda: daemon.describe("vm")["audit"]["started_timestamp"] > first)


def test_what_has_no_memory_is_not_audited(daemon: Daemon) -> None:
    daemon.write("huge", size="64TiB")
    with daemon.running():
        daemon.wait_for("huge", "failed")
        with pytest.raises(CallError) as refused:
            call(daemon.socket, "Audit", vm="huge")
        assert refused.value.error == "NotAuditable"


def test_errors_are_typed(running: Daemon) -> None:
    with pytest.raises(BadCallError, match="no VM named 'nope'"):
        call(running.socket, "Describe", vm="nope")
    with pytest.raises(BadCallError, match="'vm'"):
        call(running.socket, "Describe", vm=3)
    with pytest.raises(BadCallError, match="no method"):
        call(running.socket, "Frobnicate")


def test_a_second_daemon_is_told_of_the_first(running: Daemon) -> None:
    done = subprocess.run(
        running.command("daemon", "--config", str(running.config)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "another daemon answers" in done.stderr
    assert running.answers()


def test_sigterm_ends_it_cleanly(running: Daemon) -> None:
    assert running.stop() == 0
    assert not running.socket.exists()
    with pytest.raises(NoDaemonError):
        call(running.socket, "List")


def test_a_stale_socket_is_replaced(running: Daemon) -> None:
    running.stop(signal.SIGKILL)
    assert running.socket.exists()
    with running.running():
        running.wait_for("db-01", "ready")


def test_sigterm_ends_a_prefault_under_way(daemon: Daemon) -> None:
    daemon.write("vm", size="512MiB")
    with daemon.running():
        daemon.wait_for("vm", "provisioning")
        assert daemon.process is not None
        pid = daemon.process.pid
        assert daemon.stop() == 0
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    )
    assert children.stdout == ""


def test_removing_a_file_ends_its_provisioning(daemon: Daemon) -> None:
    daemon.write("keep")
    daemon.write("vm", size="512MiB")
    with daemon.running():
        (daemon.vms / "vm.yaml").unlink()
        daemon.gmemd("reload")
        daemon.until(lambda: daemon.names() == {"keep"})
        daemon.wait_for("keep", "ready")


def test_no_core_dump_holds_guest_memory(running: Daemon) -> None:
    assert running.process is not None
    assert resource.prlimit(running.process.pid, resource.RLIMIT_CORE) == (0, 0)


ACT = """
import os, sys
from pathlib import Path
from gmemd.client.blocking import RefusedError, call
os.setuid(65534)
socket = Path(sys.argv[1])
assert [vm["vm"] for vm in call(socket, "List")["vms"]] == ["db-01"]
for method, parameters in (("Reload", {}), *((m, {"vm": "db-01"}) for m in ("Describe", "Audit"))):
    try:
        call(socket, method, **parameters)
    except RefusedError:
        continue
    sys.exit(f"{method} was not refused")
"""


def test_anybody_may_look_and_only_root_may_act(daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else takes root")
    daemon.write("db-01")
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        daemon.socket = Path(directory) / "io.gmemd"
        daemon.configure()
        with daemon.running():
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o666
            daemon.wait_for("db-01", "ready")
            subprocess.run([sys.executable, "-c", ACT, str(daemon.socket)], check=True)


def test_systemd_is_told(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write("vm")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(60)
        with daemon.running(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="2000000"):
            seen = ""
            while "READY=1" not in seen or "WATCHDOG=1" not in seen or "1 ready" not in seen:
                seen += manager.recv(4096).decode() + "\n"
            daemon.gmemd("reload")
            seen = ""
            while "READY=1" not in seen:
                seen += manager.recv(4096).decode() + "\n"
            assert "RELOADING=1\nMONOTONIC_USEC=" in seen
            daemon.stop()
            while "STOPPING=1" not in seen:
                seen += manager.recv(4096).decode() + "\n"
