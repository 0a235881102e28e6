"""What a process that logs writes to its stderr: to nobody's, and to the journal's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import logging, sys
import gmemd.daemon.logs as logs
logs.systemd_python = lambda _: None
logs.configure()
log = logging.getLogger("gmemd.daemon.x")
log.info("placed")
log.debug("unseen")
log.error("two\\nlines")
logging.getLogger("somebody").info("unseen")
"""


def test_stderr_gets_plain_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == ["gmemd: INFO: placed", "gmemd: ERROR: two", "lines"]


def test_the_journals_stream_gets_priorities(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w+") as stream:
        status = os.fstat(stream.fileno())
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stderr=stream,
            env=os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            check=True,
        )
        stream.seek(0)
        assert stream.read().splitlines() == ["<6>placed", "<3>two", "<3>lines"]
