"""The tests' VMMs as processes: programs that talk to the daemon, on their own account."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

REPOSITORY = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("vmm.py")


class RefusedByDaemonError(Exception):
    """The daemon answered the program with a varlink error; ``parameters`` are its own."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(f"{name}: {parameters}")
        self.name = name
        self.parameters = parameters


class Vmm:
    """A running program of vmm.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def do(self, what: str, *args: object, **options: object) -> Any:  # noqa: ANN401  whatever it does
        """Has it do something; what came of it."""
        self.begin(what, *args, **options)
        return self.end()

    def begin(self, what: str, *args: object, **options: object) -> None:
        """Has it start something; ``end`` waits for it."""
        assert self.process.stdin is not None
        order = {"do": what, "args": args, "options": options}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:  # noqa: ANN401  as above
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedByDaemonError(answer["error"], answer["parameters"])
        return answer["ok"]

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def vmm(daemon: Daemon) -> Iterator[Vmm]:
    """A program, which is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(daemon.socket)],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Vmm(process)
        finally:
            process.kill()
