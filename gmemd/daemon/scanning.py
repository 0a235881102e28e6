"""The scan that goes on behind everything, in a thread of its own, and what it may use."""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING

from gmemd.audit.budget import CpuBudget
from gmemd.audit.kept import KeptWindows
from gmemd.audit.rolling import RollingScan
from gmemd.errors import GmemdError
from gmemd.spec.config import AuditConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gmemd.audit.rolling import Looked
    from gmemd.memory.regions import Region

log = logging.getLogger(__name__)

LOOKS_PART = 0.5
"""Of the budget, for samples and looks at running VMs; what they leave is the rolling scan's."""

FAILURE_PAUSE_SECONDS = 10.0


class Scanning:
    """A rolling scan of all memory that is watched, with its thread.

    ``whole`` is all that may be spent, ``looks`` the part of it that is for all periodic audits
    but the scan. That has the other part, and what is left of this one.
    """

    def __init__(self) -> None:
        config = AuditConfig()
        self.whole = CpuBudget(config.budget_ratio)
        self.looks = CpuBudget(config.budget_ratio * LOOKS_PART, part_of=self.whole)
        self._scan = CpuBudget(
            config.budget_ratio * (1 - LOOKS_PART), part_of=self.whole, or_spare=True
        )
        self._kept = _keep(config.page_tables_bytes)
        self.rolling = RollingScan(
            self._scan,
            rest_seconds=config.interval_seconds,
            kept=self._kept,
        )
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def page_table_bytes(self) -> int:
        """What keeping windows mapped takes now: page tables, and each page's node."""
        return self._kept.used_bytes if self._kept is not None else 0

    def configure(self, config: AuditConfig) -> None:
        """Take on another budget, from now on."""
        self.whole.resize(config.budget_ratio)
        self.looks.resize(config.budget_ratio * LOOKS_PART)
        self._scan.resize(config.budget_ratio * (1 - LOOKS_PART))
        self.rolling.rest_seconds = config.interval_seconds
        if self._kept is not None:
            self._kept.resize(config.page_tables_bytes)

    def start(self) -> None:
        """Scan, if it isn't being done already."""
        if self._thread is None and not self._stop.is_set():
            self._thread = Thread(target=self._run, name="scan", daemon=True)
            self._thread.start()

    def remove(self, regions: Iterable[Region]) -> None:
        """Look no more at regions whose descriptors are about to be closed; blocks a moment."""
        for region in regions:
            self.rolling.remove(_key(region))

    def forget(self, regions: Iterable[Region]) -> None:
        """Take nothing that was seen of regions for what is any more; blocks a moment."""
        for region in regions:
            self.rolling.forget(_key(region))

    def note_use(self, regions: Iterable[Region]) -> None:
        """Take note that somebody is about to get hold of regions."""
        for region in regions:
            self.rolling.note_use(_key(region))

    def note_idle(self, regions: Iterable[Region]) -> None:
        """Take note that nobody holds regions any more."""
        for region in regions:
            self.rolling.note_idle(_key(region))

    def take_looked(self) -> Looked:
        """Give what the scan has done since the last call."""
        return self.rolling.take_looked()

    def close(self) -> None:
        """End the thread, and unmap everything."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._kept is not None:
            self._kept.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.rolling.run(self._stop)
            except Exception:
                log.exception("the scan of a region failed; it goes on with the others")
                self._stop.wait(FAILURE_PAUSE_SECONDS)


def _key(region: Region) -> tuple[int, int]:
    return region.fd, region.offset


def _keep(budget_bytes: int) -> KeptWindows | None:
    try:
        return KeptWindows(budget_bytes)
    except GmemdError as error:
        log.info("no window stays mapped between two looks: %s", error.in_one_line)
        return None
