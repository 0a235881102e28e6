"""Intervals of samples hold as often as they say, and never deny what was seen."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from itertools import pairwise, product
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.audit.sampling import draw_pages
from gmemd.drift.interval import (
    Interval,
    Part,
    combined_share,
    pages_between,
    quantile,
    wilson,
)

SEED = 20261121
POPULATION = 1 << 22  # pages of 16 GiB
TRIALS = 1000
SHARES = (0.0, 0.0001, 0.01, 0.5)

counts = st.integers(1, 20_000).flatmap(
    lambda drawn: st.tuples(st.integers(0, drawn), st.just(drawn))
)


def test_the_quantiles_are_the_normal_distributions() -> None:
    for confidence in (0.5, 0.9, 0.95, 0.99, 0.9999):
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        assert quantile(confidence) == pytest.approx(z, abs=1e-11)


@pytest.mark.parametrize(
    ("hits", "drawn", "lower", "upper"),
    [
        # Figures of Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_published_intervals(hits: int, drawn: int, lower: float, upper: float) -> None:
    found = wilson(hits, drawn)
    assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=0.0001)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("hits", [1, 2, 3])
def test_the_bound_of_rare_hits_is_where_they_become_rare(hits: int, confidence: float) -> None:
    rate = wilson(hits, 10_000, confidence).lower * 10_000
    fewer = sum(rate**n / math.factorial(n) for n in range(hits)) * math.exp(-rate)
    assert fewer == pytest.approx(confidence, abs=1e-9)
    assert wilson(10_000 - hits, 10_000, confidence).upper == pytest.approx(1 - rate / 10_000)


@given(counts)
def test_an_interval_holds_what_was_found(found: tuple[int, int]) -> None:
    hits, drawn = found
    interval = wilson(hits, drawn)
    assert 0 <= interval.lower <= hits / drawn <= interval.upper <= 1
    assert interval.lower < interval.upper
    mirrored = wilson(drawn - hits, drawn)
    assert mirrored.lower == pytest.approx(1 - interval.upper)
    wider = wilson(hits, drawn, 0.9999)
    assert wider.lower <= interval.lower
    assert wider.upper >= interval.upper


@given(st.integers(1, 5000))
def test_bounds_rise_with_what_is_found(drawn: int) -> None:
    intervals = [wilson(hits, drawn) for hits in range(min(drawn, 60) + 1)]
    assert all(a.lower <= b.lower and a.upper <= b.upper for a, b in pairwise(intervals))


def test_nothing_drawn_leaves_everything_possible() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert pages_between(0, 0, 77) == (0, 77)


@given(counts, st.integers(0, 1 << 31))
def test_pages_are_never_fewer_than_seen_nor_more_than_not_seen_otherwise(
    found: tuple[int, int], more: int
) -> None:
    hits, drawn = found
    population = drawn + more
    fewest, most = pages_between(hits, drawn, population)
    assert hits <= fewest <= most <= population - (drawn - hits)
    assert fewest <= hits * population // drawn <= most


def test_all_drawn_is_all_known() -> None:
    assert pages_between(17, 100, 100) == (17, 17)


@pytest.mark.parametrize("drawn", [400, 4096])
def test_intervals_hold_in_repeated_trials(drawn: int) -> None:
    """Pages of which a share is misplaced are drawn a thousand times: the truth is in 93 % of the
    intervals, and the lower bound, which verdicts go by, is above it in less than 6 %."""
    rng = Random(SEED)
    within: Counter[float] = Counter()
    above: Counter[float] = Counter()
    for _ in range(TRIALS):
        pages = draw_pages(POPULATION, drawn, rng)
        for share in SHARES:
            # A draw favours no pages, so the misplaced ones may be the first.
            misplaced = round(share * POPULATION)
            fewest, most = pages_between(bisect_left(pages, misplaced), drawn, POPULATION)
            within[share] += fewest <= misplaced <= most
            above[share] += fewest > misplaced
    assert min(within[share] for share in SHARES) >= 0.93 * TRIALS, within
    assert max(above[share] for share in SHARES) < 0.06 * TRIALS, above


def part(share: tuple[float, float], size: tuple[float, float]) -> Part:
    return Part(Interval(*size), Interval(*share))


def test_a_share_of_one_part_is_its_own_whatever_its_size() -> None:
    found = combined_share([part((0.1, 0.3), (5, 50))])
    assert found is not None
    assert (found.lower, found.upper) == pytest.approx((0.1, 0.3))


def test_a_share_of_nothing_is_none() -> None:
    assert combined_share([]) is None
    assert combined_share([part((0, 1), (0, 0))]) is None


def test_exact_parts_have_an_exact_share() -> None:
    found = combined_share([part((0.5, 0.5), (10, 10)), part((0, 0), (30, 30))])
    assert found is not None
    assert (found.lower, found.upper) == pytest.approx((0.125, 0.125))


bounds = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: (min(ends), max(ends)))
sizes = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(lambda e: (min(e), max(e)))


@given(st.lists(st.tuples(bounds, sizes), min_size=1, max_size=4))
def test_no_sizes_and_shares_within_the_intervals_are_outside_the_combination(
    drawn: list[tuple[tuple[float, float], tuple[int, int]]],
) -> None:
    parts = [part(share, size) for share, size in drawn]
    found = combined_share(parts)
    possible = []
    for ends in product((0, 1), repeat=len(drawn)):
        chosen = [size[end] for (_, size), end in zip(drawn, ends, strict=True)]
        if total := sum(chosen):
            for side in (0, 1):
                shares = [share[side] for share, _ in drawn]
                weighed = sum(s * n for s, n in zip(shares, chosen, strict=True))
                possible.append(weighed / total)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert found.lower == pytest.approx(min(possible), abs=1e-12)
    assert found.upper == pytest.approx(max(possible), abs=1e-12)
