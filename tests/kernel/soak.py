"""Make a VM's memory, prefault it, audit it and give it back, over and over: nothing may grow.

``python -m tests.kernel.soak --cycles 2000``: what a real daemon holds after the first cycles and
at the end is told, and the exit code is 1 where it has grown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.client import Client
from gmemd.client.blocking import NoDaemonError, call
from tests.kernel.walk import held

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0
WARM_UP_CYCLES = 50

MOST_GROWTH_BYTES = 1536 << 10
"""Of the daemon's own memory, from the first cycles to the end: less than 1 KiB for each of 2,000.
Python takes memory from the system by the MiB, so one such step is no leak."""

MOST_LATE_GROWTH_BYTES = 256 << 10
"""The same from half-way on, when all caches are full: 256 bytes a cycle of 2,000."""

LONG_CYCLES = 1000

SPEC = """\
version: 1
vm: soak
source: create
prefault: true
guest_nodes:
  - {id: 0, memory: 2MiB, host_nodes: 0, policy: bind, backend: guest_memfd}
  - {id: 1, memory: 2MiB, host_nodes: 0, policy: bind, backend: memfd}
"""


@dataclass(frozen=True, slots=True)
class Holds:
    """What the daemon holds while nobody has any memory of it."""

    memory_bytes: int
    fds: int
    mappings: int
    threads: int
    children: int

    def __str__(self) -> str:
        return (
            f"{self.memory_bytes >> 10} KiB, {self.fds} fds, {self.mappings} mappings of memory, "
            f"{self.threads} threads, {self.children} children"
        )


class Soak:
    """A daemon with one VM."""

    def __init__(self, socket: Path, pid: int) -> None:
        self._socket = socket
        self._pid = pid
        self._client = Client(socket)

    def cycle(self) -> None:
        """Have the memory made, look at all of it, and give it back."""
        memory = self._client.acquire("soak", timeout_seconds=PATIENCE_SECONDS)
        memory.close()
        audited = call(self._socket, "Audit", vm="soak", full=True)["vm"]
        drifts = [node["drift"] for node in audited["guest_nodes"]]
        assert [drift["placed"] for drift in drifts] == [2 << 20, 2 << 20], drifts
        call(self._socket, "Release", vm="soak")

    def holds(self) -> Holds:
        """What the daemon holds now, once connections are closed and nothing is under way."""
        found: list[Holds] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found) < 3 or len(set(found[-3:])) > 1:
            assert time.monotonic() < deadline, f"it doesn't come to rest: {found[-3:]}"
            time.sleep(0.1)
            found.append(
                Holds(
                    held.rss_bytes(self._pid),
                    held.descriptors(self._pid).total(),
                    held.mappings(self._pid),
                    held.threads(self._pid),
                    held.children(self._pid),
                )
            )
        return found[-1]


@contextmanager
def soaking() -> Iterator[Soak]:
    """A daemon of its own, which takes no part of the machine's."""
    with tempfile.TemporaryDirectory(prefix="gmemd-soak-") as name:
        directory = Path(name)
        (directory / "vms.d").mkdir()
        (directory / "vms.d/soak.yaml").write_text(SPEC)
        socket, config = directory / "io.gmemd", directory / "gmemd.yaml"
        config.write_text(
            f"vms_directories: [{directory}/vms.d]\nsocket: {socket}\n"
            f"state_directory: {directory}/state\nmetrics: {{listen: []}}\ndiscovery: false\n"
            "admission: {reserve: 0.1%, reserve_minimum: 16MiB}\n"
        )
        command = [sys.executable, "-m", "gmemd", "daemon", "--config", str(config)]
        with (directory / "log").open("wb") as log:
            daemon = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        with daemon:
            try:
                _await(socket, daemon, directory / "log")
                yield Soak(socket, daemon.pid)
            finally:
                daemon.terminate()


def _await(socket: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert daemon.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            call(socket, "List")
        except NoDaemonError:
            time.sleep(0.05)
        else:
            return


def grown(before: Holds, after: Holds, most_growth_bytes: int) -> list[str]:
    """What has grown by more than it may, which nothing but memory may at all."""
    more = after.memory_bytes - before.memory_bytes
    wrong = [f"memory by {more >> 10} KiB"] if more > most_growth_bytes else []
    for name in ("fds", "mappings", "threads", "children"):
        was, now = getattr(before, name), getattr(after, name)
        if now > was:
            wrong.append(f"{name} from {was} to {now}")
    return wrong


def main() -> int:
    """Soak, and tell how it went."""
    parser = argparse.ArgumentParser(prog="tests.kernel.soak", description=__doc__)
    parser.add_argument("--cycles", type=int, default=2000)
    args = parser.parse_args()
    with soaking() as soak:
        began = time.monotonic()
        for _ in range(min(WARM_UP_CYCLES, args.cycles)):
            soak.cycle()
        before = halfway = after = soak.holds()
        print(f"after {WARM_UP_CYCLES} cycles: {before}", flush=True)  # noqa: T201
        for number in range(WARM_UP_CYCLES + 1, args.cycles + 1):
            soak.cycle()
            if number % 250 == 0 or number == args.cycles:
                after = soak.holds()
                print(f"after {number} cycles: {after}", flush=True)  # noqa: T201
                if number <= args.cycles // 2:
                    halfway = after
        seconds = time.monotonic() - began
    wrong = grown(before, after, MOST_GROWTH_BYTES)
    if args.cycles >= LONG_CYCLES:
        wrong += grown(halfway, after, MOST_LATE_GROWTH_BYTES)
    print(f"{seconds:.0f} s; {'grown: ' + ', '.join(wrong) if wrong else 'as it was'}")  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
