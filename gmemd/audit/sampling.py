"""Which pages a sample looks at: drawn at random, without repetition. Pure.

A region's sample is a simple random one of all its pages, holes included: each set of as many
pages is as likely as any other, whatever lies next to what. What it costs depends on how many
pages are drawn, never on how many there are.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gmemd.audit.model import RegionAudit, Sample

LEAST_PAGES = 256
"""Of a region's sample: what holds a percent of it is missed once in 13 times (0.99**256)."""

_WORD_BYTES = 8  # of an array('Q')


def draw_pages(population: int, n_pages: int, rng: Random) -> array[int]:
    """Draw ``n_pages`` distinct pages of ``range(population)``: their numbers, ascending (type Q).

    All of them if there are no more. Time and memory go with ``n_pages``: 4,096 take 2 ms, a
    million a second and 80 MB, of any population.
    """
    if n_pages >= population:
        return array("Q", range(population))
    if 2 * n_pages <= population:
        return array("Q", sorted(_draw_distinct(population, n_pages, rng)))
    left_out = _draw_distinct(population, population - n_pages, rng)
    return array("Q", (page for page in range(population) if page not in left_out))


def allocate(populations: Sequence[int], n_pages: int, *, least: int = LEAST_PAGES) -> list[int]:
    """Share ``n_pages`` out over regions of so many pages each, in proportion to these.

    Each region gets ``least`` pages or more, so the shares may sum to more than ``n_pages``. A
    region with no more pages than its share is looked at whole: its share is its pages, and what
    it leaves over goes to the others.
    """
    shares = [0] * len(populations)
    open_regions = set(range(len(populations)))
    budget = n_pages
    while open_regions:
        total = sum(populations[region] for region in open_regions)
        for region in open_regions:
            in_proportion = -(-budget * populations[region] // total) if total else 0
            shares[region] = max(in_proportion, least)
        whole = {region for region in open_regions if populations[region] <= shares[region]}
        if not whole:
            break
        for region in whole:
            shares[region] = populations[region]
        budget = max(0, budget - sum(populations[region] for region in whole))
        open_regions -= whole
    return shares


def scale_up(counts: Sequence[int], population: int) -> list[int]:
    """Scale the counts of a sample's kinds of pages up to whole pages of the population.

    The results sum to it, each within a page of its proportion (largest remainders); what wasn't
    found stays nothing.
    """
    drawn = sum(counts)
    scaled = [count * population // drawn for count in counts]
    by_remainder = sorted(
        range(len(counts)), key=lambda i: counts[i] * population % drawn, reverse=True
    )
    for i in by_remainder[: population - sum(scaled)]:
        scaled[i] += 1
    return scaled


def estimated(audit: RegionAudit, sample: Sample) -> RegionAudit:
    """Give the same with its bytes, those of the pages drawn, scaled up to all pages."""
    nodes = sorted(sample.by_node)
    counts = [sample.by_node[node] for node in nodes]
    absent = sample.drawn - sum(counts) - sample.unknown
    *held, unknown, _ = scale_up([*counts, sample.unknown, absent], sample.population)
    return replace(
        audit,
        resident_bytes=(sum(held) + unknown) * audit.page_size,
        by_node={node: n * audit.page_size for node, n in zip(nodes, held, strict=True)},
        unknown_bytes=unknown * audit.page_size,
        exact=False,
        sample=sample,
    )


def _draw_distinct(population: int, n_pages: int, rng: Random) -> set[int]:
    """Draw until so many are distinct; never one more, so none has to be given up again.

    64 random bits are scaled to the population: no page's chance is off by more than one part in
    2**64 / population.
    """
    drawn: set[int] = set()
    while len(drawn) < n_pages:
        words = array("Q", rng.randbytes(_WORD_BYTES * (n_pages - len(drawn))))
        drawn.update(word * population >> 8 * _WORD_BYTES for word in words)
    return drawn
