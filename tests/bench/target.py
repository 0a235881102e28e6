"""The process that benchmarks look at."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("target.c")


@dataclass(frozen=True)
class Latency:
    """Of the target's own mmap and munmap, in nanoseconds."""

    count: int
    median_ns: int
    p99_ns: int
    p999_ns: int
    worst_ns: int


class Target:
    """A running target; ``latency()`` gives what it measured since the last call."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        self._lines: IO[str] = process.stdout  # type: ignore[assignment]

    def latency(self) -> Latency:
        """What was measured since the last call."""
        self._process.send_signal(signal.SIGUSR1)
        return Latency(*map(int, self._lines.readline().split()))


def build(folder: Path) -> Path:
    """Compiles the target."""
    program = folder / "target"
    subprocess.run(["gcc", "-O2", "-o", program, SOURCE], check=True)
    return program


@contextmanager
def running(program: Path, mebibytes: int, name: str = "bench") -> Iterator[Target]:
    """A target with that much touched memory, which passes for a QEMU by its command line."""
    argv = ["qemu-system-x86_64", "-name", name, "-m", str(mebibytes)]
    with subprocess.Popen(argv, executable=program, stdout=subprocess.PIPE, text=True) as process:
        try:
            target = Target(process)
            line = target._lines.readline()
            if line != "ready\n":
                raise RuntimeError(f"the target with {mebibytes} MiB could not be made")
            yield target
        finally:
            process.kill()
