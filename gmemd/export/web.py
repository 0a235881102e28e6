"""The protection in force: read again when a file of it changes, and kept when that went wrong."""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gmemd.export.protection import Reading, stamp_of
from gmemd.spec.problems import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import Metric

    from gmemd.export.protection import Protection

log = logging.getLogger(__name__)

MOST_SESSIONS = 1000
"""Sessions of TLS 1.2 that OpenSSL keeps to be resumed, 1.1 KiB each, before all are forgotten; its
own limit is twenty times as high."""


class Web(Collector):
    """What protects the metrics now, and a metric that tells whether it is the newest there is.

    Raises SpecError where the first version can't be used: nothing is served without what was
    asked for. Safe to use from any thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._trouble = ""
        self._reading = Reading(path)
        self._protection = self._reading.protection()
        self._warn(())

    def protection(self) -> Protection:
        """The protection for a new connection; costs a look at each file's inode."""
        with self._lock:
            stamps = self._reading.stamps
            if any(stamp_of(path) != stamp for path, stamp in stamps.items()):
                self._read_again(is_news=True)
            elif not self._reading.is_settled or _is_crowded(self._protection):
                self._read_again(is_news=False)
            return self._protection

    def collect(self) -> Iterator[Metric]:
        """Whether the files could be used."""
        yield GaugeMetricFamily(
            "gmemd_web_config_last_reload_successful",
            "Whether web.yaml and the files that it names could be used when they last changed.",
            value=float(not self._trouble),
        )

    def _read_again(self, *, is_news: bool) -> None:
        """Put the files in force as they are now, if they are good; say so where that is news."""
        self._reading = Reading(self._path)
        before = self._protection
        try:
            self._protection = self._reading.protection()
        except SpecError as error:
            if error.in_one_line != self._trouble:
                self._trouble = error.in_one_line
                log.error(  # noqa: TRY400  where it was found tells nobody anything
                    "%s can't be used, what it was before stays in force: %s",
                    self._path,
                    self._trouble,
                )
            return
        self._trouble = ""
        if is_news:
            log.info("%s was read again: %s", self._path, self._protection.words)
        self._warn(before.warnings)

    def _warn(self, told: tuple[str, ...]) -> None:
        for warning in self._protection.warnings:
            if warning not in told:
                log.warning("%s", warning)


def _is_crowded(protection: Protection) -> bool:
    context = protection.context
    return context is not None and context.session_stats()["number"] > MOST_SESSIONS
