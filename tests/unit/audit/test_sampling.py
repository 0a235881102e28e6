"""Samples of pages: as many as asked for, each once, none likelier than another."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gmemd.audit.model import RegionAudit, Sample
from gmemd.audit.sampling import (
    LEAST_CLUSTERS,
    allocate,
    cluster_pages,
    count_clusters,
    draw_pages,
    estimated,
    pages_for,
    pages_of,
)
from gmemd.drift.interval import wilson

SEED = 20261121


@given(population=st.integers(0, 5000), n_pages=st.integers(0, 6000), seed=st.integers(0, 1 << 32))
def test_as_many_as_asked_for_distinct_and_in_order(
    population: int, n_pages: int, seed: int
) -> None:
    drawn = draw_pages(population, n_pages, Random(seed))
    assert drawn.typecode == "Q"
    assert len(drawn) == min(population, n_pages)
    assert list(drawn) == sorted(set(drawn))
    assert all(0 <= page < population for page in drawn)


@given(population=st.integers(1, 1 << 52), seed=st.integers(0, 1 << 32))
def test_no_population_is_too_large(population: int, seed: int) -> None:
    drawn = draw_pages(population, 50, Random(seed))
    assert len(set(drawn)) == min(population, 50)
    assert max(drawn) < population


def test_the_same_seed_draws_the_same_pages() -> None:
    assert draw_pages(1 << 31, 1000, Random(1)) == draw_pages(1 << 31, 1000, Random(1))
    assert draw_pages(1 << 31, 1000, Random(1)) != draw_pages(1 << 31, 1000, Random(2))


def chi_square(population: int, n_pages: int, draws: int) -> float:
    """How far the pages' frequencies are from equal, with population - 1 degrees of freedom."""
    rng = Random(SEED)
    seen: Counter[int] = Counter()
    for _ in range(draws):
        seen.update(draw_pages(population, n_pages, rng))
    each = draws * n_pages / population
    distance = sum((seen[page] - each) ** 2 for page in range(population)) / each
    # Without repetition the frequencies vary less than a multinomial's, by this much.
    return distance / (1 - n_pages / population)


def test_every_page_is_as_likely_as_any_other() -> None:
    # 99.9 % of the values of chi square with 99 degrees of freedom are below 149.
    for n_pages in (1, 3, 30, 50, 51, 80, 99):
        assert chi_square(100, n_pages, draws=4000) < 149


def test_every_pair_is_as_likely_as_any_other() -> None:
    rng = Random(SEED)
    pairs = Counter(tuple(draw_pages(10, 2, rng)) for _ in range(45_000))
    assert len(pairs) == 45
    # 99.9 % of the values of chi square with 44 degrees of freedom are below 79.
    assert sum((found - 1000) ** 2 for found in pairs.values()) / 1000 < 79


def test_eight_tebibytes_cost_what_a_gibibyte_costs() -> None:
    started = time.process_time()
    draw_pages(1 << 31, 16_384, Random(SEED))
    assert time.process_time() - started < 1
    tracemalloc.start()
    draw_pages(1 << 31, 100_000, Random(SEED))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_regions_share_in_proportion() -> None:
    assert allocate([3000, 1000], 400, least=1) == [300, 100]
    assert allocate([1 << 22, 1 << 20, 1 << 20], 6000, least=1) == [4000, 1000, 1000]


def test_every_region_has_a_share() -> None:
    assert allocate([1 << 30, 1000], 4096, least=64) == [4096, 64]


def test_a_region_no_larger_than_its_share_is_whole_and_leaves_the_rest_to_others() -> None:
    assert allocate([50, 9000], 4096, least=64) == [50, 4046]
    assert allocate([10, 20], 4096, least=64) == [10, 20]
    assert allocate([512, 1 << 20], 4096, least=512) == [512, 3584]


def test_nothing_to_share() -> None:
    assert allocate([], 4096, least=64) == []
    assert allocate([0, 0], 4096, least=64) == [0, 0]
    assert allocate([0, 100_000], 4096, least=64) == [0, 4096]


