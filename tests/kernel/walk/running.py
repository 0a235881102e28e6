"""The daemon in this process, beside a thread that uses it, and what it does that it shouldn't."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import gmemd.daemon.adopting
import gmemd.daemon.fleet
import gmemd.daemon.reconcile
import gmemd.daemon.vm
from gmemd.client.blocking import NoDaemonError, call
from gmemd.daemon.service import Daemon, limit_process
from gmemd.daemon.varlink.activation import open_listener
from gmemd.kernel import faults as seam
from gmemd.memory import child
from gmemd.memory.guard import claims
from gmemd.spec.config import load_config
from tests.kernel.daemon.conftest import free_port
from tests.kernel.walk import held
from tests.kernel.walk.faults import Faults
from tests.kernel.walk.helper import BOOTSTRAP
from tests.kernel.walk.standins import put_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PATIENCE_SECONDS = 20.0
RETRY_SECONDS = 0.05

ANOTHER = """\
version: 1
vm: another
source: register
guest_nodes:
  - {id: 0, memory: 1MiB, host_nodes: 0}
"""


class Running:
    """A daemon that runs in this process; ``faults`` are its and its helpers'.

    ``unexpected`` is everything that was logged with a traceback, or ended a thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vms = directory / "vms.d"
        self.vms.mkdir()
        self.socket = directory / "io.gmemd"
        self.port = free_port()
        (directory / "faults").mkdir()
        self.faults = Faults(directory / "faults")
        self.unexpected: list[str] = []
        self.config = directory / "gmemd.yaml"
        self.config.write_text(
            f"vms_directories: [{self.vms}]\nsocket: {self.socket}\n"
            f"state_directory: {directory}/state\n"
            f'metrics: {{listen: ["127.0.0.1:{self.port}"]}}\n'
            "audit: {interval: 1s, budget: 50%}\ndiscovery: false\n"
            "admission: {reserve: 0.1%, reserve_minimum: 16MiB}\n"
        )
        (self.vms / "another.yaml").write_text(ANOTHER)
        self.daemon: Daemon

    def run(self, work: Callable[[Running], None]) -> None:
        """Run the daemon until the work, in a thread of its own, is done."""
        self._take_note()
        limit_process()
        gmemd.daemon.vm.FIRST_RETRY_SECONDS = RETRY_SECONDS
        gmemd.daemon.adopting.TICK_SECONDS = 0.05
        gmemd.daemon.fleet.NEWS_SECONDS = 0.02
        gmemd.daemon.reconcile.EXEC_SECONDS = 0.01
        child.Child = self._child_class()  # type: ignore[misc]
        put_in_place(self.faults.errno_of)
        config = load_config(self.config)
        failed: list[BaseException] = []

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            self.daemon = Daemon(self.config, config)

            def drive() -> None:
                try:
                    self.until(self._answers, "the daemon answers")
                    work(self)
                except BaseException as error:  # noqa: BLE001  raised below
                    failed.append(error)
                finally:
                    loop.call_soon_threadsafe(self.daemon._stop.set)

            thread = threading.Thread(target=drive, name="walk")
            thread.start()
            await self.daemon.serve(listener)
            await loop.run_in_executor(None, thread.join)

        with seam.refusing(self.faults.errno_of), open_listener(config, -1) as listener:
            asyncio.run(serve())
        if failed:
            raise failed[0]

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {what}")
            time.sleep(0.005)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the daemon."""
        return call(self.socket, method, timeout_seconds=PATIENCE_SECONDS, **parameters)

    def counters(self) -> dict[str, float]:
        """What the metrics count of failures: those that only grow."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {
            name: float(value)
            for name, value in pairs
            if "_failures_total" in name or "_errors_total" in name
        }

    def holds(self) -> Counter[str]:
        """What this process holds that a failure may leave behind."""
        snapshot = self.daemon.snapshot
        held_now = Counter({f"fd {name}": count for name, count in held.descriptors().items()})
        held_now["mappings"] = held.mappings()
        held_now["children"] = held.children()
        for node, size in snapshot.committed.items():
            held_now[f"committed on {node}"] = size
        for node, size in claims._bytes.items():
            held_now[f"claimed on {node}"] = size
        return held_now

    def _child_class(running) -> type[child.Child]:  # noqa: N805
        """Helpers that have faults where they are wanted there, and are as ever otherwise."""
        usual = child._BOOTSTRAP
        faulty = BOOTSTRAP.format(directory=str(running.faults.directory))

        class Child(child.Child):
            def __init__(self, module: str, *, fds: Sequence[int] = ()) -> None:
                child._BOOTSTRAP = faulty if running.faults.in_helpers else usual
                super().__init__(module, fds=fds)

        return Child

    def _answers(self) -> bool:
        try:
            self.call("List")
        except NoDaemonError:
            return False
        return True

    def _take_note(self) -> None:
        class Noting(logging.Handler):
            def emit(handler, record: logging.LogRecord) -> None:  # noqa: N805
                if record.exc_info:
                    text = "".join(traceback.format_exception(*record.exc_info))
                    self.unexpected.append(f"{record.getMessage()}\n{text}")

        handlers: list[logging.Handler] = [
            Noting(),
            logging.FileHandler(self.directory / "log"),
        ]
        logging.basicConfig(level=logging.INFO, handlers=handlers, format="%(asctime)s %(message)s")
        threading.excepthook = lambda told: self.unexpected.append(
            "".join(traceback.format_exception(told.exc_value))
        )
        sys.unraisablehook = lambda told: self.unexpected.append(
            "".join(traceback.format_exception(told.exc_value))
        )
