"""What the daemon costs with many VMs: start, reload, calls, a scrape, memory, and doing nothing.

`python -m tests.bench.size --minutes 10` is the long look at what it uses when nobody asks.
The VMs are real ones of `source: create`, with guest nodes so small that hundreds of them fit.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.client.blocking import call
from tests.kernel.daemon.conftest import REPOSITORY, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VMS = 500
GUEST_NODES = 4
REPEATS = 5
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600
SETTLE_SECONDS = 10.0
"""After the start, before anything is measured: the first audits and what they bring about."""

IDLE_SECONDS = 60.0
"""One audit interval: less would miss some of what is done in each."""

_TICKS = os.sysconf("SC_CLK_TCK")
_AUDIT_CPU = "gmemd_audit_cpu_seconds_total"
_GUEST_NODE = """\
  - id: {id}
    vcpus: {id}
    memory: {kib}KiB
    host_nodes: 0
    policy: bind
"""


@dataclass(frozen=True)
class Row:
    """One figure; ``share`` is of one core."""

    what: str
    figure: float
    unit: str


def write_vm(daemon: Daemon, number: int, *, kib: int, prefault: bool) -> Path:
    """A spec of a VM with four guest nodes."""
    name = f"vm-{number:03d}"
    path = daemon.vms / f"{name}.yaml"
    backend = "guest_memfd" if prefault else "memfd"
    path.write_text(
        f"version: 1\nvm: {name}\nsource: create\nbackend: {backend}\n"
        f"prefault: {str(prefault).lower()}\nguest_nodes:\n"
        + "".join(_GUEST_NODE.format(id=node, kib=kib) for node in range(GUEST_NODES))
    )
    return path


class _Executed(Daemon):
    """As it is started on a host: not forked from a process that has all it imports."""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-s", "-m", "gmemd", *arguments]

    def status(self) -> None:
        """`gmemd status --json`."""
        command = self.command("status", "--json", "--socket", str(self.socket))
        subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def many_vms(
    vms: int, *, prefault: bool, discovery: bool = True
) -> Iterator[tuple[_Executed, float]]:
    """A daemon with so many VMs, all ready, and the seconds that took from its start."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = _Executed(Path(folder))
        daemon.configure(discovery=discovery)
        for number in range(vms):
            write_vm(daemon, number, kib=1024, prefault=prefault)
        begun = time.monotonic()
        with daemon.running():
            while (ready := states(daemon).get("ready", 0)) < vms:
                time.sleep(POLL_SECONDS)
                if time.monotonic() > begun + PATIENCE_SECONDS:
                    raise TimeoutError(f"{ready} of {vms} VMs are ready")
            yield daemon, time.monotonic() - begun
            assert daemon.process is not None
            if daemon.process.poll() is None:
                daemon.stop(signal.SIGTERM)


def states(daemon: Daemon) -> dict[str, int]:
    """How many VMs are in each state, by the metrics: the quickest way to ask."""
    wanted = {name: value for name, value in daemon.metrics().items() if value}
    found: dict[str, int] = {}
    for name in wanted:
        if name.startswith("gmemd_vm_state{"):
            state = name.split('state="')[1].split('"')[0]
            found[state] = found.get(state, 0) + 1
    return found


def measure(vms: int = VMS, *, seconds: float = IDLE_SECONDS, prefault: bool = False) -> list[Row]:
    """Everything, of one daemon."""
    with many_vms(vms, prefault=prefault) as (daemon, start_seconds):
        assert daemon.process is not None
        pid = daemon.process.pid
        rows = [Row(f"start until {vms} VMs are ready", start_seconds, "s")]
        time.sleep(SETTLE_SECONDS)
        rows += _idle(daemon, pid, seconds)
        rows.append(Row("resident memory, then", resident_mib(pid), "MiB"))
        for what, do in (
            ("reload of one changed file", lambda: _reload(daemon)),
            ("API: List", lambda: call(daemon.socket, "List")),
            ("API: Describe", lambda: call(daemon.socket, "Describe", vm="vm-000")),
            ("gmemd status --json", daemon.status),
            ("scrape", lambda: scrape(daemon)),
            ("scrape, gzip", lambda: scrape(daemon, gzip=True)),
        ):
            rows.append(Row(what, _median_seconds(do) * 1000, "ms"))
        rows.append(Row("resident memory, at the end", resident_mib(pid), "MiB"))
    return rows


def _idle(daemon: Daemon, pid: int, seconds: float) -> list[Row]:
    """CPU time while nobody asks anything, in percent of a core; audits' own beside it."""
    audits = daemon.metrics()[_AUDIT_CPU]
    used, begun = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    used = cpu_seconds(pid) - used
    audits = daemon.metrics()[_AUDIT_CPU] - audits
    return [
        Row(f"CPU when idle, over {took:.0f} s", 100 * used / took, "% of a core"),
        Row("of which audits", 100 * audits / took, "% of a core"),
    ]


def _reload(daemon: Daemon) -> None:
    """Change one file, and reload."""
    path = daemon.vms / "vm-001.yaml"
    text = path.read_text()
    tolerance = "drift_tolerance: 2%\n"
    path.write_text(text.replace(tolerance, "") if tolerance in text else text + tolerance)
    call(daemon.socket, "Reload")


def scrape(daemon: Daemon, *, gzip: bool = False) -> int:
    """Ask for the metrics; returns the bytes that came."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    connection.request(
        "GET", "/metrics", headers={"Accept-Encoding": "gzip" if gzip else "identity"}
    )
    try:
        return len(connection.getresponse().read())
    finally:
        connection.close()


def _median_seconds(do: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        do()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def resident_mib(pid: int) -> float:
    """The memory of a process that is its own, or a file's that it maps but not its VMs'."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssFile")) / 1024


def table(rows: list[Row]) -> str:
    """The rows as text."""
    return "\n".join(f"{row.what:40} {row.figure:10.2f} {row.unit}" for row in rows)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.size", description=__doc__)
    parser.add_argument("--vms", type=int, default=VMS, help="how many (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long it does nothing")
    parser.add_argument(
        "--prefault", action="store_true", help="give them their memory: 4 MiB each"
    )
    args = parser.parse_args()
    print(table(measure(args.vms, seconds=args.minutes * 60, prefault=args.prefault)))


if __name__ == "__main__":
    main()
