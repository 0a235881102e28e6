from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink.peer import Peer, PeerError, peer_of, trusted_unit

if TYPE_CHECKING:
    from pathlib import Path

ONE_CONNECTION = """\
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
if len(sys.argv) > 2 and os.fork():
    os._exit(0)
sys.stdin.read()
"""


def test_it_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == frozenset(os.getgroups())
    assert peer.privileged


def test_others_than_root_and_our_own_user_have_no_privilege() -> None:
    assert Peer(1, 0, 0).privileged
    assert not Peer(1, os.geteuid() + 1, 0).privileged


def is_of(pidfd: int, pid: int) -> bool:
    with os.fdopen(os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY)) as info:
        return f"Pid:\t{pid}\n" in info.read()


def test_a_pidfd_is_of_the_process(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api"))
        listener.listen()
        command = [sys.executable, "-c", ONE_CONNECTION, str(tmp_path / "api")]
        child = subprocess.Popen(command, stdin=-1)
        accepted, _ = listener.accept()
        with accepted:
            peer = peer_of(accepted)
            for each in (peer, Peer(peer.pid, 0, 0)):
                pidfd = each.pidfd()
                assert is_of(pidfd, child.pid)
                assert not os.get_inheritable(pidfd)
                os.close(pidfd)
            assert peer.cgroup().startswith("/")
            child.communicate()
            with pytest.raises(PeerError, match="gone"):
                peer.cgroup()


def test_who_connected_is_gone_though_a_child_has_the_connection(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api"))
        listener.listen()
        command = [sys.executable, "-c", ONE_CONNECTION, str(tmp_path / "api"), "fork"]
        parent = subprocess.Popen(command, stdin=-1)
        accepted, _ = listener.accept()
        with accepted:
            peer = peer_of(accepted)
            assert parent.wait() == 0
            assert peer.living_pid() == 0
            assert parent.stdin is not None
            parent.stdin.close()
            poll = select.poll()
            poll.register(accepted, select.POLLHUP)
            assert poll.poll(60_000)


def test_a_process_that_isnt_seen_is_said_so() -> None:
    with pytest.raises(PeerError, match="pid namespace") as refused:
        Peer(0, 0, 0).pidfd()
    assert refused.value.hint


def test_a_connection_that_is_closed_tells_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    with pytest.raises(PeerError, match="gone"):
        peer.pidfd()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/db-01.service", "db-01.service"),
        ("/system.slice/system-vm.slice/vm@db.service/vcpu", "vm@db.service"),
        ("/machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt/emulator",
         "machine-qemu\\x2d1\\x2ddb.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/db-01.service",
         "user@1000.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/init.scope", "init.scope"),
        ("/kubepods/pod1/db-01.service", ""),
        ("/../../system.slice/db-01.service", ""),
        ("/system.slice", ""),
        ("/", ""),
    ],
)  # fmt: skip
def test_the_unit_is_the_one_that_the_systems_systemd_made(cgroup: str, unit: str) -> None:
    assert trusted_unit(cgroup) == unit
