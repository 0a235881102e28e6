"""On the host: tests that need the lab run there, and report here as if they had run here.

A test belongs to the lab by its folder (`LAB_FOLDERS`), by ``@pytest.mark.lab(variant=…)``, or
because this host lacks what ``@pytest.mark.needs("kvm", …)`` names. Each variant is booted once,
and pytest inside streams its reports through the share; variants with much to do have two
machines. None runs beside the host's tests of speed, which come first, one beside its others, and
two when these are done; what they report waits until then. (On two CPUs more at once take longer:
what waits for an emulated machine asks it again and again.)
"""

from __future__ import annotations

import functools
import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.errors import LabError
from tests.lab.image import cache_directory, ensure_image
from tests.lab.machine import VARIANTS
from tests.lab.pytest_machines import TEST_SECONDS, Ended, Job, Machines
from tests.lab.running import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

LAB_FOLDERS = {"tests/numa": "default", "tests/service": "systemd"}
# What takes longest begins first, so that two machines end about together.
ORDER = ("systemd", "default", "movable", "old-kernel")
MACHINES = {"systemd": 2, "default": 2}
SPEED_FOLDER = "tests/bench/"
LOG_LINES = 30


class LabRouting:
    """The plugin: takes the lab's tests out of the host's loop and runs them in their machines."""

    def __init__(self) -> None:
        self._after_speed: list[Machines] = []

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
        own = [item for item in everything if in_lab[item] is None]
        session.items[:] = sorted(own, key=lambda item: not item.nodeid.startswith(SPEED_FOLDER))
        try:
            with _started(session.config, labs) as machines:
                self._after_speed.append(machines)
                result = yield
                self._quiet_no_more()
                machines.one_more()
                for lab in labs:
                    lab.report()
        finally:
            session.items[:] = everything
        return result

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Have a machine run beside tests that don't measure."""
        if not nodeid.startswith(SPEED_FOLDER):
            self._quiet_no_more()

    def _quiet_no_more(self) -> None:
        while self._after_speed:
            self._after_speed.pop().one_more()


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


@contextmanager
def _started(config: pytest.Config, labs: Sequence[LabSession]) -> Iterator[Machines]:
    """The machines, none of which runs yet; at the end none runs any more."""
    try:
        with _uncaptured(config):
            if labs:
                ensure_image()
    except LabError as error:
        for lab in labs:
            lab.receive([Ended(error.explain())])
        yield Machines([])
        return
    machines = Machines([lab.job() for lab in labs])
    try:
        for lab, process in zip(labs, machines.processes, strict=True):
            lab.receive(process.received())
        yield machines
    finally:
        machines.stop()


class LabSession:
    """One machine's tests: their reports as they come, and an error for each that didn't.

    ``part`` says which of the variant's machines it is, if there are several.
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
        self._received: Iterable[str | Ended] = ()

    def job(self) -> Job:
        """What its machine has to do."""
        return Job(self._variant, self._command(), list(self._items))

    def receive(self, messages: Iterable[str | Ended]) -> None:
        """Take the reports, and the end after them, from there."""
        self._received = messages

    def report(self) -> None:
        """Reports every test, live from now on. Raises as pytest's own loop does on -x."""
        part = f" ({self._part})" if self._part else ""
        headline = f"lab, variant {self._variant}{part}: {len(self._items)} tests"
        with _terminal(self._session.config, headline):
            for message in self._received:
                if isinstance(message, Ended):
                    self._take_end(message)
                else:
                    self._take(json.loads(message))
                    self._stop_if_asked()
        self._stop_if_asked()

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

    def _take_end(self, end: Ended) -> None:
        """Keeps the log, and gives an error for each test without a result, the first in full."""
        name = "-".join(["pytest", self._variant, *self._part.split()[:1]])
        (cache_directory() / f"{name}.log").write_bytes(end.log)
        known = [end.problem, *end.log.decode(errors="replace").splitlines()[-LOG_LINES:]]
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
                known = [end.problem.splitlines()[0], "the first of these errors has the details"]

    def _stop_if_asked(self) -> None:
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)


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
