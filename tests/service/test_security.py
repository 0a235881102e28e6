"""The unit's confinement: what systemd makes of it, what is left, and what a denied call does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
MOST, MOST_WITH_DROP_IN = 1.0, 1.5
CGROUP = Path("/sys/fs/cgroup/gmemd.slice/gmemd.service")
DENYING = """\
[Service]
DeviceAllow=
SystemCallFilter=~mbind
"""
FORBIDDEN_CALLS = {
    "bpf",
    "chown",
    "io_uring_setup",
    "keyctl",
    "mlock",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "setns",
    "setuid",
    "shmget",
    "unshare",
}


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    unit.write_spec("web-01")
    yield
    unit.stop()
    unit.clear_specs()


@pytest.fixture
def drop_ins() -> Iterator[Path]:
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    yield unit.DROP_INS
    shutil.rmtree(unit.DROP_INS)
    unit.must("systemctl", "daemon-reload")


def exposure() -> float:
    """What systemd-analyze makes of the unit as it is loaded: 0 is best, 10 is worst."""
    told = unit.must("systemd-analyze", "security", "--no-pager", "gmemd.service")
    found = re.search(r"exposure level for gmemd.service: ([0-9.]+)", told)
    assert found is not None, told
    return float(found[1])


def test_exposure_is_what_is_promised_and_what_readme_says(drop_ins: Path) -> None:
    alone = exposure()
    shutil.copy(unit.CHECKOUT / "systemd/gmemd.service.d/observe.conf", drop_ins)
    unit.must("systemctl", "daemon-reload")
    with_drop_in = exposure()
    assert alone <= MOST
    assert with_drop_in <= MOST_WITH_DROP_IN
    readme = " ".join((unit.CHECKOUT / "README.md").read_text().split())
    assert f"is {alone} of 10, and {with_drop_in} with the drop-in" in readme


def test_a_denied_call_fails_what_needs_it_and_says_so(drop_ins: Path) -> None:
    (drop_ins / "denying.conf").write_text(DENYING)
    unit.must("systemctl", "daemon-reload")
    unit.start()
    vm = unit.wait_for("web-01", "failed")
    assert "open /dev/kvm: EPERM" in vm["message"]
    assert "DeviceAllow=/dev/kvm rw" in vm["hint"]
    features = {
        feature["name"]: feature for feature in json.loads(unit.must(*AS_THE_UNIT))["features"]
    }
    assert "mbind: EPERM" in features["memfd_inode_policy"]["detail"]
    assert "a seccomp filter forbids mbind" in features["memfd_inode_policy"]["remedy"]
    assert (unit.unit("ActiveState"), unit.unit("NRestarts")) == ("active", "0")
    unit.stop()


AS_THE_UNIT = (
    *("systemd-run", "--quiet", "--pipe", "--wait", "--uid=gmemd"),
    *("--property=SystemCallFilter=~mbind", "--property=SystemCallErrorNumber=EPERM"),
    *("gmemd", "host", "--json"),
)


def test_confined_it_does_all_that_it_does() -> None:
    unit.start()
    assert unit.wait_for("web-01", "ready")
    pid = unit.unit("MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/1/ns/net").readlink()
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    options = {mount[4]: mount[5].split(",") for mount in mounts}
    assert "ro" in options["/"]
    assert "ro" in options["/proc/sys"]
    assert "rw" in options["/run/gmemd"]
    assert "rw" in options["/sys/fs/cgroup"]
    allowed = set(unit.unit("SystemCallFilter").split())
    assert allowed & FORBIDDEN_CALLS == set()
    assert "pidfd_getfd" not in allowed
    assert unit.must("systemctl", "reload", "gmemd.service") == ""


def test_its_own_memory_is_protected_and_the_guests_is_not_counted_in() -> None:
    pid = unit.unit("MainPID")
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith("gmemd.service/daemon")
    own = CGROUP / "daemon"
    assert int((own / "memory.min").read_text()) == 128 * MIB
    for directory in (CGROUP, CGROUP.parent):
        assert int((directory / "memory.min").read_text()) == 128 * MIB
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = int(re.findall(r"RssAnon:\s*(\d+) kB", status)[0]) * 1024
    stat = dict(line.split() for line in (own / "memory.stat").read_text().splitlines())
    assert int(stat["anon"]) > anonymous / 2
    assert int((own / "memory.current").read_text()) < 128 * MIB


def test_it_may_ask_systemd_what_the_fd_store_has() -> None:
    metrics = unit.get("127.0.0.1:9989", "/metrics")
    stored = unit.unit("NFileDescriptorStore")
    assert int(stored) >= 2
    assert f"gmemd_fdstore_fds {float(stored)}" in metrics
    assert "busctl" not in unit.journal()
