"""Callers that are unlucky in when they come and go, or send what no program would."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.test_handing import inline, kinds, refused
from tests.kernel.daemon.vmms import RefusedByDaemonError, Vmm, vmm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20

CONNECTS = """
import os, socket, sys
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
connection = socket.socket(fileno=int(sys.argv[2]))
connection.connect(sys.argv[1])
"""


def test_a_release_leaves_what_another_has_got_by_then(daemon: Daemon) -> None:
    with daemon.running(), vmm(daemon) as waiting, vmm(daemon) as other:
        connections = kinds(daemon)["socket:[N]"]
        daemon.write("big", size="2GiB")
        call(daemon.socket, "Reload")
        waiting.begin("acquire", "big")
        daemon.until(
            lambda: (
                kinds(daemon)["socket:[N]"] > connections
                or daemon.describe("big")["holder"] is not None
            )
        )
        with suppress(RefusedByDaemonError):
            other.do("call", "Release", vm="big")
        assert len(waiting.end()) == 2
        time.sleep(1)
        assert daemon.describe("big")["holder"]["pid"] == waiting.pid


def test_a_pid_that_is_used_again_is_another_process(running: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as inherited:
        first = subprocess.Popen(
            [sys.executable, "-c", CONNECTS, str(running.socket), str(inherited.fileno())],
            pass_fds=[inherited.fileno()],
        )
        assert first.wait() == 0
        with vmm_of_pid(running, first.pid) as holder:
            holder.do("acquire", "db-01")
            order = {"method": "io.gmemd.Release", "parameters": {"vm": "db-01"}}
            inherited.sendall(json.dumps(order).encode() + b"\0")
            assert b"PermissionDenied" in inherited.recv(4096)
            assert running.describe("db-01")["holder"]["pid"] == holder.pid


@contextmanager
def vmm_of_pid(daemon: Daemon, pid: int) -> Iterator[Vmm]:
    """A program that has a pid which was another's before."""
    for _ in range(100):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"the next pid can't be chosen: {error}")
        with vmm(daemon) as started:
            if started.pid == pid:
                yield started
                return
    pytest.skip("others take the pid")


def test_an_inline_spec_is_of_what_the_call_is_for(running: Daemon) -> None:
    with vmm(running) as caller:
        caller.do("make", "guest-7", 8 * MIB)
        text = inline("guest-7")
        error = refused(caller, "register", "guest-7", [(0, 0, 0, 8 * MIB)], spec=text)
        assert error.name == "BadSpec"
        assert error.parameters["problems"][0]["key"] == "source"
        adopt = text.replace("source: create", "source: adopt\nmatch: {pidfile: /run/x}")
        assert refused(caller, "acquire", "guest-7", spec=adopt).name == "BadSpec"
        assert "guest-7" not in running.names()


def test_kept_memory_is_not_anothers_who_brings_the_same_spec(daemon: Daemon) -> None:
    daemon.configure("inline_spec_users: [65533, 65534]\n")
    keep = f"on_vmm_exit: keep\nowner: {{user: '{65533}'}}\n"
    text = inline("guest-7", more=keep)
    with daemon.running():
        with vmm(daemon) as first:
            first.do("become", 65533)
            first.do("acquire", "guest-7", spec=text)
            first.do("fill", "guest-7", 7)
        daemon.until(lambda: daemon.describe("guest-7")["holder"]["alive"] is False)
        with vmm(daemon) as other:
            other.do("become", 65534)
            for each in (text, inline("guest-7")):
                assert refused(other, "acquire", "guest-7", spec=each).name == "PermissionDenied"
        with vmm(daemon) as second:
            second.do("become", 65533)
            other_size = inline("guest-7", size="4MiB", more=keep)
            error = refused(second, "acquire", "guest-7", spec=other_size)
            assert (error.name, "another spec" in error.parameters["message"]) == ("NotReady", True)
            second.do("acquire", "guest-7", spec=text)
            assert second.do("look", "guest-7") == [7]


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("Plan", {"spec": "\ud800"}, "BadSpec"),
        ("Acquire", {"vm": "x", "spec": "vm: \udfff"}, "BadSpec"),
        ("Acquire", {"vm": "db-01", "cgroup": -1, "timeout_ms": 10**400}, "FdRejected"),
        ("Acquire", {"vm": "db-01", "timeout_ms": -1}, "InvalidParameter"),
        ("Register", {"vm": "db-01", "regions": [], "remove": [7] * 3000}, "InvalidParameter"),
        ("Register", {"vm": "db-01", "regions": [{}] * 3000}, "InvalidParameter"),
    ],
)
def test_what_no_program_would_send(
    running: Daemon, method: str, parameters: dict[str, object], error: str
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(running.socket))
        order = {"method": f"io.gmemd.{method}", "parameters": parameters}
        connection.sendall(json.dumps(order).encode() + b"\0")
        assert json.loads(connection.recv(4096)[:-1])["error"].endswith(f".{error}")
