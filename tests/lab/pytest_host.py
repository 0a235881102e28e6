"""On the host: tests that need the lab run there, and report here as if they had run here.

A test belongs to the lab by its folder (`LAB_FOLDERS`), by ``@pytest.mark.lab(variant=…)``, or
because this host lacks what ``@pytest.mark.needs("kvm", …)`` names. Each variant is booted once,
and pytest inside streams its reports through the share; variants with much to do have two
machines. One runs beside the host's own tests, which leave a CPU for it, and two when these are
done; what they report waits until then.
"""

from __future__ import annotations

import functools
import json
import queue
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from tests.lab.errors import LabError
from tests.lab.image import cache_directory, ensure_image
from tests.lab.machine import VARIANTS
from tests.lab.pytest_guest import REPORTS_FILE, TESTS_FILE, TESTS_VARIABLE
from tests.lab.running import POLL_SECONDS, REPOSITORY, Lab

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

LAB_FOLDERS = {"tests/numa": "default", "tests/service": "systemd"}
# What takes longest begins first, so that two machines end about together.
ORDER = ("systemd", "default", "movable", "old-kernel")
MACHINES = {"systemd": 2, "default": 2}
# What takes seconds on a machine takes minutes in an emulated one.
TEST_SECONDS = 900
SILENCE_SECONDS = TEST_SECONDS + 120
LOG_LINES = 30
STOP_SECONDS = 10


class LabRouting:
    """The plugin: takes the lab's tests out of the host's loop and runs them in their machines."""

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leaves the lab's tests out if that is asked for."""
        if config.getoption("no_lab"):
            config.hook.pytest_deselected(items=[item for item in items if variant_of(item)])
            items[:] = [item for item in items if not variant_of(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """The host's own tests, and one machine for each variant that has tests."""
        if session.config.option.collectonly:
            return (yield)
        everything = list(session.items)
        in_lab = {item: variant_of(item) for item in everything}
        labs = [
            LabSession(session, variant, items, part)
            for variant in sorted(VARIANTS, key=ORDER.index)
            for part, items in parts_of(
                [item for item in everything if in_lab[item] == variant], MACHINES.get(variant, 1)
            )
        ]
        session.items[:] = [item for item in everything if in_lab[item] is None]
        try:
            with _started(session.config, labs) as machines:
                result = yield
                machines.one_more()
                for lab in labs:
                    lab.report()
        finally:
            session.items[:] = everything
        return result


def variant_of(item: pytest.Item) -> str | None:
    """The variant of the lab that a test runs in; None if it runs on this host."""
    folder = next((name for name in LAB_FOLDERS if item.nodeid.startswith(f"{name}/")), None)
    marker = item.get_closest_marker("lab")
    if marker is not None:
        variant = marker.kwargs.get("variant", LAB_FOLDERS.get(folder or "", "default"))
        if variant not in VARIANTS:
            raise pytest.UsageError(f"{item.nodeid}: the lab has no variant {variant!r}")
        return str(variant)
    if folder is not None:
        return LAB_FOLDERS[folder]
    needed = {name for mark in item.iter_markers("needs") for name in mark.args}
    return "default" if needed - host_features() else None


@functools.cache
def host_features() -> frozenset[str]:
    """The kernel features that this host has, by the names that `gmemd host` uses."""
    from gmemd.host.features import probe_features  # noqa: PLC0415

    return frozenset(name for name, feature in probe_features().items() if feature.supported)


def parts_of(
    items: Sequence[pytest.Item], n_machines: int
) -> Iterator[tuple[str, Sequence[pytest.Item]]]:
    """The items by machine, each with its name: files whole, and neighbours on different ones."""
    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in items))
    n_machines = min(n_machines, len(files))
    for number in range(n_machines):
        chosen = set(files[number::n_machines])
        name = f"{number + 1} of {n_machines}" if n_machines > 1 else ""
        yield name, [item for item in items if item.nodeid.partition("::")[0] in chosen]


