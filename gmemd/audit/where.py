"""Where in a region its pages are, and which of them lie wrong: in memory that its size is not in.

Pages come window by window, in ascending order, and are summed up at once: in a bounded number of
cells for a picture of the whole, and in ranges of misplaced pages, of which the largest are kept.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from gmemd.audit.model import Cell, MisplacedRange, Stretch, Where

if TYPE_CHECKING:
    from array import array
    from collections.abc import Collection, Sequence

    from gmemd.plan.layout import Extent

MOST_CELLS = 256
"""Of one stretch: as many as a picture can show, and some 10 KiB as JSON."""

MOST_RANGES = 64
"""Of one region: more than anybody reads, and enough to see a pattern in."""

CHUNK_PAGES = 512
"""Pages that are compared, or counted, in one go. Measured on 1 GiB: 10 ns a page where chunks are
of one node, 35 ns where nodes are mixed, and 0.8 us where every other page is misplaced, beside the
1.4 us that it takes to look at a page."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What numbers of nodes mean."""

    page_size: int
    allowed: frozenset[int] | None
    holes: frozenset[int]

    def misplaced(self, node: int) -> bool:
        return node >= 0 and self.allowed is not None and node not in self.allowed


@dataclass(slots=True)
class _Sum:
    """A cell that is being filled, in bytes."""

    by_node: Counter[int] = field(default_factory=Counter)
    misplaced: int = 0
    unknown: int = 0

    def as_cell(self) -> Cell:
        return Cell(dict(sorted(self.by_node.items())), self.misplaced, self.unknown)


