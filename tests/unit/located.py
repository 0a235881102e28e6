"""A made-up VM that was audited with where: pages as given, summed up as an audit does."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.audit.where import RegionMap
from gmemd.plan.layout import lay_out
from tests.unit.daemon.vms import audited_status, guest_node_drift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gmemd.export.snapshot import VmStatus

MIB = 1 << 20
PAGE = 2 * MIB
HOLE, UNSEEN = -32768, -16


def located_status(
    pages: Mapping[int, Sequence[int]], *, laid_out: bool = True, page_size: int = PAGE
) -> VmStatus:
    """A VM whose guest nodes have these pages, each by its host node, a hole or unseen.

    Guest node N belongs on host node N. ``laid_out``: it has guest-physical addresses.
    """
    drifts = []
    for node, numbers in pages.items():
        held = {n: list(numbers).count(n) * page_size for n in sorted(set(numbers)) if n >= 0}
        unseen = list(numbers).count(UNSEEN) * page_size
        drifts.append(guest_node_drift(node, held, {node}, unknown_bytes=unseen))
    status = audited_status(*drifts)
    regions = tuple(
        replace(region, plan=replace(region.plan, size_bytes=len(numbers) * page_size))
        for region, numbers in zip(status.regions, pages.values(), strict=True)
    )
    layout = lay_out([region.plan for region in regions])
    assert status.audit is not None
    audits = []
    for seen, numbers in zip(status.audit.regions, pages.values(), strict=True):
        found = RegionMap(
            len(numbers) * page_size,
            page_size,
            allowed=frozenset({seen.guest_node}),
            holes={HOLE},
            extents=layout[seen.guest_node, 0] if laid_out else (),
        )
        found.add(0, array("h", numbers))
        audits.append(replace(seen, where=found.result()))
    return replace(status, regions=regions, audit=replace(status.audit, regions=tuple(audits)))
