"""One audit for little: what the rolling scan saw is taken while it holds, and no longer."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.budget import CpuBudget
from gmemd.audit.rolling import RollingScan
from gmemd.audit.vm import AuditedRegion
from gmemd.audit.watching import Watch, key_of, watch_vm
from gmemd.spec.model import Backend
from tests.kernel.audit.conftest import MIB, PAGE, Memory
from tests.unit.daemon.vms import region_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.audit.model import RegionAudit

SIZE = 16 * MIB


@pytest.fixture
def memory(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SIZE)


@pytest.fixture
def rolling() -> RollingScan:
    return RollingScan(CpuBudget(1e9), window_bytes=2 * MIB)


def audited(memory: Memory) -> AuditedRegion:
    plan = region_plan(size_bytes=memory.size_bytes)
    return AuditedRegion(memory.fd, replace(plan, backend=Backend.GUEST_MEMFD))


def look(memory: Memory, rolling: RollingScan, **how: object) -> RegionAudit:
    given = {"sample_pages": 256, "fresh_seconds": 60.0, "at_once_bytes": SIZE} | how
    watch = Watch(random.Random(1), **given)
    (region,) = watch_vm("vm", [audited(memory)], rolling, watch).regions
    return region


def test_what_is_small_is_seen_whole_at_once(memory: Memory, rolling: RollingScan) -> None:
    memory.touch(0, 1000)
    before = time.time()
    seen = look(memory, rolling)
    assert (seen.resident_bytes, seen.sample) == (1000 * PAGE, None)
    assert seen.verified_timestamp is not None
    assert before <= seen.verified_timestamp <= time.time()


def test_what_is_large_is_sampled_until_it_was_seen_whole(
    memory: Memory, rolling: RollingScan
) -> None:
    memory.allocate(0, SIZE // PAGE)
    seen = look(memory, rolling, at_once_bytes=SIZE - 1)
    assert seen.sample is not None
    assert (seen.resident_bytes, seen.verified_timestamp) == (SIZE, None)
    rolling.scan_now(key_of(audited(memory)))
    seen = look(memory, rolling, at_once_bytes=SIZE - 1)
    assert seen.sample is None
    assert seen.rolled
    seen = look(memory, rolling, fresh_seconds=0.0)
    assert seen.sample is not None
    assert seen.verified_timestamp is not None


def test_what_nobody_uses_is_as_it_was_seen(memory: Memory, rolling: RollingScan) -> None:
    memory.allocate(0, SIZE // PAGE)
    look(memory, rolling, idle=True)
    assert look(memory, rolling, idle=True, fresh_seconds=0.0).sample is None


def test_what_was_used_since_is_not_as_it_was_seen(memory: Memory, rolling: RollingScan) -> None:
    """A VMM fills its memory and exits; it is kept."""
    assert look(memory, rolling, idle=True).resident_bytes == 0
    key = key_of(audited(memory))
    rolling.note_use(key)
    memory.touch(0, SIZE // PAGE)
    rolling.note_idle(key)
    seen = look(memory, rolling, idle=True, fresh_seconds=0.0)
    assert (seen.resident_bytes, seen.rolled) == (SIZE, False)


def test_what_was_allocated_by_gmemd_itself_is_seen_anew(
    memory: Memory, rolling: RollingScan
) -> None:
    assert look(memory, rolling, idle=True).resident_bytes == 0
    rolling.forget(key_of(audited(memory)))
    memory.allocate(0, SIZE // PAGE)
    assert look(memory, rolling, idle=True).resident_bytes == SIZE


def test_of_what_is_out_of_sight_not_a_page_was_looked_at(
    memory: Memory, rolling: RollingScan
) -> None:
    memory.touch(0, 100)
    seen = look(memory, rolling, readable=False)
    assert (seen.unknown_bytes, seen.verified_timestamp) == (100 * PAGE, None)