class RegionMap:
    """What is where in a region. Sizes and offsets in bytes, the latter from the region's start.

    ``allowed`` are the host nodes where its pages may be, None where they may be anywhere.
    ``extents`` are the region's in the guest's address space, in order, where that is known.
    ``holes`` are the numbers, among those of nodes, that stand for no page.
    """

    def __init__(
        self,
        size_bytes: int,
        page_size: int,
        *,
        allowed: frozenset[int] | None,
        holes: Collection[int],
        extents: Sequence[Extent] = (),
    ) -> None:
        self._page_size = page_size
        self._ranges = _Ranges()
        rules = _Rules(page_size, allowed, frozenset(holes))
        self._stretches = [
            _StretchMap(extent.offset, extent.size, extent.gpa, rules, self._ranges)
            for extent in extents
        ] or [_StretchMap(0, size_bytes, None, rules, self._ranges)]

    def add(self, offset: int, nodes: array[int]) -> None:
        """Take on the pages from ``offset`` on: each one's host node, -errno, or a hole's number.

        No page comes twice, and none after one with a higher offset.
        """
        page_size = self._page_size
        end = offset + len(nodes) * page_size
        for stretch in self._stretches:
            first, last = max(offset, stretch.start), min(end, stretch.end)
            if first < last:
                part = nodes[(first - offset) // page_size : (last - offset) // page_size]
                stretch.add(first, part)

    def result(self) -> Where:
        """What was seen so far."""
        for stretch in self._stretches:
            stretch.close()
        return Where(
            stretches=tuple(stretch.as_stretch() for stretch in self._stretches),
            misplaced=self._ranges.largest(),
            more=self._ranges.more,
            more_bytes=self._ranges.more_bytes,
        )


class _Ranges:
    """The largest misplaced ranges, and what the others add up to."""

    def __init__(self) -> None:
        self.more = self.more_bytes = 0
        self._kept: list[tuple[int, int, MisplacedRange]] = []

    def add(self, start: int, end: int, by_node: dict[int, int], gpa: int | None) -> None:
        """Take on a range in bytes, after all those before it."""
        misplaced = sum(by_node.values())
        full = len(self._kept) == MOST_RANGES
        least = self._kept[0][0] if full else 0
        if full:
            self.more += 1
            self.more_bytes += min(misplaced, least)
        if not full or misplaced > least:
            found = MisplacedRange(start, end - start, dict(sorted(by_node.items())), gpa)
            push = heapq.heapreplace if full else heapq.heappush
            push(self._kept, (misplaced, -start, found))

    def largest(self) -> tuple[MisplacedRange, ...]:
        return tuple(sorted((kept for _, _, kept in self._kept), key=lambda kept: kept.offset))


class _StretchMap:
    """One stretch: its cells, and the misplaced range that its last pages belong to.

    That is open while there are pages by node in it.
    """

    def __init__(
        self, start: int, size_bytes: int, gpa: int | None, rules: _Rules, ranges: _Ranges
    ) -> None:
        self.start, self.end = start, start + size_bytes
        self._gpa = gpa
        self._rules = rules
        self._ranges = ranges
        self._cell_bytes = _cell_bytes(size_bytes, rules.page_size)
        self._chunk_bytes = min(CHUNK_PAGES * rules.page_size, self._cell_bytes)
        self._cells: dict[int, _Sum] = {}
        self._open_start = self._open_end = 0
        self._open_nodes: dict[int, int] = {}

    def add(self, offset: int, nodes: array[int]) -> None:
        """Take on pages, chunk by chunk; a chunk lies within one cell."""
        at = 0
        while at < len(nodes):
            in_chunk = (offset - self.start) % self._chunk_bytes
            count = (self._chunk_bytes - in_chunk) // self._rules.page_size
            chunk = nodes[at : at + count]
            self._add_chunk(offset, chunk)
            at += len(chunk)
            offset += len(chunk) * self._rules.page_size

    def _add_chunk(self, offset: int, nodes: array[int]) -> None:
        alike = nodes == nodes[:1] * len(nodes)
        counts = {nodes[0]: len(nodes)} if alike else Counter(nodes)
        holes = self._rules.holes
        resident = {node: pages for node, pages in counts.items() if node not in holes}
        if not resident:
            return
        misplaced = {node: pages for node, pages in resident.items() if self._rules.misplaced(node)}
        self._fill(offset, resident, sum(misplaced.values()))
        if not misplaced:
            self.close()
        elif len(misplaced) == len(counts):
            self._extend(offset, len(nodes), counts)
        else:
            self._add_runs(offset, nodes)

    def _fill(self, offset: int, resident: dict[int, int], misplaced: int) -> None:
        """Add a chunk's pages to its cell."""
        cell = self._cells.setdefault((offset - self.start) // self._cell_bytes, _Sum())
        for node, pages in resident.items():
            if node >= 0:
                cell.by_node[node] += pages * self._rules.page_size
            else:
                cell.unknown += pages * self._rules.page_size
        cell.misplaced += misplaced * self._rules.page_size

    def _add_runs(self, offset: int, nodes: array[int]) -> None:
        """Follow misplaced ranges through a chunk, run by run."""
        for node, run in groupby(nodes):
            pages = len(list(run))
            if self._rules.misplaced(node):
                self._extend(offset, pages, {node: pages})
            elif node not in self._rules.holes:
                self.close()
            offset += pages * self._rules.page_size

    def _extend(self, offset: int, pages: int, by_node: dict[int, int]) -> None:
        """Go on with the open range, or begin one, over so many misplaced pages."""
        if not self._open_nodes:
            self._open_start = offset
        self._open_end = offset + pages * self._rules.page_size
        for node, found in by_node.items():
            self._open_nodes[node] = self._open_nodes.get(node, 0) + found

    def close(self) -> None:
        """End the open range, if there is one."""
        if not self._open_nodes:
            return
        start, page_size = self._open_start, self._rules.page_size
        by_node = {node: pages * page_size for node, pages in self._open_nodes.items()}
        gpa = None if self._gpa is None else self._gpa + start - self.start
        self._ranges.add(start, self._open_end, by_node, gpa)
        self._open_nodes = {}

    def as_stretch(self) -> Stretch:
        size = self.end - self.start
        return Stretch(
            offset=self.start,
            size_bytes=size,
            cell_bytes=self._cell_bytes,
            cells=tuple(
                self._cells[index].as_cell() if index in self._cells else Cell()
                for index in range(-(-size // self._cell_bytes))
            ),
            gpa=self._gpa,
        )


def _cell_bytes(size_bytes: int, page_size: int) -> int:
    """The least power of two pages of which no more than MOST_CELLS make up so many bytes."""
    cell = page_size
    while cell * MOST_CELLS < size_bytes:
        cell *= 2
    return cell
