"""A system call that a seccomp filter denies is told as that: nothing crashes, the rest works."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests import seccomp
from tests.kernel.daemon.vmms import RefusedByDaemonError, Vmm, vmm
from tests.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
QEMU = (
    *("-object", "memory-backend-memfd,id=m0,size=8M,share=on"),
    *("-object", "memory-backend-memfd,id=m1,size=4M,share=on"),
    *("-m", "12M", "-smp", "2", "-numa", "node,cpus=0,memdev=m0", "-numa", "node,memdev=m1"),
)
PIECES = [(0, 0, 0, 8 * MIB), (1, 1, 0, 4 * MIB)]
CREATED = ("plain", "kvm")

needs_kvm = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm here"
)


@contextmanager
def denied(daemon: Daemon, *calls: str) -> Iterator[Vmm]:
    """The daemon without those calls, once it has tried to make its VMs; and a VMM."""
    daemon.write("plain")
    daemon.write("kvm", backend="guest_memfd")
    daemon.write("later", "backend: memfd\n", source="register")
    with daemon.running(**{seccomp.DENIED: " ".join(calls)}), vmm(daemon) as guest:
        daemon.until(lambda: all(state(daemon, vm) != "provisioning" for vm in CREATED))
        yield guest
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def state(daemon: Daemon, vm: str) -> str:
    return str(daemon.describe(vm)["state"])


def regions(daemon: Daemon, vm: str) -> list[dict[str, Any]]:
    return [region for node in daemon.describe(vm)["guest_nodes"] for region in node["regions"]]


def told(call: str, vm: dict[str, Any]) -> None:
    """That it says which call is denied, and what to do about it."""
    name = "KVM_CREATE_VM" if call == "ioctl" else call
    assert re.search(rf"\b{name}: EPERM", vm["message"]), vm["message"]
    assert f"a seccomp filter forbids {call} " in vm["message"] + (vm["hint"] or "")


def registered(guest: Vmm) -> dict[str, Any]:
    """What became of memory that a VMM brings along: a VM, or what an error says."""
    guest.do("make", "later", 8 * MIB, 4 * MIB)
    try:
        return dict(guest.do("register", "later", PIECES))
    except RefusedByDaemonError as error:
        return {"state": "refused", "message": error.parameters["reason"], "hint": None}


@needs_kvm
@pytest.mark.parametrize(
    ("call", "failing", "taken"),
    [
        ("fallocate", CREATED, "ready"),
        ("set_mempolicy", CREATED, "ready"),
        ("sched_setaffinity", CREATED, "ready"),
        ("memfd_create", CREATED, "refused"),
        ("ftruncate", CREATED, "refused"),
        ("madvise", ("kvm",), "degraded"),
        ("cachestat", ("kvm",), "ready"),
        ("ioctl:KVM", ("kvm",), "ready"),
        ("statx", (), "refused"),
        ("mbind", (), "degraded"),
        ("get_mempolicy", (), "degraded"),
        ("prctl", (), "ready"),
        ("mincore", (), "ready"),
        ("pidfd_open", (), "ready"),
    ],
)
def test_a_vm_that_needs_it_fails_with_its_name(
    daemon: Daemon, call: str, failing: tuple[str, ...], taken: str
) -> None:
    with denied(daemon, call) as guest:
        name = call.partition(":")[0]
        for vm in CREATED:
            found = daemon.describe(vm)
            assert found["state"] == ("failed" if vm in failing else "ready"), found["message"]
            if vm in failing:
                told(name, found)
        answer = registered(guest)
        assert answer["state"] == taken, answer
        if taken != "ready":
            told(name, answer if taken == "refused" else daemon.describe("later"))


@needs_kvm
@pytest.mark.parametrize("call", ["mbind", "get_mempolicy"])
def test_without_policies_a_helper_places_and_why_is_told(daemon: Daemon, call: str) -> None:
    with denied(daemon, call):
        for vm in CREATED:
            found = regions(daemon, vm)
            assert {region["strategy"] for region in found} == {"proxy-allocation"}
            assert [region["resident"] for region in found] == [8 * MIB, 4 * MIB]
        (reason,) = {region["reason"] for region in regions(daemon, "plain")}
        assert f"{call}: EPERM" in reason
        assert f"a seccomp filter forbids {call} " in reason


@needs_kvm
@pytest.mark.parametrize(
    ("call", "unseen"),
    [("move_pages", CREATED), ("userfaultfd", ("plain",)), ("cachestat", ("plain",))],
)
def test_what_an_audit_can_not_see_is_unknown_and_why_is_told(
    daemon: Daemon, call: str, unseen: tuple[str, ...]
) -> None:
    with denied(daemon, call) as guest:
        for vm in CREATED:
            if state(daemon, vm) == "ready":
                guest.do("acquire", vm)
        for vm in unseen:
            shown = daemon.gmemd("audit", vm)
            assert shown.returncode == 5, shown.stdout
            assert f"{call}: EPERM (a seccomp filter forbids {call} " in shown.stdout
            for node in daemon.describe(vm)["guest_nodes"]:
                drift = node["drift"]
                assert drift["placed"] == 0
                assert drift["resident"] == drift["unknown"]
                assert drift["drift_ratio"] is None
                assert f"{call}: EPERM" in drift["unknown_reason"]
        for vm in set(CREATED) - set(unseen):
            if state(daemon, vm) == "ready":
                assert daemon.gmemd("audit", vm).returncode == 0


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_getfd", "memfd_create", "move_pages"])
def test_what_is_not_adopted_says_why(daemon: Daemon, call: str) -> None:
    daemon.write("adopted", "backend: memfd\nmatch: {qemu_name: nobody}\n", source="adopt")
    with daemon.running(**{seccomp.DENIED: call}), start_qemu(*QEMU) as qemu:
        done = daemon.gmemd("adopt", "adopted", "--pid", str(qemu.pid))
        if call == "move_pages":  # which is for looking at it later
            assert done.returncode == 0, done.stderr
            daemon.wait_for("adopted", "ready")
            found = regions(daemon, "adopted")
            assert {region["policy_outcome"] for region in found} == {"applied"}
        else:
            assert done.returncode != 0
            assert f"{call}: EPERM" in done.stderr
            assert f"a seccomp filter forbids {call} " in done.stderr
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


@pytest.mark.parametrize("call", ["move_pages", "memfd_create"])
def test_running_vms_that_can_not_be_seen_are_told_of(daemon: Daemon, call: str) -> None:
    daemon.configure(interval="1s", discovery=True)
    with start_qemu(*QEMU, name="seen"), daemon.running(**{seccomp.DENIED: call}):
        daemon.until(lambda: f"{call}: EPERM" in daemon.log.read_text())
        if call == "move_pages":
            daemon.until(lambda: "seen" in daemon.names())
            daemon.until(lambda: "EPERM" in daemon.describe("seen")["message"])
            told(call, daemon.describe("seen"))
        assert daemon.stop() == 0
    log = daemon.log.read_text()
    assert "Traceback" not in log
    if call == "memfd_create":
        assert f"a seccomp filter forbids {call} " in log
        assert log.count("looking for running VMs failed") == 1
