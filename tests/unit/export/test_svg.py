from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gmemd.export.snapshot_json import vm_to_json
from gmemd.export.svg import MISPLACED, UNKNOWN, colour_of, render_svg
from tests.unit.located import HOLE, UNSEEN, located_status

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*vms: dict[str, Any]) -> ET.Element:
    return ET.fromstring(render_svg(vms))  # noqa: S314  drawn here


def tips(root: ET.Element) -> list[str]:
    return [str(title.text) for title in root.iter(f"{SVG}title")]


def texts(root: ET.Element) -> list[str]:
    return [str(text.text) for text in root.iter(f"{SVG}text")]


def test_parts_that_hold_the_same_are_one() -> None:
    vm = vm_to_json(located_status({0: [0] * 100 + [HOLE] * 50 + [0] * 50, 1: [1, 3, 3, UNSEEN]}))
    assert tips(drawn(vm)) == [
        "0x000000000, 200MiB: host node 0 200MiB",
        "0x012c00000, 100MiB: host node 0 100MiB",
        "0x040000000, 2MiB: host node 1 2MiB",
        "0x040200000, 4MiB: host node 3 4MiB, 4MiB misplaced",
        "0x040600000, 2MiB: unknown 2MiB",
    ]


def test_heights_are_shares_and_marks_are_as_strong_as_what_is_misplaced() -> None:
    """1,024 pages in 256 cells: each has four, of which one is elsewhere and one isn't there."""
    (group,) = drawn(vm_to_json(located_status({0: [0, 0, 3, HOLE] * 256}))).iter(f"{SVG}g")
    own, other, mark = group.iter(f"{SVG}rect")
    assert float(own.attrib["height"]) == pytest.approx(2 * float(other.attrib["height"]))
    assert (own.attrib["fill"], other.attrib["fill"]) == (colour_of(0), colour_of(3))
    assert (mark.attrib["fill"], float(mark.attrib["opacity"])) == (MISPLACED, 0.55)
    assert float(own.attrib["width"]) == pytest.approx(1000)


def test_the_legend_has_sums() -> None:
    root = drawn(vm_to_json(located_status({0: [0, 2, UNSEEN], 1: [1, 1, HOLE]}, laid_out=False)))
    words = texts(root)
    for entry in (
        "host node 0: 2MiB",
        "host node 1: 4MiB",
        "host node 2: 2MiB",
        "unknown: 2MiB",
        "misplaced: 2MiB",
        "guest node 1: 6MiB at +0x0",
    ):
        assert entry in words
    assert UNKNOWN in {rect.attrib["fill"] for rect in root.iter(f"{SVG}rect")}


def test_everything_lies_within_the_picture() -> None:
    pages = {node: [node] * 3 + [7, HOLE, UNSEEN] * (40 * node) for node in range(6)}
    vm = vm_to_json(located_status(pages))
    root = drawn(vm, vm)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.findall(f"{SVG}rect"):
        assert float(rect.attrib.get("x", "0")) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib.get("y", "0")) + float(rect.attrib["height"]) <= height


def test_a_name_is_only_text() -> None:
    vm = vm_to_json(located_status({0: [0]})) | {"vm": '<script>"&\x1b\x00'}
    assert texts(drawn(vm))[0] == '<script>"&\\x1b\\x00'


def test_what_was_not_seen_is_said_and_no_vm_is_a_picture_too() -> None:
    vm = vm_to_json(located_status({0: [0]}))
    vm["guest_nodes"][0]["regions"][0]["where"] = None
    assert "guest node 0: not all of it could be seen, or was looked at" in texts(drawn(vm))
    assert texts(drawn()) == []
