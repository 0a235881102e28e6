"""Intervals of clustered samples hold as often as they say, whatever lies next to what."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.audit.model import UNKNOWN_NODE, Cluster, Sample
from gmemd.audit.sampling import (
    BLOCK_PAGES,
    LEAST_CLUSTERS,
    MOST_OF_A_BLOCK,
    count_clusters,
    draw_pages,
    pages_of,
)
from gmemd.drift.design import FEW_CLUSTERS, pages_possible, share_within
from gmemd.drift.interval import pages_between, wilson

SEED = 20261122
POPULATION = 1 << 22  # pages of 16 GiB
TOGETHER = MOST_OF_A_BLOCK
TRIALS = 1000
SHARES = (0.0, 0.0001, 0.01, 0.5)


def is_misplaced(node: int) -> bool:
    return node == 1


def sampled(clusters: Counter[Cluster], population: int = POPULATION) -> Sample:
    """A sample of clusters, all of them whole."""
    by_node: Counter[int] = Counter()
    for cluster, number in clusters.items():
        for node, pages in cluster:
            by_node[node] += number * pages
    unknown = by_node.pop(UNKNOWN_NODE, 0)
    drawn = TOGETHER * clusters.total()
    return Sample(population, drawn, by_node, unknown, TOGETHER, clusters)


def cluster_of(misplaced: int) -> Cluster:
    pairs = ((0, TOGETHER - misplaced), (1, misplaced))
    return tuple(pair for pair in pairs if pair[1])


def scattered(rng: Random, share: float) -> Counter[Cluster]:
    """Clusters of pages of which each is misplaced by itself."""
    likely = [
        math.comb(TOGETHER, n) * share**n * (1 - share) ** (TOGETHER - n)
        for n in range(TOGETHER + 1)
    ]
    drawn = Counter(rng.choices(range(TOGETHER + 1), likely, k=LEAST_CLUSTERS))
    return Counter({cluster_of(misplaced): number for misplaced, number in drawn.items()})


def in_a_run(rng: Random, share: float) -> Counter[Cluster]:
    """Clusters of a region of which the first pages, so many in a row, are misplaced."""
    misplaced = round(share * POPULATION)
    drawn = draw_pages(count_clusters(POPULATION, TOGETHER), LEAST_CLUSTERS, rng)
    # Clusters ascend by block: those of whole misplaced blocks come first.
    in_block = BLOCK_PAGES // TOGETHER
    whole = bisect_left(drawn, misplaced // BLOCK_PAGES * in_block)
    end = bisect_left(drawn, -(-misplaced // BLOCK_PAGES) * in_block)
    found = Counter({cluster_of(TOGETHER): whole, cluster_of(0): len(drawn) - end})
    for cluster in drawn[whole:end]:
        pages = pages_of([cluster], POPULATION, TOGETHER)
        found[cluster_of(sum(page < misplaced for page in pages))] += 1
    return found


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("draw", [scattered, in_a_run])
def test_the_interval_holds_the_truth_in_repeated_trials(draw: object, share: float) -> None:
    assert callable(draw)
    rng = Random(SEED)
    truth = round(share * POPULATION)
    within = pages_within = above = 0
    for _ in range(TRIALS):
        sample = sampled(draw(rng, share))
        found = share_within(sample, is_misplaced)
        within += found.lower <= truth / POPULATION <= found.upper
        above += found.lower > truth / POPULATION
        fewest, most = pages_possible(sample, is_misplaced)
        pages_within += fewest <= truth <= most
    assert within >= 0.94 * TRIALS
    assert pages_within >= 0.94 * TRIALS
    assert above < 0.05 * TRIALS


def test_pages_that_are_alike_count_as_one() -> None:
    found = sampled(Counter({cluster_of(4): 300, cluster_of(0): 724}))
    assert share_within(found, is_misplaced).upper == pytest.approx(
        wilson(300, 1024).upper, rel=0.01
    )


def test_pages_that_are_unlike_count_each() -> None:
    clusters = Counter({cluster_of(n): math.comb(4, n) * 64 for n in range(5)})
    found = share_within(sampled(clusters), is_misplaced)
    assert found.upper == pytest.approx(wilson(2048, 4096).upper, rel=0.001)


def test_of_few_hits_each_cluster_counts_as_one() -> None:
    nothing = share_within(sampled(Counter({cluster_of(0): 1024})), is_misplaced)
    assert (nothing.lower, nothing.upper) == (0.0, wilson(0, 1024).upper)
    few = Counter({cluster_of(1): FEW_CLUSTERS - 1, cluster_of(0): 1000})
    drawn = few.total()
    found = share_within(sampled(few), is_misplaced)
    assert found == wilson((FEW_CLUSTERS - 1) / 4, drawn)


def test_holes_in_stretches_widen_how_much_there_may_be() -> None:
    sample = sampled(Counter({(): 512, cluster_of(0): 512}))
    fewest, most = pages_possible(sample, lambda _: True)
    singly = pages_between(2048, 4096, POPULATION)
    by_cluster = pages_between(512, 1024, POPULATION)
    assert fewest < singly[0] < singly[1] < most
    assert most - fewest == pytest.approx(by_cluster[1] - by_cluster[0], rel=0.01)
    # What is there is all placed: of that, as many clusters tell as have pages.
    assert share_within(sample, is_misplaced).upper == wilson(0, 512).upper


def test_what_is_unknown_is_asked_for_by_its_own_number() -> None:
    sample = sampled(Counter({((UNKNOWN_NODE, 4),): 100, cluster_of(0): 924}))
    assert share_within(sample, is_misplaced).lower == 0
    assert share_within(sample, lambda node: node == UNKNOWN_NODE).lower > 0.05


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8),
    st.integers(1, 400),
)
def test_no_interval_denies_what_was_found_nor_is_narrower_than_that_of_single_pages(
    kinds: list[tuple[int, int]], number: int
) -> None:
    clusters: Counter[Cluster] = Counter()
    for placed, misplaced in kinds:
        pairs = ((0, min(placed, 4 - misplaced)), (1, misplaced))
        clusters[tuple(pair for pair in pairs if pair[1])] += number
    sample = sampled(clusters)
    hits, found = sample.by_node.get(1, 0), sum(sample.by_node.values())
    interval = share_within(sample, is_misplaced)
    singly = wilson(hits, found)
    assert interval.lower <= singly.lower + 1e-9
    assert interval.upper >= singly.upper - 1e-9
    fewest, most = pages_possible(sample, is_misplaced)
    assert hits <= fewest <= hits * POPULATION // sample.drawn <= most
