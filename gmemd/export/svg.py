"""Where a VM's memory is, as a picture: each guest node's address space, coloured by host node.

An SVG that stands by itself: no script, no font, nothing loaded. The VM is the JSON of the API.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from gmemd.spec.problems import printable
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COLOURS = ("#4477aa", "#ccbb44", "#228833", "#aa3377", "#66ccee", "#ee8866", "#44bb99", "#777777")
"""Of host nodes by number, over again from the ninth on: told apart with any eyes, none is red."""

MISPLACED = "#d00000"
UNKNOWN = "#000000"
_EMPTY = "#eeeeee"
_INK, _PAPER = "#222222", "#ffffff"
_SMALL = {"fill": "#666666", "font_size": "11"}

_MARGIN = 24
_WIDTH = 1000
_BAR_HEIGHT, _MARK_HEIGHT = 36, 6
_LINE = 18
_TITLE_LINE = 30
_STRETCH_HEIGHT = _LINE + _BAR_HEIGHT + _MARK_HEIGHT + 4 + _LINE + 12
_LEGEND_STEP = 190
_LEAST_WIDTH = 4


def colour_of(host_node: int) -> str:
    """The colour of a host node, as #rrggbb."""
    return COLOURS[host_node % len(COLOURS)]


def render_svg(vms: Sequence[Mapping[str, Any]]) -> str:
    """Draw VMs, one below the other, that were audited with where.

    In each column the colours' heights are shares of that piece of the address space; below it a
    red mark is as strong as the share that is misplaced. A guest node that couldn't be seen, or
    wasn't looked at, says so.
    """
    drawn: list[str] = []
    y = _MARGIN
    for vm in vms:
        parts, y = _draw_vm(vm, y)
        drawn += parts
    width = _WIDTH + 2 * _MARGIN
    size = f'viewBox="0 0 {width} {y}" width="{width}" height="{y}"'
    font = f'font-family="sans-serif" font-size="13" fill="{_INK}"'
    edges = 'shape-rendering="crispEdges"'  # side by side without seams, at whole pixels
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} {edges}>',
            f'<rect width="{width}" height="{y}" fill="{_PAPER}"/>',
            *drawn,
            "</svg>",
            "",
        )
    )


