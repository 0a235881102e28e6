"""A real daemon as a subprocess, with directories, socket and metrics address of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client.blocking import NoDaemonError, call
from tests import preloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.daemon.keeping import Store

REPOSITORY = Path(__file__).parents[3]
GMEMD = [sys.executable, "-m", "gmemd"]
# In the lab a question takes as long as much of what is waited for.
POLL_SECONDS = 0.25 if os.environ.get("GMEMD_LAB") == "1" else 0.05
PATIENCE_SECONDS = 120

VM = """\
version: 1
vm: {vm}
source: {source}
{more}guest_nodes:
  - id: 0
    vcpus: 0
    memory: {size}
    host_nodes: {host_nodes}
    policy: {policy}
  - id: 1
    vcpus: 1
    memory: 4MiB
    host_nodes: 0
    policy: bind
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Daemon:
    """The daemon under test. Everything it has lies in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vms = directory / "vms.d"
        self.vms.mkdir()
        self.config = directory / "gmemd.yaml"
        self.socket = directory / "io.gmemd"
        self.log = directory / "log"
        self.port = free_port()
        self.store: Store | None = None
        self.process: preloaded.Process | subprocess.Popen[bytes] | None = None
        self.configure()

    def configure(
        self,
        more: str = "",
        interval: str = "60s",
        *,
        audit: str = "",
        discovery: bool = False,
    ) -> None:
        self.config.write_text(
            f"vms_directories: [{self.vms}]\nsocket: {self.socket}\n"
            f"state_directory: {self.directory}/state\n"
            f'metrics: {{listen: ["127.0.0.1:{self.port}"]}}\n'
            f"audit: {{interval: {interval}, {audit}}}\ndiscovery: {str(discovery).lower()}\n"
            f"admission: {{reserve: 0.1%, reserve_minimum: 16MiB}}\n{more}"
        )

    def write(self, vm: str, more: str = "", *, backend: str = "memfd", **keys: str) -> Path:
        path = self.vms / f"{vm}.yaml"
        given = {"source": "create", "size": "8MiB", "host_nodes": "0", "policy": "bind"} | keys
        if given["source"] == "create":
            more += f"backend: {backend}\nprefault: true\n"
        path.write_text(VM.format(vm=vm, more=more, **given))
        return path

    def command(self, *arguments: str) -> list[str]:
        return [*GMEMD, *arguments]

    @contextmanager
    def running(self, **environment: str) -> Iterator[Daemon]:
        command = self.command("daemon", "--config", str(self.config))
        with self.log.open("ab") as log:
            if command[: len(GMEMD)] == GMEMD:
                arguments = command[len(GMEMD) :]
                passed = self.store.passed() if self.store is not None else ()
                known = self.store.environment if self.store is not None else {}
                self.process = preloaded.start(
                    arguments, log, passed=passed, **known, **environment
                )
            else:
                self.process = subprocess.Popen(
                    command, cwd=REPOSITORY, env=os.environ | environment, stdout=log, stderr=log
                )
        try:
            self.until(self.answers)
            yield self
        finally:
            self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            call(self.socket, "List")
        except NoDaemonError:
            return False
        return True

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; the patience is for a broken daemon alone."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(POLL_SECONDS)

    def describe(self, vm: str) -> dict[str, Any]:
        told: dict[str, Any] = call(self.socket, "Describe", vm=vm)["vm"]
        return told

    def names(self) -> set[str]:
        return {vm["vm"] for vm in call(self.socket, "List")["vms"]}

    def wait_for(self, vm: str, state: str) -> dict[str, Any]:
        self.until(lambda: vm in self.names() and self.describe(vm)["state"] == state)
        return self.describe(vm)

    def gmemd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = preloaded.run(arguments[0], "--socket", str(self.socket), *arguments[1:])
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  whatever the command prints
        return json.loads(self.gmemd(*arguments, "--json").stdout)

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose socket is where every user gets at it."""
    made = Daemon(tmp_path)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        made.socket = Path(directory) / "io.gmemd"
        made.configure()
        yield made


@pytest.fixture
def running(daemon: Daemon) -> Iterator[Daemon]:
    """It runs, and has memory for a VM."""
    daemon.write("db-01")
    with daemon.running():
        daemon.wait_for("db-01", "ready")
        yield daemon
