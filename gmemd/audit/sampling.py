"""Which pages a sample looks at: drawn at random, without repetition. Pure.

A region's sample is a simple random one of all its pages, holes included: each set of as many
pages is as likely as any other, whatever lies next to what. What it costs depends on how many
pages are drawn, never on how many there are.

Of a large region that is mapped to be looked at, each page drawn brings a page of page tables, as
these serve 2 MiB each. Measured on guest_memfd, us a page of 4,096 drawn (system calls alone):

    region                     1 GiB   4 GiB   8 GiB   16 GiB
    each by itself               2.4     2.8     3.2      3.8
    two of each 2 MiB drawn      2.4     2.7     2.9      3.4
    four of each 2 MiB drawn     2.4     2.5     2.6      3.1
    eight of each 2 MiB drawn    2.3     2.3     2.4      2.8
    eight neighbours             2.0     2.2     2.2      2.6

So what a cluster saves is a fifth of the time for four pages, and it may cost three quarters of
what they tell, where stretches of memory went astray as a whole: for what a sample says at a given
cost, pages drawn singly serve better at any size. Clusters keep the cost the same at all sizes,
which is why large samples of large regions are drawn so, unless a margin was asked for, and never
fewer than `LEAST_CLUSTERS`. Of a memory that somebody else maps no page tables are made: there all
pages are drawn singly.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gmemd.drift.interval import quantile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from gmemd.audit.model import RegionAudit, Sample

LEAST_PAGES = 256
"""Of a region's sample: what holds a percent of it is missed once in 13 times (0.99**256)."""

MOST_DRAWS = 16
"""Times the pages wanted: a region of which less than a sixteenth is there gives fewer."""

WHOLE = 4
"""Times the pages wanted: a region with no more is looked at whole, which costs about as much."""

BLOCK_PAGES = 512
"""That a page of page tables serves: 2 MiB."""

MOST_OF_A_BLOCK = 4
"""Pages of a cluster: spread evenly over a block."""

LEAST_CLUSTERS = 1024
"""Drawn where clusters are: where none has a hit, less than 0.4 % of the pages are one."""

_SPARSE = 2
"""Times the clusters: with no more blocks, pages drawn singly share blocks often enough."""

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


def cluster_pages(population: int, n_pages: int) -> int:
    """Choose how many of a region's ``n_pages`` are drawn together: 1, 2 or 4."""
    together = min(MOST_OF_A_BLOCK, n_pages // LEAST_CLUSTERS)
    together = 1 << max(1, together).bit_length() - 1
    sparse = population > _SPARSE * (n_pages // together) * BLOCK_PAGES
    return together if sparse else 1


def count_clusters(population: int, together: int) -> int:
    """Count the clusters that a region is made of: each page is in one."""
    blocks, rest = divmod(population, BLOCK_PAGES)
    return blocks * (BLOCK_PAGES // together) + -(-rest // together)


def pages_of(clusters: Iterable[int], population: int, together: int) -> array[int]:
    """Give the pages of clusters that ascend (type Q), one cluster's after the other's.

    They ascend from block to block. A cluster's pages are far apart within a block, but for those
    of an incomplete block at the end; only the last cluster of all may have fewer.
    """
    if together == 1:
        return array("Q", clusters)
    stride = BLOCK_PAGES // together
    whole = population // BLOCK_PAGES * BLOCK_PAGES
    pages = array("Q")
    for cluster in clusters:
        first = cluster // stride * BLOCK_PAGES + cluster % stride
        if first < whole:
            pages.extend(range(first, first + BLOCK_PAGES, stride))
        else:
            first = whole + (cluster - whole // together) * together
            pages.extend(range(first, min(first + together, population)))
    return pages


def pages_for(margin: float, confidence: float) -> int:
    """Give how many pages tell any share to within ``margin`` (a ratio), at that confidence.

    Half of Wilson's interval is widest for a share of one half, where it is
    z / (2 * sqrt(n + z**2)): for no other share it takes more pages. That pages are drawn without
    repetition is left out, as it is of the interval: a region that isn't a few times larger is
    looked at whole.
    """
    square = quantile(confidence) ** 2
    return max(1, math.ceil(square / (4 * margin * margin) - square))


@dataclass(slots=True)
class Draws:
    """Clusters of pages that are drawn until enough are found; ``pages`` were drawn so far.

    ``together`` are a cluster's pages; ``limit`` is how many pages are drawn at most to find those
    that are ``wanted``.
    """

    population: int
    together: int
    wanted: int
    limit: int
    rng: Random
    drawn: set[int] = field(default_factory=set)
    pages: int = 0

    def more(self, found: int) -> array[int]:
        """Draw as many pages as it may take to find those that are missing; none when done."""
        left = self.limit - self.pages
        if found >= self.wanted or left <= 0:
            return array("Q")
        expected = self.wanted
        if self.pages:
            expected = (self.wanted - found) * self.pages * 21 // (20 * max(found, 1)) + 1
        n_clusters = -(-min(expected, left) // self.together)
        clusters = draw_pages(count_clusters(self.population, self.together), n_clusters, self.rng)
        fresh = [cluster for cluster in clusters if cluster not in self.drawn]
        self.drawn.update(fresh)
        pages = pages_of(fresh, self.population, self.together)
        self.pages += len(pages)
        return pages


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
