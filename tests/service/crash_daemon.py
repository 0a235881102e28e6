"""The service's process, its deaths and its fd store, as the kernel and systemd tell of them."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import struct
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MANAGER = "/run/systemd/notify"
METRICS = "127.0.0.1:9989"
ANSWER_SECONDS = 30.0
"""In which it has to answer again, emulated, on a machine that does nothing else."""

PATIENCE_SECONDS = 120.0
"""In which it has to, whatever else the machine does."""

BEFORE = Path("/run/crash-before")
"""A script that is run as root before each start of the daemon."""


class Stored(NamedTuple):
    """A descriptor in systemd's store."""

    name: str
    inode: int


def stored() -> list[Stored]:
    """What systemd's store has for the service."""
    done = unit.run("systemd-analyze", "fdstore", "--json=short", "gmemd.service")
    if done.returncode and "No file descriptors" in done.stderr:
        return []
    assert done.returncode == 0, done.stderr
    return [Stored(fd["fdname"], int(fd["inode"])) for fd in json.loads(done.stdout or "[]")]


def region_name(inode: Sequence[int]) -> str:
    """The name of a region in the store, by its device and inode."""
    device, number = inode
    return f"r.{device:x}.{number:x}"


def daemon_pid() -> int:
    """The process that listens, by the kernel's word. Raises OSError while none does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(unit.SOCKET))
        said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", said)[0])


def main_pid() -> int:
    """The service's process by systemd's word; 0 while there is none."""
    return int(unit.unit("MainPID"))


def open_inodes(pid: int) -> Counter[tuple[int, int]]:
    """How many descriptors a process has of each file, by device and inode."""
    found: Counter[tuple[int, int]] = Counter()
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # closed meanwhile
                status = os.stat(f"/proc/{pid}/fd/{entry.name}")  # noqa: PTH116
                found[status.st_dev, status.st_ino] += 1
    return found


def pidfd_inode(pid: int) -> int:
    """What identifies a process in the kernel's own file system of processes."""
    pidfd = os.pidfd_open(pid)
    try:
        return os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def put_in_store(name: str, fd: int) -> None:
    """Have something in the service's store that isn't the service's, which only root can."""
    sender = struct.pack("=iII", main_pid(), 0, 0)
    passed = array.array("i", [fd]).tobytes()
    message = f"FDSTORE=1\nFDNAME={name}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(MANAGER)
        beside = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)]
        beside.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, passed))
        connection.sendmsg([message], beside)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while all(one.name != name for one in stored()):
        assert time.monotonic() < deadline, "systemd took nothing"
        time.sleep(0.1)


def kill() -> int:
    """Kill the service's process, if there is one, and give its pid."""
    if pid := main_pid():  # 0 would be this process and its kin
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pid


def await_answer(before: int) -> None:
    """Wait until another process than before answers a call."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(OSError, NoDaemonError, CallError):
            if daemon_pid() != before:
                call(unit.SOCKET, "List")
                return
        assert time.monotonic() < deadline, unit.journal()
        time.sleep(0.1)


def await_another(pid: int) -> None:
    """Wait until systemd has started another process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while main_pid() in {0, pid}:
        assert time.monotonic() < deadline, unit.journal()
        time.sleep(0.05)


def replace_by(version: str) -> None:
    """Have the installed package be another version of itself; the running process has the old."""
    found = unit.must("python3", "-c", "import gmemd; print(gmemd.__file__, gmemd.__version__)")
    file, old = found.split()
    package = Path(file).parent
    fresh, leaving = package.with_name("gmemd.new"), package.with_name("gmemd.old")
    shutil.copytree(package, fresh)
    module = fresh / "__init__.py"
    module.write_text(module.read_text().replace(f'"{old}"', f'"{version}"'))
    package.rename(leaving)
    fresh.rename(package)
    shutil.rmtree(leaving)


@contextmanager
def installed() -> Iterator[None]:
    """The service with the drop-in for adoption, without specs or memory; stopped at last.

    It is enabled: systemd forgets an inactive unit that nothing refers to, and its store with it.
    """
    unit.install()
    unit.clear_specs()
    unit.run("systemctl", "clean", "--what=fdstore", "gmemd.service")
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    drop_ins = [unit.DROP_INS / "adopt.conf", unit.DROP_INS / "before.conf"]
    source = unit.CHECKOUT / "systemd/gmemd.service.d/observe.conf"
    drop_ins[0].write_text(source.read_text())
    drop_ins[1].write_text(f"[Service]\nRestartSec=100ms\nExecStartPre=+/bin/sh {BEFORE}\n")
    BEFORE.write_text("")
    unit.must("systemctl", "enable", "--quiet", "gmemd.service")
    try:
        yield
    finally:
        unit.stop()
        unit.run("systemctl", "clean", "--what=fdstore", "gmemd.service")
        unit.clear_specs()
        for path in (*drop_ins, BEFORE):
            path.unlink()
        unit.must("systemctl", "disable", "--quiet", "gmemd.service")
