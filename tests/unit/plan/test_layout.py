"""Where regions are put in the guest's address space: no overlaps, no devices, aligned alike."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.plan.layout import Extent, lay_out
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.unit.plan.specs import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINES = ("x86_64", "aarch64", "riscv64")


def plans(*sizes: Sequence[int]) -> list[RegionPlan]:
    """Regions of those sizes in bytes, a sequence for each guest node."""
    return [
        RegionPlan(
            vm="vm",
            guest_node=node,
            index=index,
            size_bytes=size,
            backend=Backend.GUEST_MEMFD,
            page_size=4096,
            policy=PolicyMode.BIND,
            host_nodes=frozenset({0}),
            strategy=Strategy.INODE_POLICY,
            reason="",
            prefault=True,
        )
        for node, mine in enumerate(sizes)
        for index, size in enumerate(mine)
    ]


def test_small_guests_are_one_extent_below_the_hole() -> None:
    assert lay_out(plans([GIB], [2 * GIB])) == {
        (0, 0): (Extent(0, 0, GIB),),
        (1, 0): (Extent(GIB, 0, 2 * GIB),),
    }


def test_the_x86_hole_splits_a_region() -> None:
    assert lay_out(plans([GIB, 4 * GIB], [GIB])) == {
        (0, 0): (Extent(0, 0, GIB),),
        (0, 1): (Extent(GIB, 0, 2 * GIB), Extent(4 * GIB, 2 * GIB, 2 * GIB)),
        (1, 0): (Extent(6 * GIB, 0, GIB),),
    }


def test_what_would_start_in_the_hole_comes_after_it() -> None:
    found = lay_out(plans([2 * GIB + MIB], [MIB]))
    assert found[1, 0] == (Extent(4 * GIB, 0, MIB),)


def test_other_machines_have_no_hole_and_start_at_one_gib() -> None:
    assert lay_out(plans([8 * GIB]), "aarch64") == {(0, 0): (Extent(GIB, 0, 8 * GIB),)}


def test_guest_nodes_ascend_whatever_order_they_come_in() -> None:
    regions = plans([GIB, GIB], [GIB])
    assert lay_out(regions[::-1]) == lay_out(regions)


@pytest.mark.parametrize("machine", MACHINES)
@given(
    sizes=st.lists(
        st.lists(st.integers(1, 12 << 20).map(lambda n: n * 4096), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_every_byte_has_one_address(machine: str, sizes: list[list[int]]) -> None:
    regions = plans(*sizes)
    found = lay_out(regions, machine)
    assert [*found] == [(region.guest_node, region.index) for region in regions]
    for region in regions:
        offset = 0
        for extent in found[region.guest_node, region.index]:
            assert extent.offset == offset
            assert extent.size > 0
            assert extent.gpa % GIB == extent.offset % GIB
            offset += extent.size
        assert offset == region.size_bytes
    extents = [extent for mine in found.values() for extent in mine]
    for before, after in pairwise(extents):
        assert before.gpa + before.size <= after.gpa
    if machine == "x86_64":
        assert extents[0].gpa == 0
        assert all(e.gpa + e.size <= 3 * GIB or e.gpa >= 4 * GIB for e in extents)
    else:
        assert extents[0].gpa == GIB
