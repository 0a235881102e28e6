"""Inside the lab: pytest runs what the host chose, streams its reports, and never skips."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

TESTS_VARIABLE = "GMEMD_LAB_TESTS"
"""Names the folder of the two files below; unset, pytest was started inside by hand."""
TESTS_FILE = "tests.json"
REPORTS_FILE = "reports.jsonl"


class NoSkips:
    """A skip inside the lab is a failure: it has everything, or the lab is at fault."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turns a skip into a failure that says why it was skipped."""
        report = yield
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"skipped inside the lab, which has to have it all: {reason}"
        return report


class ReportSender:
    """Keeps the tests that the host chose, and writes a JSON line for each thing that happens."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._chosen = set(json.loads((folder / TESTS_FILE).read_text()))
        self._file = (folder / REPORTS_FILE).open("a", buffering=1)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves what the host didn't choose out."""
        items[:] = [item for item in items if item.nodeid in self._chosen]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tells the host why tests of a module won't come."""
        if not report.passed:
            self._send({"not_collected": report.nodeid, "why": report.longreprtext})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tells the host which test is running, in case it is the last."""
        self._send({"started": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sends a report of one phase of one test."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send({"report": data})

    def _send(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message, default=str) + "\n")


def register(config: pytest.Config) -> None:
    """Adds what pytest inside the lab needs."""
    config.pluginmanager.register(NoSkips(), "gmemd-lab-no-skips")
    if folder := os.environ.get(TESTS_VARIABLE):
        config.pluginmanager.register(ReportSender(config, Path(folder)), "gmemd-lab-reports")
