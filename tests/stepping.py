"""gmemd's daemon, which kills itself at a step that a file names: ``python3 -m tests.stepping``.

The file holds the step's name, and is gone afterwards, so that the next daemon lives on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

VARIABLE = "GMEMD_TESTS_STEP"
"""The environment variable that names the file."""


def arm() -> None:
    """Have this process die as the file says, if the environment names one."""
    if VARIABLE not in os.environ:
        return
    from gmemd.daemon import steps  # noqa: PLC0415  the daemon's own, whichever is installed

    path, pid, lock = Path(os.environ[VARIABLE]), os.getpid(), threading.Lock()

    def reached(name: str) -> None:
        with lock:
            if not path.exists() or path.read_text() != name:
                return
            path.unlink()
            os.kill(pid, signal.SIGKILL)
            time.sleep(60)  # nothing more is done here until that is taken

    steps.hook = reached


def main() -> int:
    """Run ``gmemd`` with the command line's arguments."""
    from gmemd.cli.main import main as gmemd  # noqa: PLC0415  as above

    arm()
    sys.argv[0] = "gmemd"
    return gmemd()


if __name__ == "__main__":
    sys.exit(main())
