"""The bounds that samples and unknown bytes leave to a guest node's drift and host nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.audit.model import UNKNOWN_NODE
from gmemd.drift.design import pages_possible, share_within
from gmemd.drift.interval import Interval, Part, combined_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gmemd.audit.model import RegionAudit, Sample
    from gmemd.drift.region import RegionDrift


def drift_bounds(regions: Sequence[RegionDrift]) -> Interval | None:
    """Give the bounds of the misplaced share of what is resident, in all regions together.

    What is unknown counts as placed in the one, as misplaced in the other. None where nothing is
    resident.
    """
    return combined_share([part for region in regions for part in _parts(region)])


def node_bounds(
    regions: Sequence[RegionDrift], nodes: Iterable[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Give the least and the most bytes that each host node may hold: sums over the regions.

    What is unknown may be on any.
    """
    lower: dict[int, int] = {}
    upper: dict[int, int] = {}
    for node in sorted(nodes):
        bounds = [bytes_between(region.audit, node) for region in regions]
        lower[node] = sum(least for least, _ in bounds)
        upper[node] = sum(most for _, most in bounds)
    return lower, upper


def bytes_between(audit: RegionAudit, node: int) -> tuple[int, int]:
    """Give the least and the most bytes of a region that a host node may hold."""
    sample = audit.sample
    if sample is None:
        held = audit.by_node.get(node, 0)
        return held, held + audit.unknown_bytes
    fewest, _ = pages_possible(sample, lambda found: found == node)
    _, most = pages_possible(sample, lambda found: found in (node, UNKNOWN_NODE))
    return fewest * audit.page_size, most * audit.page_size + _beyond(audit, sample)


def _parts(region: RegionDrift) -> Iterator[Part]:
    """What was looked at, and what is known to exist beyond it."""
    audit, sample = region.audit, region.audit.sample
    if sample is None:
        size = audit.resident_bytes
        if size:
            lower = region.misplaced_bytes / size
            upper = (region.misplaced_bytes + audit.unknown_bytes) / size
            yield Part(Interval(size, size), Interval(lower, upper))
        return
    allowed = region.allowed
    fewest, most = pages_possible(sample, lambda _: True)
    misplaced = share_within(sample, lambda node: node != UNKNOWN_NODE and node not in allowed)
    not_placed = share_within(sample, lambda node: node not in allowed)
    yield Part(
        Interval(fewest * audit.page_size, most * audit.page_size),
        Interval(misplaced.lower, not_placed.upper),
    )
    beyond = _beyond(audit, sample)
    if beyond:
        yield Part(Interval(beyond, beyond), Interval(0.0, 1.0))


def _beyond(audit: RegionAudit, sample: Sample) -> int:
    """Bytes that are known to exist beyond what the sample was drawn from.

    What the sample itself found unknown is rounded up: a page too many of it is none beyond it.
    """
    found = -(-sample.unknown * sample.population // sample.drawn) if sample.drawn else 0
    return max(0, audit.unknown_bytes - found * audit.page_size)
