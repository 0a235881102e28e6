"""The lab's machines beside the host's tests: each in a process of its own.

The tests of the host change what a whole process has: its user, its limits, its environment, its
working directory, and they count its descriptors. So nothing of a machine is in their process but
a thread that passes on what comes.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from gmemd.kernel.process import set_parent_death_signal
from tests.lab.errors import LabError
from tests.lab.machine import VARIANTS
from tests.lab.pytest_guest import REPORTS_FILE, TESTS_FILE, TESTS_VARIABLE
from tests.lab.running import POLL_SECONDS, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import BinaryIO

# What takes seconds on a machine takes minutes in an emulated one.
TEST_SECONDS = 900
SILENCE_SECONDS = TEST_SECONDS + 120
STOP_SECONDS = 10


@dataclass(frozen=True)
class Job:
    """What one machine has to do: its variant's name, a pytest's command, and its tests' names."""

    variant: str
    command: Sequence[str]
    nodeids: Sequence[str]


@dataclass(frozen=True)
class Ended:
    """A machine's end: what kept tests from having a result, and what pytest inside printed."""

    problem: str
    log: bytes = b""


class MachineProcess:
    """One machine that runs one pytest; ``received`` gives its reports, line by line, and its end.

    The process is there from the start and waits until the machine may run; it ends itself when
    the thread that made it does.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._received: queue.SimpleQueue[str | Ended] = queue.SimpleQueue()
        fork = multiprocessing.get_context("fork")
        self._connection, theirs = fork.Pipe()
        # A daemon: it is ended with pytest, and no exit of pytest waits for it.
        self._process = fork.Process(target=self._main, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def run(self) -> None:
        """Have the machine run, and pass on what it says until it has ended. For a thread."""
        try:
            self._connection.send("run")
            while True:
                message = self._connection.recv()
                self._received.put(message)
                if isinstance(message, Ended):
                    return
        except (EOFError, OSError):
            self._process.join(STOP_SECONDS)
            code = self._process.exitcode
            self._received.put(Ended(f"the lab's process ended by itself, with exit code {code}"))

    def received(self) -> Iterator[str | Ended]:
        """The lines of its reports as they come, and last its end."""
        while True:
            message = self._received.get()
            yield message
            if isinstance(message, Ended):
                return

    def stop(self) -> None:
        """End the machine and its process, as far as they are still there."""
        self._process.terminate()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _main(self, connection: Connection) -> None:
        _end_with_the_parent()
        with suppress(EOFError, BrokenPipeError):  # the parent is gone
            connection.recv()
            connection.send(self._ended(connection))

    def _ended(self, connection: Connection) -> Ended:
        with tempfile.TemporaryFile() as log:
            try:
                code = self._run_machine(log, connection)
                problem = f"the lab's pytest ended with exit code {code} before this test"
            except LabError as error:
                problem = error.explain()
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001  told as the failure of its tests
                problem = f"{type(error).__name__}: {error}"
            log.seek(0)
            return Ended(problem, log.read())

    def _run_machine(self, log: BinaryIO, connection: Connection) -> int:
        with Lab(
            VARIANTS[self._job.variant],
            self._job.command,
            environment={TESTS_VARIABLE: "/run/lab"},
            stdout=log,
            stderr=log,
            files={TESTS_FILE: json.dumps(self._job.nodeids)},
            quiet=True,
        ) as lab:
            reports = ReportStream(lab.share / REPORTS_FILE)
            while True:
                try:
                    code = lab.poll()
                finally:
                    for line in reports.new_lines():
                        connection.send(line)
                if code is not None:
                    return code
                if reports.silent_seconds() > SILENCE_SECONDS:
                    raise LabError(
                        f"no report came for {SILENCE_SECONDS} s", detail=lab.console_tail()
                    )
                time.sleep(POLL_SECONDS)


class Machines:
    """Runs the machines in their order, as many at a time as it was asked for.

    The processes are children of a thread of their own: the tests count those of theirs.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.processes: list[MachineProcess] = []
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._parent = threading.Thread(target=self._have, args=(jobs,), daemon=True)
        self._parent.start()
        self._started.wait()
        self._waiting: queue.SimpleQueue[MachineProcess] = queue.SimpleQueue()
        for process in self.processes:
            self._waiting.put(process)
        self._threads: list[threading.Thread] = []

    def one_more(self) -> None:
        """Have one more run at a time."""
        name = f"lab-{len(self._threads) + 1}"
        self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """End those that run; the others don't begin."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for process in self.processes:
            process.stop()
        self._stopping.set()
        for thread in (*self._threads, self._parent):
            thread.join(STOP_SECONDS)

    def _have(self, jobs: Sequence[Job]) -> None:
        try:
            self.processes += map(MachineProcess, jobs)
        finally:
            self._started.set()
        self._stopping.wait()

    def _work(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait().run()


class ReportStream:
    """Lines as they are appended to a file; a line is given when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._newest = time.monotonic()

    def new_lines(self) -> Iterator[str]:
        """The whole lines that came since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            self._offset += len(whole)
            self._newest = time.monotonic()
        yield from whole.decode().splitlines()

    def silent_seconds(self) -> float:
        """The time since a line came."""
        return time.monotonic() - self._newest


def _end_with_the_parent() -> None:
    """Leave then as at the end, so that nothing of a machine stays; not at Ctrl-C."""

    def leave(*_signal: object) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    # A handler, as what is ignored would be so in the programs that this one starts, too.
    signal.signal(signal.SIGINT, lambda *_signal: None)
    set_parent_death_signal(signal.SIGTERM)
