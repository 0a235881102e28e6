from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.text import ProcfsError
from gmemd.kernel.procfs.zoneinfo import parse_zoneinfo, read_zoneinfo

HOSTS = Path(__file__).parents[3] / "fixtures/hosts"
TEXT = (HOSTS / "cxl/proc/zoneinfo").read_text()


def test_reads_this_machine() -> None:
    zones = read_zoneinfo()
    assert any(zone.pages("managed") > 0 for zone in zones)


def test_reads_every_zone_of_every_node_without_its_node_wide_and_per_cpu_lines() -> None:
    zones = parse_zoneinfo(TEXT)
    assert [(zone.node, zone.name) for zone in zones[:5]] == [
        (0, "DMA"),
        (0, "DMA32"),
        (0, "Normal"),
        (0, "Movable"),
        (0, "Device"),
    ]
    normal = zones[2]
    assert normal.pages("free") == 30 << 18
    assert normal.pages("high") == (32 << 18) // 256  # not the per-CPU "high: 340"
    assert normal.pages("nr_active_file") == 0  # node-wide
    assert normal.protection == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("x\n", "holds no zone"),
        ("Node 0, zone Normal\n  pages free     1", "its last line has no end"),
        ("Node 0, zone Normal\n", "no 'pages free' line"),
        ("Node x, zone Normal\n  pages free 1\n", "is no zone's heading"),
        ("Node 0, zone Normal\n  pages free     1\n        high 1\n", "managed, protection"),
    ],
)
def test_damage_is_a_typed_error_that_names_the_file(text: str, said: str) -> None:
    with pytest.raises(ProcfsError, match=said) as caught:
        parse_zoneinfo(text, "/proc/zoneinfo")
    assert caught.value.path == "/proc/zoneinfo"


@given(st.integers(0, len(TEXT)))
def test_a_cut_anywhere_gives_whole_zones_or_the_typed_error(end: int) -> None:
    whole = parse_zoneinfo(TEXT)
    try:
        zones = parse_zoneinfo(TEXT[:end])
    except ProcfsError:
        return
    assert zones == whole[: len(zones)]


@given(st.text())
def test_any_text_is_zones_or_the_typed_error(text: str) -> None:
    try:
        parse_zoneinfo("Node 0, zone Normal\n" + text)
    except ProcfsError as error:
        assert error.why  # noqa: PT017  most texts fail, some don't
