from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.cli.progress import progress_bar

if TYPE_CHECKING:
    import pytest

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys
from gmemd.cli import progress
progress.PATIENCE_SECONDS = float(sys.argv[1])
with progress.progress_bar("waiting") as note:
    sys.stdin.readline()
    note(0.25, "a: provisioning")
    sys.stdin.readline()
"""


def test_without_a_terminal_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    del capsys  # it takes stderr's place
    with progress_bar("waiting") as note:
        assert note is None


def started(patience_seconds: float) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(patience_seconds)],
        cwd=REPOSITORY,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    return process, ours


def read_until(fd: int, words: bytes) -> None:
    shown = b""
    while words not in shown:
        shown += os.read(fd, 4096)


def test_a_bar_comes_before_there_is_anything_to_note() -> None:
    process, terminal = started(0.0)
    with process:
        assert process.stdin is not None
        read_until(terminal, b"waiting")
        process.stdin.write(b"\n")
        process.stdin.flush()
        read_until(terminal, b"25%")
        process.communicate(b"\n")
    os.close(terminal)
    assert process.returncode == 0


def test_what_is_done_soon_shows_nothing() -> None:
    process, terminal = started(1000.0)
    with process:
        process.communicate(b"\n\n")
    os.set_blocking(terminal, False)
    try:
        shown = os.read(terminal, 4096)
    except OSError:  # EIO: the other end is closed and nothing was written
        shown = b""
    os.close(terminal)
    assert (process.returncode, shown) == (0, b"")
