from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gmemd.host.zones import NodeZones, placeable, sum_zones
from gmemd.kernel.procfs.zoneinfo import Zone

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"
GIB = 1 << 30
PAGE = 4096


def zone(name: str, protection: tuple[int, ...] = (0,) * 5, **counters: int) -> Zone:
    figures = {"free": 0, "high": 0, "managed": 0, **counters}
    return Zone(0, name, protection, figures)


def node_of(**zones: Zone) -> NodeZones:
    empty = {name: zone(name) for name in ("DMA", "DMA32", "Normal", "Movable", "Device")}
    return sum_zones((empty | zones).values())[0]


def test_every_term_of_the_sum() -> None:
    normal = zone(
        "Normal",
        protection=(0, 0, 40, 7000, 7000),
        managed=10000,
        cma=500,
        free=5000,
        nr_free_cma=300,
        high=100,
        nr_zone_active_file=600,
        nr_zone_inactive_file=400,
        nr_zone_write_pending=200,
    )
    node = node_of(Normal=normal)
    assert node.placeable_bytes == 9500 * PAGE
    assert node.placeable_free_bytes == (5000 - 300 - 100 - 40) * PAGE
    assert node.placeable_available_bytes == (5000 - 300 - 100 - 40 + 800) * PAGE
    assert node.movable_bytes == node.movable_available_bytes == 0


def test_dma32_counts_with_what_it_keeps_back_from_normal_and_dma_never() -> None:
    node = node_of(
        DMA=zone("DMA", managed=4000, free=4000),
        DMA32=zone("DMA32", protection=(0, 0, 1000, 1000, 1000), managed=8000, free=5000),
        Normal=zone("Normal", managed=8000, free=1000),
    )
    assert node.placeable_bytes == 16000 * PAGE
    assert node.placeable_free_bytes == (5000 - 1000 + 1000) * PAGE


def test_cache_first_fills_up_a_zone_below_its_watermark() -> None:
    node = node_of(
        Normal=zone("Normal", managed=8000, free=100, high=500, nr_zone_inactive_file=1000)
    )
    assert node.placeable_free_bytes == 0
    assert node.placeable_available_bytes == 600 * PAGE


def test_a_zone_below_its_watermark_takes_nothing_from_another() -> None:
    node = node_of(
        DMA32=zone("DMA32", managed=8000, free=0, high=500),
        Normal=zone("Normal", managed=8000, free=700),
    )
    assert node.placeable_available_bytes == 700 * PAGE


def test_movable_memory_is_told_apart() -> None:
    zones = placeable(HOSTS / "cxl")
    assert zones[2].placeable_bytes == zones[2].placeable_available_bytes == 0
    assert zones[2].movable_bytes == 64 * GIB
    assert 0 < zones[2].movable_available_bytes < 50 * GIB


def test_memoryless_nodes_and_holes() -> None:
    assert placeable(HOSTS / "memoryless")[1].placeable_bytes == 0
    assert list(placeable(HOSTS / "holes")) == [0, 2, 5]


def test_this_machine_can_give_something_and_no_more_than_it_has() -> None:
    for node in placeable().values():
        assert 0 <= node.placeable_free_bytes <= node.placeable_available_bytes
        assert node.placeable_available_bytes <= node.placeable_bytes


@given(
    st.dictionaries(
        st.sampled_from(["free", "high", "managed", "cma", "nr_free_cma", "nr_zone_active_file"]),
        st.integers(0, 1 << 40),
    ),
    st.lists(st.integers(0, 1 << 40), max_size=5),
)
def test_figures_never_get_negative(counters: dict[str, int], protection: list[int]) -> None:
    node = node_of(Normal=zone("Normal", tuple(protection), **counters))
    assert node.placeable_available_bytes >= node.placeable_free_bytes >= 0
    assert node.placeable_bytes >= 0
