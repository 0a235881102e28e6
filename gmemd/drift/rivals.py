"""Whether to believe the order of mappings where that alone tells regions apart.

A VMM's command line says what each backend is, not where it is mapped. Where two backends of equal
size are told apart by order alone, and their pages lie just as if it were the other way round, then
either the pages went astray in the one way that looks like it, or the order misled: unknown.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

from gmemd.drift.region import allowed_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gmemd.audit.model import RegionAudit
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan

Key = tuple[int, int]
"""Guest node and region index."""

MOST_PERMUTED = 6
UNTOLD = (
    "which of {count} mappings of equal size is which can't be told by their order: "
    "`gmemd audit --full` reads the kernel's policies, which tell"
)


def misled(
    plans: Sequence[RegionPlan], audits: Mapping[Key, RegionAudit], host: Host, tolerance: float
) -> bool:
    """Whether another order explains where one group's pages are, and the assumed one doesn't."""
    seen = [(plan, audits[key]) for plan in plans if (key := _key(plan)) in audits]
    total = sum(sum(audit.by_node.values()) for _, audit in seen)
    limit = tolerance * total
    allowed = [allowed_nodes(plan, host) for plan, _ in seen]
    pages = [audit.by_node for _, audit in seen]
    if not total or _misplaced(allowed, pages) <= limit:
        return False
    if len(seen) > MOST_PERMUTED:
        return _misplaced(allowed[::-1], pages) <= limit
    return any(_misplaced(order, pages) <= limit for order in permutations(allowed))


def as_unknown(audit: RegionAudit, count: int) -> RegionAudit:
    """The same audit with all that was seen counted as unknown, as it may be another region's."""
    return replace(
        audit,
        by_node={},
        unknown_bytes=audit.resident_bytes,
        unknown_reason=UNTOLD.format(count=count),
        policy=None,
        other_policies=(),
        sample=None,
    )


def _misplaced(allowed: Collection[frozenset[int]], pages: Collection[Mapping[int, int]]) -> int:
    """Bytes outside of what is allowed, if the regions were in that order."""
    return sum(
        held
        for nodes, by_node in zip(allowed, pages, strict=True)
        for node, held in by_node.items()
        if node not in nodes
    )


def _key(plan: RegionPlan) -> Key:
    return plan.guest_node, plan.index
