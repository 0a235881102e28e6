"""deploy/try.sh on this very machine, as a newcomer runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TRY = str(REPOSITORY / "deploy/try.sh")


def test_once_shows_everything_placed() -> None:
    done = subprocess.run(
        ["bash", TRY, "--once"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all memory is where it should be" in done.stderr
    assert "backend " in done.stderr
    assert "web-01  ready" in done.stdout
    assert "metrics: http://127.0.0.1:" in done.stdout


def test_it_stays_until_interrupted_and_leaves_nothing() -> None:
    with subprocess.Popen(
        ["bash", TRY],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        said = []
        for line in lines:
            said.append(line)
            if "staying until Ctrl-C" in line:
                break
        directories = daemon_directories(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        said += list(lines)
        assert process.wait() == 130, "".join(said)
    assert len(directories) == 1
    assert not directories[0].exists()


def daemon_directories(parent: int) -> list[Path]:
    """The folders of the daemons that the process started, by their command lines."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = []
    for child in children:
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "--config" in words:
            found.append(Path(words[words.index("--config") + 1]).parent)
    return found


def test_an_unknown_argument_is_refused() -> None:
    done = subprocess.run(["bash", TRY, "--twice"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "hint: deploy/try.sh [--lab] [--once]" in done.stderr
