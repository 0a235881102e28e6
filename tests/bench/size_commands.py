"""How long commands take from their start to their end, beside an interpreter that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.daemon.conftest import REPOSITORY, Daemon

if TYPE_CHECKING:
    from collections.abc import Sequence

REPEATS = 15
VMS = 3
NOTHING = "python3 -c pass"


@dataclass(frozen=True)
class Row:
    """A command: its median, and how many times that of the interpreter beside it.

    ``least_ratio`` is that of the quickest of each, which nothing else got in the way of.
    """

    command: str
    seconds: float
    ratio: float
    least_ratio: float


def compare(*, repeats: int = REPEATS) -> list[Row]:
    """Medians of interleaved repeats; ratios are medians of those taken in turn."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder))
        names = [f"vm-{number}" for number in range(VMS)]
        for name in names:
            daemon.write(name)
        gmemd = [sys.executable, "-m", "gmemd"]
        socket = ["--socket", str(daemon.socket)]
        commands = {
            NOTHING: [sys.executable, "-c", "pass"],
            "gmemd --help": [*gmemd, "--help"],
            "gmemd status --json": [*gmemd, "status", "--json", *socket],
            "gmemd status": [*gmemd, "status", *socket],
            "gmemd check": [*gmemd, "check", "--config", str(daemon.config)],
        }
        with daemon.running():
            for name in names:
                daemon.wait_for(name, "ready")
            taken: dict[str, list[float]] = {command: [] for command in commands}
            for _ in range(repeats):
                for command, argv in commands.items():
                    taken[command].append(_seconds(argv))
    return [
        Row(
            command,
            statistics.median(mine),
            statistics.median(a / b for a, b in zip(mine, taken[NOTHING], strict=True)),
            min(mine) / min(taken[NOTHING]),
        )
        for command, mine in taken.items()
    ]


def _seconds(argv: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def table(rows: list[Row]) -> str:
    """The rows as text."""
    return "\n".join(
        f"{row.command:24} {row.seconds * 1000:8.1f} ms {row.ratio:6.2f}x"
        f" (least {row.least_ratio:6.2f}x)"
        for row in rows
    )
