"""A guest_memfd that was taken from a running VM: looked at, and neither kept nor filled."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.held import audit_taken
from gmemd.audit.scan import AuditStoppedError
from gmemd.drift.interval import pages_between
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.kvm import GUEST_MEMFD_MMAP
from gmemd.kernel.pages import cachestat
from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.audit.model import RegionAudit
    from gmemd.kernel.kvm import KvmVm

SIZE = 16 * MIB
PAGES = SIZE // PAGE
SEED = 20261121


def taken(memory: Memory, **options: object) -> RegionAudit:
    before = memory.cached()
    tables = page_tables()
    found = audit_taken(
        memory.fd,
        guest_node=0,
        index=0,
        size_bytes=memory.size_bytes,
        rng=Random(SEED),
        **options,
    )
    assert memory.cached() == before
    assert page_tables() <= tables + 64 * 1024
    return found


def page_tables() -> int:
    """Bytes of this process' page tables."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE"))


def test_a_taken_guest_memfd_in_full_is_a_scan(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(SIZE)
    memory.guest_write(17, 300)
    memory.allocate(2000, 100)
    assert taken(memory, sample_pages=None) == memory.scan(idle=False)
    assert taken(memory, sample_pages=None).resident_bytes == 400 * PAGE
    assert taken(memory, sample_pages=PAGES) == taken(memory, sample_pages=None)


def test_a_taken_guest_memfd_by_sample_allocates_nothing(
    make_memory: Callable[[int], Memory],
) -> None:
    memory = make_memory(SIZE)
    memory.guest_write(0, PAGES // 4)
    memory.allocate(PAGES // 2, PAGES // 4)  # there, and never touched
    covered: list[int] = []
    found = taken(memory, sample_pages=800, progress=covered.append)
    assert sum(covered) == SIZE
    assert found.sample is not None
    assert (found.sample.population, found.sample.drawn) == (PAGES, 800)
    hits = sum(found.sample.by_node.values())
    fewest, most = pages_between(hits, 800, PAGES)
    assert fewest <= PAGES // 2 <= most
    assert (found.exact, found.errors, found.unknown_bytes) == (False, {}, 0)
    assert found.policy is not None
    assert taken(memory, sample_pages=800, policy_kept=False) == replace(found, policy=None)


def test_a_taken_guest_memfds_audit_stops(make_memory: Callable[[int], Memory]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(AuditStoppedError):
        taken(make_memory(SIZE), sample_pages=10, stop=stop)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, "made without the MMAP flag"), (GUEST_MEMFD_MMAP, "private to the guest")],
)
@pytest.mark.parametrize("readable", [True, False])
def test_a_taken_guest_memfd_that_cannot_be_read_is_unknown(
    vm: KvmVm, flags: int, reason: str, *, readable: bool
) -> None:
    fd = vm.create_guest_memfd(SIZE, flags)
    allocate(fd, 0, SIZE // 2)
    found = audit_taken(
        fd,
        guest_node=0,
        index=0,
        size_bytes=SIZE,
        sample_pages=500,
        rng=Random(SEED),
        readable=readable,
    )
    assert cachestat(fd, 0, SIZE).pages == PAGES // 2
    os.close(fd)
    assert found.by_node == {}
    assert found.resident_bytes == found.unknown_bytes
    assert found.errors == {}
    assert ("confidential" if not readable else reason) in found.unknown_reason
    assert found.sample is not None
    assert found.unknown_bytes == pytest.approx(SIZE // 2, rel=0.15)
