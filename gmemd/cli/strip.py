"""Where a VM's memory is, on screen: its address space as strips, and the ranges that lie wrong.

The VM is the JSON that the API and ``--json`` give. Colours are those of the SVG; characters and
marks tell the same without colours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gmemd.cli.lines import print_line
from gmemd.cli.output import table
from gmemd.export.svg import address_words, colour_of, located
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

NODE_SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"
OTHER_NODE, HOLE, UNKNOWN, MISPLACED = "#", ".", "?", "!"
"""A host node beyond the signs; nothing allocated; not seen; the mark below what is misplaced."""

MOST_COLUMNS, LEAST_COLUMNS = 128, 16
_BRIGHT = 380  # of red, green and blue together
MOST_LINES = 20
"""Misplaced ranges that are listed, of a VM: the largest."""


@dataclass(slots=True)
class _Piece:
    """What one character stands for, in bytes."""

    size: int
    by_node: Counter[int] = field(default_factory=Counter)
    misplaced: int = 0
    unknown: int = 0

    def add(self, cell: Mapping[str, Any]) -> None:
        self.by_node.update({int(node): size for node, size in cell["by_node"].items()})
        self.misplaced += cell["misplaced"]
        self.unknown += cell["unknown"]

    @property
    def most(self) -> int | None:
        """The host node with most of it; None where nothing of it, or more of it, is unseen."""
        if not self.by_node or self.unknown > self.by_node.total():
            return None
        return max(sorted(self.by_node), key=lambda node: self.by_node[node])

    @property
    def sign(self) -> str:
        """Its character."""
        node = self.most
        if node is None:
            return UNKNOWN if self.unknown else HOLE
        return _sign(node)

    @property
    def style(self) -> str:
        """Its colours: the less of it is resident, the darker."""
        if self.most is None:
            return "black on white" if self.unknown else "dim"
        resident = min(1.0, (self.by_node.total() + self.unknown) / self.size)
        light = 0.4 + 0.6 * resident
        colour = colour_of(self.most)
        shade = [round(int(colour[at : at + 2], 16) * light) for at in (1, 3, 5)]
        ink = "black" if sum(shade) > _BRIGHT else "white"
        return f"{ink} on #{bytes(shade).hex()}"


def _sign(node: int) -> str:
    return NODE_SIGNS[node] if node < len(NODE_SIGNS) else OTHER_NODE


def print_where(out: Console, vm: Mapping[str, Any]) -> None:
    """Print a VM's strips and its misplaced ranges."""
    shown = list(located(vm))
    known = {id(region) for _, region in shown}
    unseen = [
        str(node["id"])
        for node in vm["guest_nodes"]
        if any(id(region) not in known for region in node["regions"])
    ]
    stretches = [
        (node, stretch) for node, region in shown for stretch in region["where"]["stretches"]
    ]
    if stretches:
        out.print()
        _print_strips(out, stretches)
    if unseen:
        out.print()
        words = "not all of its memory could be seen, so where is not told"
        print_line(out, words, indent=2, label=f"guest node {', '.join(unseen)}: ")
    if shown:
        out.print()
        _print_ranges(out, shown)


def _print_strips(
    out: Console, stretches: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """One strip below the other, all on one scale."""
    labels = [f"  guest node {node['id']}  {address_words(each)}  " for node, each in stretches]
    room = max(LEAST_COLUMNS, min(MOST_COLUMNS, out.width - max(map(len, labels)) - 1))
    each = max(stretch["cell_size"] for _, stretch in stretches)
    while max(stretch["size"] for _, stretch in stretches) > each * room:
        each *= 2
    pieces = [_pieces(stretch, each) for _, stretch in stretches]
    width = max(map(len, labels))
    for label, row in zip(labels, pieces, strict=True):
        strip = Text(label.ljust(width))
        for piece in row:
            strip.append(piece.sign, style=piece.style)
        out.print(strip, soft_wrap=True)
        if any(piece.misplaced for piece in row):
            marks = "".join(MISPLACED if piece.misplaced else " " for piece in row)
            out.print(Text(" " * width + marks.rstrip(), style="bold red"), soft_wrap=True)
    print_line(out, _legend(each, [piece for row in pieces for piece in row]), indent=2)


def _pieces(stretch: Mapping[str, Any], each: int) -> list[_Piece]:
    """A stretch in pieces of ``each`` bytes, a multiple of its cells."""
    size, cell_size = stretch["size"], stretch["cell_size"]
    pieces = [_Piece(min(each, size - start)) for start in range(0, size, each)]
    for number, cell in enumerate(stretch["cells"]):
        pieces[number * cell_size // each].add(cell)
    return pieces


def _legend(each: int, pieces: Sequence[_Piece]) -> str:
    """What the characters are."""
    words = [f"a character is {format_size(each)}: the host node with most of it"]
    words += [
        f"{_sign(node)} host node {node}"
        for node in sorted({piece.most for piece in pieces if piece.most is not None})
        if _sign(node) != str(node)
    ]
    signs = {piece.sign for piece in pieces}
    if HOLE in signs:
        words.append(f"{HOLE} nothing allocated")
    if UNKNOWN in signs:
        words.append(f"{UNKNOWN} not seen")
    if any(piece.misplaced for piece in pieces):
        words.append(f"{MISPLACED} below what has misplaced pages")
    return ", ".join(words)


def _print_ranges(
    out: Console, shown: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """The largest misplaced ranges in the order of their addresses, and how many more there are."""
    ranges = [(node, found) for node, region in shown for found in region["where"]["misplaced"]]
    more = sum(region["where"]["more"] for _, region in shown)
    more_bytes = sum(region["where"]["more_bytes"] for _, region in shown)
    if not ranges:
        declared = any(node["drift"] and node["drift"]["declared"] for node, _ in shown)
        words = "no page is misplaced" if declared else "nothing declares where pages should be"
        print_line(out, words, indent=2)
        return
    largest = sorted(ranges, key=lambda pair: -pair[1]["misplaced"])
    listed = {id(found) for _, found in largest[:MOST_LINES]}
    drawn = table()
    for heading in ("guest node", "from", "to", "size", "misplaced"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("on")
    for node, found in ranges:
        if id(found) in listed:
            drawn.add_row(
                str(node["id"]),
                address_words(found),
                address_words(found, found["size"]),
                format_size(found["size"]),
                Text(format_size(found["misplaced"]), style="bold red"),
                ", ".join(_nodes(found)),
            )
    out.print(drawn)
    more += len(ranges) - len(listed)
    more_bytes += sum(found["misplaced"] for _, found in largest[MOST_LINES:])
    if more:
        plural = "" if more == 1 else "s"
        words = f"and {more} more range{plural}, none larger: {format_size(more_bytes)} misplaced"
        print_line(out, words, indent=2)


def _nodes(found: Mapping[str, Any]) -> Iterator[str]:
    for node, size in found["by_node"].items():
        yield f"host {node}" if len(found["by_node"]) == 1 else f"host {node} {format_size(size)}"
