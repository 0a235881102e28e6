"""Where each region of a VM should be in the guest's physical address space. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.plan.model import RegionPlan

GIB = 1 << 30

_ALIGNMENT = GIB  # so that huge pages of every size map the guest's as the host's
_X86 = frozenset({"x86_64", "i686", "i386"})
_RAM_BASE = GIB
"""Where the virt machines of other architectures have their first RAM; devices are below."""
_HOLE_START, _HOLE_END = 3 * GIB, 4 * GIB
"""On x86 devices are here: PCI windows, APICs, firmware."""


@dataclass(frozen=True, slots=True)
class Extent:
    """``size`` bytes of a region, from its ``offset`` on, at a guest-physical address."""

    gpa: int
    offset: int
    size: int


def lay_out(
    regions: Sequence[RegionPlan], machine: str = "x86_64"
) -> dict[tuple[int, int], tuple[Extent, ...]]:
    """Lay regions out by guest node and index; each has one extent, or two around the x86 hole.

    ``machine`` is the host's, as uname tells it. Offsets count from the region's start, and each
    equals its address modulo 1 GiB.
    """
    x86 = machine in _X86
    address = 0 if x86 else _RAM_BASE
    extents: dict[tuple[int, int], tuple[Extent, ...]] = {}
    for region in sorted(regions, key=lambda region: (region.guest_node, region.index)):
        if x86 and _HOLE_START <= address < _HOLE_END:
            address = _HOLE_END
        found = _around_hole(address, region.size_bytes) if x86 else ()
        mine = found or (Extent(address, 0, region.size_bytes),)
        extents[region.guest_node, region.index] = mine
        address = -(-(mine[-1].gpa + mine[-1].size) // _ALIGNMENT) * _ALIGNMENT
    return extents


def _around_hole(address: int, size: int) -> tuple[Extent, ...]:
    """Both parts of a region that would reach into the hole; nothing for any other."""
    below = _HOLE_START - address
    if below <= 0 or size <= below:
        return ()
    return Extent(address, 0, below), Extent(_HOLE_END, below, size - below)
