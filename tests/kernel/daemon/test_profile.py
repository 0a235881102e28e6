"""The seccomp profile for containers: all that gmemd does works under it, and little else does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gmemd.kernel.filters import PROBED
from tests import seccomp
from tests.kernel.daemon.conftest import GMEMD, REPOSITORY, Daemon
from tests.kernel.daemon.test_denied import PIECES, QEMU, needs_kvm
from tests.kernel.daemon.vmms import vmm
from tests.qemu import start_qemu

MIB = 1 << 20
PROFILE = REPOSITORY / "deploy/seccomp.json"
CONFINED = (sys.executable, "-m", "tests.seccomp", str(PROFILE))
FORBIDDEN = (
    *(
        "add_key",
        "bpf",
        "chroot",
        "delete_module",
        "fanotify_init",
        "init_module",
        "io_uring_setup",
    ),
    *("kexec_load", "keyctl", "mount", "move_mount", "name_to_handle_at", "open_by_handle_at"),
    *("perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_vm_readv", "ptrace"),
    *("reboot", "setns", "settimeofday", "swapon", "syslog", "unshare", "vmsplice"),
)
TRY = """
import ctypes, json, os, socket, subprocess, sys
call = ctypes.CDLL(None, use_errno=True).syscall
errnos = {}
for name, number in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    call(number, -1, -1, -1, -1, -1, -1)
    errnos[name] = ctypes.get_errno()
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except PermissionError:
    errnos["netlink"] = 1
ctypes.set_errno(0)
call(json.loads(sys.argv[1])["clone"], 0x10000011, 0, 0, 0, 0)
errnos["namespace"] = ctypes.get_errno()
print(json.dumps(errnos))
"""


@pytest.fixture(scope="module")
def profile() -> dict[str, Any]:
    return dict(json.loads(PROFILE.read_text()))


class Contained(Daemon):
    """A daemon that is executed under the profile, as a container's first process is."""

    def command(self, *arguments: str) -> list[str]:
        return [*CONFINED, *GMEMD, *arguments]


@pytest.fixture
def contained(tmp_path: Path) -> Contained:
    made = Contained(tmp_path)
    made.configure(interval="1s", discovery=True)
    return made


def test_names_are_calls_and_none_comes_twice(profile: dict[str, Any]) -> None:
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    seen: set[str] = set()
    for group in profile["syscalls"]:
        assert group["names"] == sorted(group["names"])
        for name in group["names"]:
            seccomp.number_of(name)
            assert name not in seen or "args" in group, name
        seen.update(group["names"])
    assert seen >= PROBED


@needs_kvm
def test_all_that_gmemd_does_works(contained: Contained) -> None:
    contained.write("plain")
    contained.write("kvm", backend="guest_memfd")
    contained.write("later", "backend: memfd\n", source="register")
    with contained.running(), vmm(contained) as guest, start_qemu(*QEMU, name="seen"):
        for vm in ("plain", "kvm"):
            contained.wait_for(vm, "ready")
            guest.do("acquire", vm)
            assert contained.gmemd("audit", vm, "--full").returncode == 0
        guest.do("make", "later", 8 * MIB, 4 * MIB)
        assert guest.do("register", "later", PIECES)["state"] == "ready"
        assert contained.gmemd("audit", "later").returncode == 0
        contained.until(lambda: "seen" in contained.names())
        contained.wait_for("seen", "ready")
        assert contained.json("reload")["successful"]
        assert contained.metrics()['gmemd_vm_state{state="ready",vm="kvm"}'] == 1
        features = {
            name: value
            for name, value in contained.metrics().items()
            if name.startswith("gmemd_host_feature_supported")
        }
        assert contained.process is not None
        status = Path(f"/proc/{contained.process.pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert contained.stop() == 0
    assert "EPERM" not in contained.log.read_text()
    assert "Traceback" not in contained.log.read_text()
    plain = subprocess.run(
        [*GMEMD, "host", "--json"], cwd=REPOSITORY, capture_output=True, check=False
    )
    for feature in json.loads(plain.stdout)["features"]:
        if feature["supported"] is not None:
            name = f'gmemd_host_feature_supported{{feature="{feature["name"]}"}}'
            assert features[name] == feature["supported"], feature


def test_what_it_needs_not_is_forbidden() -> None:
    numbers = {name: seccomp.number_of(name) for name in (*FORBIDDEN, "clone")}
    tried = {name: number for name, number in numbers.items() if number is not None}
    done = subprocess.run(
        [*CONFINED, sys.executable, "-c", TRY, json.dumps(tried)],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    errnos = json.loads(done.stdout)
    assert errnos.keys() >= {"netlink", "namespace"}
    assert errnos.pop("clone", 1) != 0
    assert set(errnos.values()) == {1}, errnos