class Machines:
    """Runs the labs in their order, one at a time until one more may run beside it."""

    def __init__(self, labs: Sequence[LabSession]) -> None:
        self._labs = labs
        self._waiting: queue.SimpleQueue[LabSession] = queue.SimpleQueue()
        for lab in labs:
            self._waiting.put(lab)
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
        for lab in self._labs:
            lab.stop()
        for thread in self._threads:
            thread.join(STOP_SECONDS)  # it may also wait for others' machines, and dies with us

    def _work(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait().run()


@contextmanager
def _started(config: pytest.Config, labs: Sequence[LabSession]) -> Iterator[Machines]:
    """Have the machines run, one at a time; at the end none runs any more."""
    machines = Machines(labs)
    try:
        with _uncaptured(config):
            if labs:
                ensure_image()
    except LabError as error:
        for lab in labs:
            lab.fail(error.explain())
        yield Machines([])
        return
    machines.one_more()
    try:
        yield machines
    finally:
        machines.stop()


class LabSession:
    """One machine's tests: their reports as they come, and an error for each that didn't.

    ``run`` is for a thread, which never touches pytest; ``report`` is for pytest's own. ``part``
    says which of the variant's machines it is, if there are several.
    """

    def __init__(
        self, session: pytest.Session, variant: str, items: Sequence[pytest.Item], part: str = ""
    ) -> None:
        self._session = session
        self._variant = variant
        self._part = part
        self._items = {item.nodeid: item for item in items}
        self._unfinished = dict(self._items)
        self._running: str | None = None
        self._not_collected: dict[str, str] = {}
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._problem = ""
        self._log = b""
        self._stopping = threading.Event()

    def fail(self, problem: str) -> None:
        """Lets no machine run: that is why each of its tests fails."""
        self._problem = problem
        self._lines.put(None)

    def stop(self) -> None:
        """Ends the machine, if it still runs."""
        self._stopping.set()

    def run(self) -> None:
        """Runs the machine to its end, and passes on what comes from it."""
        try:
            code = self._run_logged()
            self._problem = f"the lab's pytest ended with exit code {code} before this test"
        except LabError as error:
            self._problem = error.explain()
        except Exception as error:  # noqa: BLE001  told as the failure of its tests
            self._problem = f"{type(error).__name__}: {error}"
        finally:
            self._lines.put(None)

    def report(self) -> None:
        """Reports every test, live from now on. Raises as pytest's own loop does on -x."""
        part = f" ({self._part})" if self._part else ""
        headline = f"lab, variant {self._variant}{part}: {len(self._items)} tests"
        with _terminal(self._session.config, headline):
            while (line := self._lines.get()) is not None:
                self._take(json.loads(line))
                self._stop_if_asked()
            name = "-".join(["pytest", self._variant, *self._part.split()[:1]])
            (cache_directory() / f"{name}.log").write_bytes(self._log)
            self._report_lost(self._problem, self._log.decode(errors="replace"))
        self._stop_if_asked()

    def _run_logged(self) -> int:
        with tempfile.TemporaryFile() as log:
            try:
                return self._run_machine(log)
            finally:
                log.seek(0)
                self._log = log.read()

    def _run_machine(self, log: BinaryIO) -> int:
        with ExitStack() as stack:
            lab = Lab(
                VARIANTS[self._variant],
                self._command(),
                environment={TESTS_VARIABLE: "/run/lab"},
                stdout=log,
                stderr=log,
                files={TESTS_FILE: json.dumps(list(self._items))},
                quiet=True,
            )
            stack.enter_context(lab)
            reports = ReportStream(lab.share / REPORTS_FILE)
            while True:
                try:
                    code = lab.poll()
                finally:
                    for line in reports.new_lines():
                        self._lines.put(line)
                if code is not None:
                    return code
                if self._stopping.is_set():
                    raise LabError("the lab was stopped before its tests were done")
                if reports.silent_seconds() > SILENCE_SECONDS:
                    raise LabError(
                        f"no report came for {SILENCE_SECONDS} s", detail=lab.console_tail()
                    )
                time.sleep(POLL_SECONDS)

    def _command(self) -> list[str]:
        config = self._session.config
        files = sorted({str(item.path.relative_to(REPOSITORY)) for item in self._items.values()})
        command = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors"]
        command += ["-o", f"timeout={TEST_SECONDS}", f"--tb={config.option.tbstyle}"]
        return command + files

    def _take(self, message: dict[str, Any]) -> None:
        if nodeid := message.get("started"):
            self._running = nodeid
            if item := self._items.get(nodeid):
                item.ihook.pytest_runtest_logstart(nodeid=nodeid, location=item.location)
            return
        if module := message.get("not_collected"):
            self._not_collected[module] = message["why"]
            return
        config = self._session.config
        report = config.hook.pytest_report_from_serializable(config=config, data=message["report"])
        item = self._items[report.nodeid]
        item.ihook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            item.ihook.pytest_runtest_logfinish(nodeid=report.nodeid, location=item.location)
            self._unfinished.pop(report.nodeid)
            self._running = None

    def _report_lost(self, problem: str, log: str) -> None:
        """An error for each test without a result, the first one with all that is known."""
        known = [problem, *log.splitlines()[-LOG_LINES:]]
        for nodeid, item in self._unfinished.items():
            running = ["this test was running in the lab"] if nodeid == self._running else []
            why = self._not_collected.get(nodeid.split("::", maxsplit=1)[0])
            report = pytest.TestReport(
                nodeid=nodeid,
                location=item.location,
                keywords={},
                outcome="failed",
                longrepr="\n".join([*running, *known]) if why is None else why,
                when="setup",
            )
            item.ihook.pytest_runtest_logreport(report=report)
            if why is None:
                known = [problem.splitlines()[0], "the first of these errors has the details"]

    def _stop_if_asked(self) -> None:
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)


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


@contextmanager
def _terminal(config: pytest.Config, line: str) -> Iterator[None]:
    """Writes a line, and lets what the lab says about itself through pytest's capturing."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(line)
    with _uncaptured(config):
        yield


@contextmanager
def _uncaptured(config: pytest.Config) -> Iterator[None]:
    """Lets through what is written to the terminal."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    with ExitStack() as stack:
        if capture is not None:
            stack.enter_context(capture.global_and_fixture_disabled())
        yield
