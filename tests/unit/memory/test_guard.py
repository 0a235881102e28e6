from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.memory.guard import Guard, next_chunk

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30

ZONE = """Node {node}, zone   {zone}
  pages free     {free}
        min      0
        low      0
        high     0
        spanned  1000000
        present  1000000
        managed  1000000
        cma      0
        protection: (0, 0, 0, 0, 0)
      nr_free_pages {free}
      nr_zone_inactive_anon 0
      nr_zone_active_anon 0
      nr_zone_inactive_file {cache}
      nr_zone_active_file 0
      nr_zone_unevictable 0
      nr_zone_write_pending 0
      nr_free_cma  0
"""


def test_nodes_give_together_what_each_has_above_its_reserve() -> None:
    guard = Guard({2: 100, 3: 100})
    assert guard.headroom({2: 150, 3: 1000}) == 950
    assert guard.headroom({2: 50, 3: 1000}) == 900
    assert guard.headroom({2: 50, 3: 60}) == 0
    assert guard.headroom({}) == 0


def test_an_interleave_ends_with_the_first_of_its_nodes() -> None:
    guard = Guard({0: 100, 1: 100}, shares={0: 0.75, 1: 0.25})
    assert guard.headroom({0: 400, 1: 10_000}) == 400
    assert guard.headroom({0: 10_000, 1: 200}) == 400
    assert guard.headroom({0: 10_000, 1: 100}) == 0


def test_the_fullest_node_is_told_in_proportion() -> None:
    assert Guard({2: 0, 3: 0}).fullest({2: 10, 3: 5}) == 3
    assert Guard({0: 0, 1: 0}, shares={0: 0.9, 1: 0.1}).fullest({0: 50, 1: 10}) == 0


def test_it_reads_the_figures_anew_and_counts_clean_cache(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    zoneinfo = tmp_path / "proc/zoneinfo"
    guard = Guard({1: 0}, root=str(tmp_path))
    for free, cache in ((1000, 24), (10, 0)):
        zoneinfo.write_text(
            ZONE.format(node=0, zone="Normal", free=5, cache=0)
            + ZONE.format(node=1, zone="Normal", free=free, cache=cache)
        )
        assert guard.available() == {1: (free + cache) * 4096}


def test_movable_memory_counts_for_memfd_alone(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    zones = (("Normal", 100), ("Movable", 900))
    text = "".join(ZONE.format(node=0, zone=zone, free=free, cache=0) for zone, free in zones)
    (tmp_path / "proc/zoneinfo").write_text(text)
    assert Guard({0: 0}, root=str(tmp_path)).available() == {0: 100 * 4096}
    assert Guard({0: 0}, movable=True, root=str(tmp_path)).available() == {0: 1000 * 4096}


@pytest.mark.parametrize(
    ("remaining", "headroom", "page_size", "chunk"),
    [
        (100 * GIB, 100 * GIB, 4096, 256 * MIB),
        (100 * GIB, 1 * GIB, 4096, 64 * MIB),
        (100 * GIB, 100 * MIB, 4096, 16 * MIB),
        (100 * GIB, 5 * MIB + 1, 4096, 5 * MIB),
        (100 * GIB, 4095, 4096, 0),
        (100 * GIB, 0, 4096, 0),
        (8192, 100 * GIB, 4096, 8192),
        (0, 100 * GIB, 4096, 0),
        (4 * GIB, 100 * GIB, GIB, GIB),
    ],
)
def test_chunks_shrink_towards_the_reserve(
    remaining: int, headroom: int, page_size: int, chunk: int
) -> None:
    assert next_chunk(remaining, headroom, page_size) == chunk


@given(st.integers(0, 1 << 44), st.integers(0, 1 << 44))
def test_a_chunk_never_takes_more_than_there_is(remaining: int, headroom: int) -> None:
    chunk = next_chunk(remaining, headroom, 4096)
    assert chunk <= min(remaining, headroom)
    assert chunk % 4096 == 0
    assert chunk or min(remaining, headroom) < 4096
