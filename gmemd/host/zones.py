"""How much a node can still give, and to which kind of page. Reads /proc/zoneinfo alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.zoneinfo import Zone, read_zoneinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PAGE_SIZE = 4096
PLACEABLE_ZONES = ("DMA32", "Normal")
"""Where unmovable user pages (GFP_HIGHUSER, as guest_memfd allocates) are taken from."""

MOVABLE_ZONE = "Movable"


@dataclass(frozen=True, slots=True)
class NodeZones:
    """One node's zones summed up, in bytes.

    ``placeable_*`` is what unmovable pages can have, ``movable_*`` what ZONE_MOVABLE adds for
    movable ones. ``*_available`` counts clean page cache that the kernel drops on demand;
    ``*_free`` doesn't.
    """

    placeable_bytes: int
    placeable_available_bytes: int
    placeable_free_bytes: int
    movable_bytes: int
    movable_available_bytes: int


def placeable(root: Path = Path("/"), *, page_size: int = PAGE_SIZE) -> Mapping[int, NodeZones]:
    """Every node that has zones, by number. Raises ProcfsError.

    Cheap enough to be asked between two chunks of a prefault: one file, no per-CPU line parsed.
    """
    return sum_zones(read_zoneinfo(root), page_size=page_size)


def sum_zones(zones: Iterable[Zone], *, page_size: int = PAGE_SIZE) -> Mapping[int, NodeZones]:
    """Return the nodes' zones summed up.

    Per zone: free - CMA - high watermark - lowmem reserve, and for available + clean file cache
    (active and inactive file - write-pending), as __zone_watermark_ok() and si_mem_available()
    count. The high watermark is where kswapd stops, so that nothing counted here wakes it.
    Clean cache fills up a shortage of free pages first: the two are added before the cut at 0.
    """
    by_node: dict[int, list[Zone]] = {}
    for zone in zones:
        by_node.setdefault(zone.node, []).append(zone)
    return {node: _sum_node(found, page_size) for node, found in sorted(by_node.items())}


def _sum_node(zones: list[Zone], page_size: int) -> NodeZones:
    normal = [zone for zone in zones if zone.name in PLACEABLE_ZONES]
    movable = [zone for zone in zones if zone.name == MOVABLE_ZONE]
    # protection[] is indexed by the kernel's zone numbers; all of a node's zones are printed in
    # their order, the unpopulated ones too, so a zone's place in the node is its number.
    places = {zone.name: place for place, zone in enumerate(zones)}
    highest = places.get("Normal", len(zones) - 1)
    return NodeZones(
        placeable_bytes=page_size * sum(_managed(zone) for zone in normal),
        placeable_available_bytes=page_size * sum(_available(zone, highest) for zone in normal),
        placeable_free_bytes=page_size * sum(max(0, _spare(zone, highest)) for zone in normal),
        movable_bytes=page_size * sum(_managed(zone) for zone in movable),
        movable_available_bytes=page_size
        * sum(_available(zone, places[zone.name]) for zone in movable),
    )


def _managed(zone: Zone) -> int:
    return max(0, zone.pages("managed") - zone.pages("cma"))


def _spare(zone: Zone, highest: int) -> int:
    """Free pages that an allocation allowed up to zone ``highest`` can have; may be negative."""
    reserve = zone.protection[highest] if highest < len(zone.protection) else 0
    return zone.pages("free") - zone.pages("nr_free_cma") - zone.pages("high") - reserve


def _available(zone: Zone, highest: int) -> int:
    cache = zone.pages("nr_zone_active_file") + zone.pages("nr_zone_inactive_file")
    clean = max(0, cache - zone.pages("nr_zone_write_pending"))
    return max(0, _spare(zone, highest) + clean)
