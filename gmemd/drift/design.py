"""What a sample tells of shares, where its pages were drawn in clusters and may be alike. Pure.

A cluster's pages say less than as many drawn each by itself, if they lie in one stretch of memory
that went astray as a whole. How much less is the design effect: the variance of what was found,
over that of pages drawn singly. The interval is that of a sample smaller by this factor. Where hits
are few nothing tells how alike clusters are, and each of them counts as one page.

Sources: L. Kish, Survey Sampling (1965), for the design effect and for the variance of a ratio over
clusters; E. L. Korn, B. I. Graubard, Confidence intervals for proportions with small expected
number of positive counts estimated from survey data, Survey Methodology 24 (1998), for intervals
with the sample's effective size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.audit.model import UNKNOWN_NODE
from gmemd.drift.interval import Interval, pages_within, wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.audit.model import Sample

FEW_CLUSTERS = 20
"""With hits in fewer, or with anything else in fewer, a cluster counts as one page."""


def share_within(
    sample: Sample, is_hit: Callable[[int], bool], confidence: float | None = None
) -> Interval:
    """Give the interval of the share of what exists that is a hit.

    ``is_hit`` is asked of host nodes, and of UNKNOWN_NODE. ``confidence`` is the sample's unless
    another is given.
    """
    hits, found = _count(sample, is_hit), _count(sample, _exists)
    effect = _design_effect(_pairs(sample, is_hit, holes=False))
    return wilson(hits / effect, found / effect, confidence or sample.confidence)


def pages_possible(sample: Sample, is_hit: Callable[[int], bool]) -> tuple[int, int]:
    """Give how many pages of all may be hits, at least and at most."""
    hits = _count(sample, is_hit)
    effect = _design_effect(_pairs(sample, is_hit, holes=True))
    share = wilson(hits / effect, sample.drawn / effect, sample.confidence)
    return pages_within(share, hits, sample.drawn, sample.population)


def _exists(_node: int) -> bool:
    return True


def _count(sample: Sample, is_hit: Callable[[int], bool]) -> int:
    by_node = sum(pages for node, pages in sample.by_node.items() if is_hit(node))
    return by_node + (sample.unknown if is_hit(UNKNOWN_NODE) else 0)


def _pairs(
    sample: Sample, is_hit: Callable[[int], bool], *, holes: bool
) -> Iterator[tuple[int, int, int]]:
    """Give clusters that are alike: their number, the hits of each, and its pages that count."""
    for cluster, number in sample.clusters.items():
        hits = sum(pages for node, pages in cluster if is_hit(node))
        found = sum(pages for _, pages in cluster)
        yield number, hits, sample.cluster_pages if holes else found


def _design_effect(pairs: Iterator[tuple[int, int, int]]) -> float:
    """Give the variance of the hits' share over that of pages drawn singly, never below 1."""
    counted = [(number, hits, pages) for number, hits, pages in pairs if pages]
    found = sum(number * pages for number, _, pages in counted)
    if not found:
        return 1.0
    most = sum(number * pages * pages for number, _, pages in counted) / found
    with_hits = sum(number for number, hits, _ in counted if hits)
    with_others = sum(number for number, hits, pages in counted if hits < pages)
    if min(with_hits, with_others) < FEW_CLUSTERS:
        return max(1.0, most)
    share = sum(number * hits for number, hits, _ in counted) / found
    squares = sum(number * (hits - share * pages) ** 2 for number, hits, pages in counted)
    clusters = sum(number for number, _, _ in counted)
    effect = squares / (found * share * (1.0 - share)) * clusters / (clusters - 1)
    return min(max(1.0, effect), most)
