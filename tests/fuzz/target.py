"""The daemon under fire, who is waited for beside it, and what of it grows."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.client.blocking import call
from gmemd.client.errors import CallError
from gmemd.host.zones import placeable
from tests.fuzz import calls
from tests.kernel.daemon.conftest import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

PAUSE_SECONDS = 0.02
SETTLE_SECONDS = 60.0
_ROOM_BYTES = 1 << 30
"""What messages may have allocated: damaged specs may ask for anything."""

_TROUBLE = re.compile(r"Traceback|unhandled|Unhandled|never retrieved|never awaited|Exception")


@dataclass(frozen=True)
class Sizes:
    """What of a process may grow. Bytes of anonymous memory."""

    rss_bytes: int
    n_fds: int
    n_threads: int


@dataclass(frozen=True)
class Latency:
    """How long another client's calls took, in seconds.

    ``busiest`` is the CPU time that the daemon's loop used until it answered, which alone tells on
    a machine that does much else what the daemon is to blame for.
    """

    n: int
    median: float
    p99: float
    slowest: float
    busiest: float

    def __str__(self) -> str:
        figures = (self.median, self.p99, self.slowest, self.busiest)
        median, p99, slowest, busiest = (f"{seconds * 1000:.1f}" for seconds in figures)
        return (
            f"{self.n} calls of another client meanwhile: median {median} ms, 99th percentile "
            f"{p99} ms, slowest {slowest} ms; the daemon's loop worked for {busiest} ms at most "
            "before it answered"
        )


class Target:
    """A daemon with VMs of every source, and room for little memory."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._daemon.socket

    @property
    def log(self) -> Path:
        """What it says."""
        return self._daemon.log

    @property
    def port(self) -> int:
        """Where its metrics are."""
        return self._daemon.port

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._daemon.process is not None
        return self._daemon.process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        assert self._daemon.process is not None
        return self._daemon.process.poll() is None

    def troubles(self) -> list[str]:
        """Lines of its log that no input may bring about."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [
            "\n".join(lines[max(0, number - 2) : number + 25])
            for number, line in enumerate(lines)
            if _TROUBLE.search(line)
        ][:3]

    def settle(self) -> Sizes:
        """Give back what messages have made, and wait until nothing is under way any more."""
        deadline = time.monotonic() + SETTLE_SECONDS
        sizes = self.sizes()
        while time.monotonic() < deadline:
            left = [vm for vm in call(self.socket, "List")["vms"] if vm["inline"] or vm["holder"]]
            for vm in left:
                with contextlib.suppress(CallError):
                    call(self.socket, "Release", vm=vm["vm"], force=True)
            time.sleep(0.5)
            before, sizes = sizes, self.sizes()
            if not left and (before.n_fds, before.n_threads) == (sizes.n_fds, sizes.n_threads):
                break
        return sizes

    def sizes(self) -> Sizes:
        """What it has now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = {key: value.split() for key, _, value in map(_parted, status.splitlines())}
        n_fds = len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  names alone
        return Sizes(int(found["RssAnon"][0]) << 10, n_fds, int(found["Threads"][0]))


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")


@contextmanager
def target() -> Iterator[Target]:
    """A daemon of one's own, where every user gets at its socket."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        daemon = Daemon(directory)
        free = sum(zones.placeable_free_bytes for zones in placeable().values())
        available = placeable()[0].placeable_available_bytes
        reserve = max(16 << 20, available - _ROOM_BYTES, free - available) >> 10
        daemon.configure(f"inline_spec_users: [{calls.OWNER}]\n", interval="1s")
        text = daemon.config.read_text()
        text = text.replace("reserve_minimum: 16MiB", f"reserve_minimum: {reserve}KiB")
        daemon.config.write_text(text)
        _write_vms(daemon)
        with daemon.running():
            daemon.wait_for("theirs", "ready")
            yield Target(daemon)


def _write_vms(daemon: Daemon) -> None:
    owner = f"owner: {{user: {calls.OWNER}}}\n"
    daemon.write("theirs", owner)
    daemon.write("offered", f"{owner}backend: memfd\n", source="register")
    daemon.write("taken", "match: {qemu_name: nobody-s}\n", source="adopt", size="12356KiB")
    daemon.write("observed", "match: {qemu_name: nobody-s}\n", source="observe", size="12356KiB")


@contextmanager
def bystander(daemon: Target) -> Iterator[list[Latency]]:
    """Another client, in a process of its own; its figures are there at the end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    stop = context.Event()
    process = context.Process(target=_call_on, args=(daemon.socket, daemon.pid, stop, theirs))
    process.start()
    told: list[Latency] = []
    try:
        yield told
        stop.set()
        if ours.poll(SETTLE_SECONDS):
            told.append(ours.recv())
    finally:
        process.kill()
        process.join()


def _call_on(path: Path, pid: int, stop: Event, result: Connection) -> None:
    """Call, again and again, and time it."""
    measured: list[tuple[float, float]] = []  # how long it took, and the loop worked
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        while not stop.wait(PAUSE_SECONDS):
            worked, begun = _loop_seconds(pid), time.monotonic()
            _describe(connection)
            measured.append((time.monotonic() - begun, _loop_seconds(pid) - worked))
    latencies = sorted(seconds for seconds, _ in measured)
    result.send(
        Latency(
            n=len(measured),
            median=statistics.median(latencies),
            p99=latencies[int(len(latencies) * 0.99)],
            slowest=latencies[-1],
            busiest=max(worked for _, worked in measured),
        )
    )


def _describe(connection: socket.socket) -> None:
    request = {"method": "io.gmemd.Describe", "parameters": {"vm": "theirs"}}
    connection.sendall(json.dumps(request).encode() + b"\0")
    content = b""
    while not content.endswith(b"\0"):
        chunk = connection.recv(1 << 16)
        assert chunk
        content += chunk


def _loop_seconds(pid: int) -> float:
    """CPU time of the thread that its event loop runs in, the first one."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