def located(vm: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each guest node and region of a VM of which it is known where in it what is."""
    for node in vm["guest_nodes"]:
        for region in node["regions"]:
            if region.get("where") is not None:
                yield node, region


def address_words(stretch: Mapping[str, Any], at: int = 0) -> str:
    """A guest-physical address, ``at`` bytes into a stretch; else an offset in the guest node."""
    if stretch["gpa"] is not None:
        return f"0x{stretch['gpa'] + at:09x}"
    return f"+0x{stretch['offset'] + at:x}"


def _draw_vm(vm: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    """A VM's elements from ``y`` on, and where they end."""
    name = printable(vm["vm"], longest=80)
    drawn = [_text(_MARGIN, y + 16, name, font_size="18", font_weight="bold")]
    y += _TITLE_LINE
    legend, y = _legend(vm, y)
    drawn += legend
    shown = list(located(vm))
    sizes = [stretch["size"] for _, region in shown for stretch in region["where"]["stretches"]]
    for node in vm["guest_nodes"]:
        mine = [region for other, region in shown if other is node]
        if len(mine) < len(node["regions"]):
            words = f"guest node {node['id']}: not all of it could be seen, or was looked at"
            drawn.append(_text(_MARGIN, y + 13, words))
            y += _LINE
        for region in mine:
            for stretch in region["where"]["stretches"]:
                drawn += _draw_stretch(node, stretch, _WIDTH / max(sizes), y)
                y += _STRETCH_HEIGHT
    return drawn, y + _MARGIN


def _legend(vm: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    """What the colours are, with what there is of each."""
    held: dict[int, int] = {}
    misplaced = unknown = 0
    for _, region in located(vm):
        for stretch in region["where"]["stretches"]:
            for cell in stretch["cells"]:
                misplaced += cell["misplaced"]
                unknown += cell["unknown"]
                for node, size in cell["by_node"].items():
                    held[int(node)] = held.get(int(node), 0) + size
    entries = [
        (colour_of(node), f"host node {node}: {format_size(held[node])}") for node in sorted(held)
    ]
    if unknown:
        entries.append((UNKNOWN, f"unknown: {format_size(unknown)}"))
    entries.append((_EMPTY, "not allocated"))
    if misplaced:
        entries.append((MISPLACED, f"misplaced: {format_size(misplaced)}"))
    drawn = []
    per_line = _WIDTH // _LEGEND_STEP
    for number, (colour, words) in enumerate(entries):
        x = _MARGIN + number % per_line * _LEGEND_STEP
        line = y + number // per_line * _LINE
        height = _MARK_HEIGHT if colour == MISPLACED else 12
        drawn.append(_rect(x, line + 12 - height, 12, height, fill=colour))
        drawn.append(_text(x + 18, line + 11, words))
    return drawn, y + -(-len(entries) // per_line) * _LINE + 10


def _draw_stretch(
    node: Mapping[str, Any], stretch: Mapping[str, Any], scale: float, y: int
) -> Iterator[str]:
    """One bar: ``scale`` is in pixels per byte."""
    size = stretch["size"]
    width = max(_LEAST_WIDTH, round(size * scale))
    scale = width / size
    words = f"guest node {node['id']}: {format_size(size)} at {address_words(stretch)}"
    yield _text(_MARGIN, y + 13, words)
    y += _LINE
    yield _rect(_MARGIN, y, width, _BAR_HEIGHT, fill=_EMPTY)
    for start, length, cell in _alike(stretch):
        tip = f"{address_words(stretch, start)}, {format_size(length)}: {_cell_words(cell)}"
        left = round(start * scale)
        right = max(left + 1, round((start + length) * scale))
        yield f'<g transform="translate({_MARGIN + left} {y})">'
        yield f"<title>{escape(tip)}</title>"
        yield from _draw_cell(cell, right - left, length)
        yield "</g>"
    y += _BAR_HEIGHT + _MARK_HEIGHT + 4
    yield _text(_MARGIN, y + 11, address_words(stretch), **_SMALL)
    if width > _WIDTH / 2:
        end = address_words(stretch, size)
        yield _text(_MARGIN + width, y + 11, end, text_anchor="end", **_SMALL)


def _alike(stretch: Mapping[str, Any]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Parts that hold the same throughout: start and length in bytes, and what they hold in all."""
    number = 0
    for (by_node, misplaced, unknown), group in groupby(stretch["cells"], key=_contents):
        count = len(list(group))
        start = number * stretch["cell_size"]
        length = min(stretch["size"], start + count * stretch["cell_size"]) - start
        if by_node or unknown:
            yield (
                start,
                length,
                {
                    "by_node": {node: size * count for node, size in by_node},
                    "misplaced": misplaced * count,
                    "unknown": unknown * count,
                },
            )
        number += count


def _contents(cell: Mapping[str, Any]) -> tuple[list[tuple[str, int]], int, int]:
    return list(cell["by_node"].items()), cell["misplaced"], cell["unknown"]


def _draw_cell(cell: Mapping[str, Any], width: int, length: int) -> Iterator[str]:
    """A part of ``length`` bytes, its corner at the origin."""
    held = [(colour_of(int(node)), size) for node, size in cell["by_node"].items()]
    bottom = float(_BAR_HEIGHT)
    for colour, size in [*held, (UNKNOWN, cell["unknown"])]:
        if size:
            height = _BAR_HEIGHT * size / length
            bottom -= height
            yield _rect(0, bottom, width, height, fill=colour)
    if cell["misplaced"]:
        opacity = f"{0.4 + 0.6 * cell['misplaced'] / length:.2f}"
        top = _BAR_HEIGHT + 2
        yield _rect(0, top, width, _MARK_HEIGHT, fill=MISPLACED, opacity=opacity)


def _cell_words(cell: Mapping[str, Any]) -> str:
    words = [f"host node {node} {format_size(size)}" for node, size in cell["by_node"].items()]
    if cell["unknown"]:
        words.append(f"unknown {format_size(cell['unknown'])}")
    if cell["misplaced"]:
        words.append(f"{format_size(cell['misplaced'])} misplaced")
    return ", ".join(words)


def _rect(x: float, y: float, width: float, height: float, **more: str) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f"<rect {place}{_attributes(more)}/>"


def _text(x: float, y: float, words: str, **more: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}"{_attributes(more)}>{escape(words)}</text>'


def _attributes(given: Mapping[str, str]) -> str:
    """Attributes by their names, with underscores for hyphens."""
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in given.items())
