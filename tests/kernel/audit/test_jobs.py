"""Several threads see what one sees, stop when they are told to, and their CPU time is counted."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from gmemd.audit.jobs import Jobs
from gmemd.audit.scan import AuditStoppedError, scan_region
from gmemd.kernel.errors import KernelError
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.memfd import create_memfd
from tests.kernel.audit.conftest import MIB, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.audit.model import RegionAudit

SIZE = 64 * MIB


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("jobs", SIZE)
    for at in range(0, SIZE, 3 * MIB):
        allocate(fd, at, MIB)
    yield fd
    os.close(fd)


def scan(fd: int, jobs: Jobs | None, **options: object) -> RegionAudit:
    return scan_region(
        fd,
        guest_node=0,
        index=0,
        size_bytes=SIZE,
        page_size=PAGE,
        window_bytes=MIB,
        jobs=jobs,
        **options,
    )


def test_many_see_what_one_sees(memfd: int) -> None:
    covered: list[int] = []
    busy = threading.Lock()

    def note(length: int) -> None:
        assert busy.acquire(blocking=False), "two at once"
        covered.append(length)
        time.sleep(0.001)
        busy.release()

    with Jobs(4) as jobs:
        found = scan(memfd, jobs, progress=note)
        assert jobs.cpu_seconds > 0
        assert found == scan(memfd, None)
    assert sum(covered) == SIZE
    assert found.resident_bytes == 22 * MIB


def test_what_changes_is_noticed_by_any_of_them(memfd: int) -> None:
    with Jobs(3) as jobs, patch("gmemd.audit.scan.has_changed", return_value=True):
        assert scan(memfd, jobs).errors == {"residency_changed": 1}


def test_they_stop(memfd: int) -> None:
    stop = threading.Event()
    seen = []

    def note(_: int) -> None:
        seen.append(1)
        stop.set()

    with Jobs(3) as jobs, pytest.raises(AuditStoppedError):
        scan(memfd, jobs, stop=stop, progress=note)
    assert len(seen) <= 3


def test_where_one_fails_the_others_end_and_the_next_region_is_whole(memfd: int) -> None:
    looked = []

    def fail(_: int) -> None:
        looked.append(1)
        raise KernelError("scan", 5, "a window")

    with Jobs(3) as jobs:
        with pytest.raises(KernelError):
            scan(memfd, jobs, progress=fail)
        assert len(looked) <= 3
        assert scan(memfd, jobs).resident_bytes == 22 * MIB


def burn() -> None:
    begun = time.thread_time()
    while time.thread_time() - begun < 0.02:
        pass


def test_cpu_time_is_counted_of_all_threads_but_the_callers_own() -> None:
    with Jobs(2) as jobs:
        jobs.run(burn)
        assert 0.04 <= jobs.cpu_seconds < 0.2
    with Jobs(1) as alone:
        alone.run(burn)
        assert alone.cpu_seconds == 0
