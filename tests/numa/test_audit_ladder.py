"""The cheaper rungs on four nodes: what is kept notices a page that moved house, samples hold."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from gmemd.audit.budget import CpuBudget
from gmemd.audit.held import sample_region
from gmemd.audit.kept import KeptWindows
from gmemd.audit.rolling import RollingRegion, RollingScan
from gmemd.audit.scan import scan_region
from gmemd.drift.design import share_within
from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.kernel.pages import cachestat
from gmemd.spec.model import PolicyMode
from tests.numa.placing import MIB, PAGE, PlacedVm, region_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 * MIB
PAGES = SIZE // PAGE
SEED = 20261121
TRIALS = 50
DRAWN = 500
SHARES = (0.0, 0.0001, 0.01, 0.5)


@pytest.fixture
def vm() -> Iterator[PlacedVm]:
    with PlacedVm(region_spec(PolicyMode.BIND, 1, size=SIZE)) as placed:
        yield placed


def refill(fd: int, pages: list[int], node: int) -> None:
    """Puts pages that aren't there, or are no more, on a node."""
    bind_range(fd, 0, SIZE, MemPolicy("bind", frozenset({node})))
    for page in pages:
        punch_hole(fd, page * PAGE, PAGE)
        allocate(fd, page * PAGE, PAGE)
    bind_range(fd, 0, SIZE, MemPolicy("bind", frozenset({1})))


def test_pages_made_again_on_another_node_are_found_exactly(vm: PlacedVm) -> None:
    allocate(vm.fd, 0, SIZE)
    changed = sorted(random.Random(SEED).sample(range(PAGES), 300))
    with KeptWindows(8 * MIB) as kept:
        first = kept.look(vm.fd, 0, SIZE)
        assert first is not None
        assert first.scan.by_node == {1: PAGES}
        refill(vm.fd, changed, 3)
        second = kept.look(vm.fd, 0, SIZE)
        assert second is not None
    assert second.scan.by_node == {1: PAGES - 300, 3: 300}
    assert (second.read_pages, second.lost_pages) == (300, 300)
    assert [page + n for page, count in second.runs for n in range(count)] == changed
    (seen,) = vm.audit().regions
    assert seen.by_node == {1: (PAGES - 300) * PAGE, 3: 300 * PAGE}
    assert cachestat(vm.fd, 0, SIZE).pages == PAGES


def test_a_rolling_scan_tells_what_a_scan_tells(vm: PlacedVm) -> None:
    allocate(vm.fd, 0, SIZE // 2)
    with KeptWindows(8 * MIB) as kept:
        rolling = RollingScan(CpuBudget(1e9), kept=kept, window_bytes=8 * MIB)
        rolling.add("db", RollingRegion(vm.fd, 0, 0, SIZE, PAGE, idle=True))
        rolling.scan_now("db")
        for _ in range(2):
            for _ in range(8):
                rolling.step()
            found = rolling.verified("db")
            assert found is not None
            assert replace(found.audit, verified_timestamp=None, rolled=False) == scan_region(
                vm.fd, guest_node=0, index=0, size_bytes=SIZE, page_size=PAGE
            )
            refill(vm.fd, [5, 6, 4096], 2)
        rolling.remove("db")


def refill_in_a_row(fd: int, misplaced: int, node: int) -> None:
    """Puts the first pages on a node."""
    bind_range(fd, 0, SIZE, MemPolicy("bind", frozenset({node})))
    allocate(fd, 0, misplaced * PAGE)
    bind_range(fd, 0, SIZE, MemPolicy("bind", frozenset({1})))


def test_the_interval_of_a_sample_holds_the_truth(vm: PlacedVm) -> None:
    """At each share in nearly all trials, at all of them together in 94 % at least.

    Every other trial draws its pages in clusters, as of a large region.
    """
    rng = random.Random(SEED)
    held = {}
    for share, in_a_row in (*((share, False) for share in SHARES), (0.01, True), (0.5, True)):
        punch_hole(vm.fd, 0, SIZE)
        misplaced = round(share * PAGES)
        if in_a_row:
            refill_in_a_row(vm.fd, misplaced, 2)
        else:
            refill(vm.fd, rng.sample(range(PAGES), misplaced), 2)
        allocate(vm.fd, 0, SIZE)
        held[share, in_a_row] = 0
        for trial in range(TRIALS):
            with patch("gmemd.audit.held.cluster_pages", return_value=1 + 3 * (trial % 2)):
                sample = sample_region(
                    vm.fd, guest_node=0, index=0, size_bytes=SIZE, sample_pages=DRAWN, rng=rng
                ).sample
            assert sample is not None
            assert sum(sample.by_node.values()) == sample.drawn == DRAWN
            interval = share_within(sample, lambda node: node == 2)
            held[share, in_a_row] += interval.lower <= misplaced / PAGES <= interval.upper
        assert cachestat(vm.fd, 0, SIZE).pages == PAGES
    assert sum(held.values()) >= 0.94 * TRIALS * len(held), held
    assert min(held.values()) >= 0.9 * TRIALS, held
