"""Memory that is somebody's already is not adopted, registered, or given back for that."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.vmms import RefusedByDaemonError, vmm
from tests.qemu import start_qemu

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20

QEMU = (
    *("-object", "memory-backend-memfd,id=m0,size=8M,share=on"),
    *("-object", "memory-backend-memfd,id=m1,size=4M,share=on"),
    *("-m", "12M", "-smp", "2", "-numa", "node,cpus=0,memdev=m0", "-numa", "node,memdev=m1"),
)


def test_memory_is_adopted_for_one_vm(daemon: Daemon) -> None:
    for name in ("one", "two"):
        daemon.write(name, "backend: memfd\nmatch: {qemu_name: nobody}\n", source="adopt")
    with daemon.running(), start_qemu(*QEMU) as qemu:
        done = daemon.gmemd("adopt", "one", "--pid", str(qemu.pid))
        assert done.returncode == 0, done.stderr
        done = daemon.gmemd("adopt", "two", "--pid", str(qemu.pid))
        assert done.returncode != 0
        assert "that of the VM one" in done.stderr
        assert daemon.describe("two")["holder"] is None
        again = daemon.gmemd("adopt", "one", "--pid", str(qemu.pid))
        assert again.returncode == 0, again.stderr


def test_adopting_gives_back_nothing_that_is_kept(daemon: Daemon) -> None:
    daemon.write("vm", "on_vmm_exit: keep\n")
    with daemon.running(), start_qemu(*QEMU) as qemu:
        with vmm(daemon) as guest:
            guest.do("acquire", "vm")
            guest.do("fill", "vm", 7)
        daemon.until(lambda: daemon.describe("vm")["holder"]["alive"] is False)
        daemon.write("vm", "backend: memfd\nmatch: {qemu_name: nobody}\n", source="adopt")
        call(daemon.socket, "Reload")
        done = daemon.gmemd("adopt", "vm", "--pid", str(qemu.pid))
        assert done.returncode != 0
        assert "source: create" in done.stderr
        with vmm(daemon) as guest:
            guest.do("acquire", "vm")
            assert guest.do("look", "vm") == [7, 7]


def test_memory_that_was_created_is_not_registered_beside(daemon: Daemon) -> None:
    daemon.write("vm")
    with daemon.running(), vmm(daemon) as guest:
        guest.do("acquire", "vm")
        daemon.write("vm", "backend: memfd\n", source="register")
        call(daemon.socket, "Reload")
        guest.do("make", "vm", 8 * MIB)
        with pytest.raises(RefusedByDaemonError) as raised:
            guest.do("register", "vm", [(0, 0, 0, 8 * MIB)])
        assert raised.value.name == "LayoutMismatch"
        assert "source: create" in raised.value.parameters["message"]


def test_what_was_let_go_by_force_is_adopted_again_when_asked(daemon: Daemon) -> None:
    daemon.configure(interval="1s")
    daemon.write("vm", "backend: memfd\nmatch: {qemu_name: it}\n", source="adopt")

    def held_by(pid: int) -> bool:
        holder = daemon.describe("vm")["holder"]
        return holder is not None and holder["pid"] == pid

    with daemon.running():
        with start_qemu("-name", "it", *QEMU) as qemu:
            daemon.until(lambda: held_by(qemu.pid))
            assert daemon.gmemd("release", "vm", "--force").returncode == 0
            daemon.until(lambda: "was let go" in daemon.describe("vm")["message"])
            first = daemon.log.read_text().count("adopted pid")
            daemon.write("other", "match: {qemu_name: another}\n", source="observe")
            call(daemon.socket, "Reload")  # and with it another look at all processes
            daemon.until(lambda: "no running VM" in daemon.describe("other")["message"])
            assert daemon.log.read_text().count("adopted pid") == first
            assert daemon.gmemd("adopt", "vm").returncode == 0
            assert held_by(qemu.pid)
            assert daemon.gmemd("release", "vm", "--force").returncode == 0
        with start_qemu("-name", "it", *QEMU) as another:
            daemon.until(lambda: held_by(another.pid))


def test_why_a_vmm_that_runs_is_not_adopted_is_told(daemon: Daemon) -> None:
    daemon.write("vm", "backend: memfd\nmatch: {qemu_name: it}\n", source="adopt", size="16MiB")
    with daemon.running(), start_qemu("-name", "it", *QEMU) as qemu:
        daemon.until(lambda: f"pid {qemu.pid}" in daemon.describe("vm")["message"])
        told = daemon.describe("vm")
        assert "16MiB in the spec, 8MiB in the VMM" in told["message"]
        assert told["hint"]


def test_a_process_that_is_no_vmm_is_named(daemon: Daemon) -> None:
    daemon.write("vm", "backend: memfd\nmatch: {qemu_name: it}\n", source="adopt")
    with daemon.running(), subprocess.Popen(["sleep", "60"]) as process:
        done = daemon.gmemd("adopt", "vm", "--pid", str(process.pid))
        process.kill()
        assert done.returncode != 0
        assert "no VMM that gmemd knows" in done.stderr