@given(
    populations=st.lists(st.integers(0, 1 << 31), max_size=8),
    n_pages=st.integers(0, 1 << 16),
    least=st.integers(0, 512),
)
def test_shares_are_never_more_than_there_is_nor_less_than_the_least(
    populations: list[int], n_pages: int, least: int
) -> None:
    shares = allocate(populations, n_pages, least=least)
    assert len(shares) == len(populations)
    for share, population in zip(shares, populations, strict=True):
        assert min(population, least) <= share <= population
    assert sum(shares) <= n_pages + len(populations) * (least + 1)
    assert sum(shares) >= min(n_pages, sum(populations))


def test_no_region_is_judged_by_a_handful_of_pages() -> None:
    assert allocate([10**9], 1) == [256]
    assert min(allocate([10**9, 10**6, 300], 1000)) >= 256


@given(population=st.integers(1, 5000), together=st.sampled_from([1, 2, 4]))
def test_each_page_is_in_one_cluster(population: int, together: int) -> None:
    n_clusters = count_clusters(population, together)
    pages = pages_of(range(n_clusters), population, together)
    assert sorted(pages) == list(range(population))
    sizes = [len(pages_of([n], population, together)) for n in range(n_clusters)]
    assert set(sizes[:-1]) <= {together}
    assert 1 <= sizes[-1] <= together


@given(st.sets(st.integers(0, 1249), min_size=1), st.sampled_from([2, 4]))
def test_pages_of_clusters_ascend_from_block_to_block(drawn: set[int], together: int) -> None:
    clusters = sorted(cluster % count_clusters(4999, together) for cluster in drawn)
    pages = pages_of(dict.fromkeys(clusters), 4999, together)
    blocks = [page // 512 for page in pages]
    assert blocks == sorted(blocks)
    assert (pages[0], pages[-1]) == (min(pages), max(pages))


def test_clusters_are_for_large_samples_of_large_regions() -> None:
    gib = 1 << 18
    assert [cluster_pages(n * gib, 4096) for n in (1, 4, 5, 16, 4096)] == [1, 1, 4, 4, 4]
    assert cluster_pages(16 * gib, 1024) == 1
    assert cluster_pages(64 * gib, 3000) == 2
    assert cluster_pages(64 * gib, 10**6) == 1
    for n_pages in (1, 1000, 2048, 5000, 40_000):
        together = cluster_pages(1 << 30, n_pages)
        assert together == 1 or n_pages // together >= LEAST_CLUSTERS


@given(st.floats(0.001, 0.1), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_so_many_pages_tell_any_share_to_within_the_margin(
    margin: float, confidence: float
) -> None:
    n_pages = pages_for(margin, confidence)
    for hits in (0, 1, n_pages // 10, n_pages // 2, n_pages):
        interval = wilson(hits, n_pages, confidence)
        assert interval.upper - interval.lower <= 2 * margin + 1e-9
    if n_pages > 2:
        fewer = wilson((n_pages - 2) / 2, n_pages - 2, confidence)
        assert fewer.upper - fewer.lower > 2 * margin


counts = st.integers(0, 3000)


@given(
    by_node=st.dictionaries(st.integers(0, 7), counts, max_size=4),
    unknown=counts,
    absent=counts,
    more=st.integers(0, 1 << 30),
    page_size=st.sampled_from([4096, 1 << 21, 1 << 30]),
)
def test_estimates_add_up_to_what_is_there(
    by_node: dict[int, int], unknown: int, absent: int, more: int, page_size: int
) -> None:
    drawn = sum(by_node.values()) + unknown + absent
    assume(drawn)
    sample = Sample(drawn + more, drawn, by_node, unknown)
    size = (drawn + more) * page_size
    seen = estimated(RegionAudit(0, 0, size, page_size, 0, {}), sample)
    assert sum(seen.by_node.values()) + seen.unknown_bytes == seen.resident_bytes <= size
    held = {**seen.by_node, -1: seen.unknown_bytes}
    for node, found in {**by_node, -1: unknown}.items():
        assert held.get(node, 0) == pytest.approx(size * found / drawn, abs=page_size)
