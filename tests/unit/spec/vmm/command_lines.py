"""Command lines as what starts VMs writes them; quoted as for a shell, with line breaks."""

from __future__ import annotations

import shlex
from pathlib import Path

_FOLDER = Path(__file__).parents[3] / "fixtures/command-lines"


def argv(name: str) -> list[str]:
    """The words of a command line."""
    return shlex.split((_FOLDER / f"{name}.txt").read_text())
