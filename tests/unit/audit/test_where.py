from __future__ import annotations

import errno
import random
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.where import MOST_CELLS, MOST_RANGES, RegionMap
from gmemd.plan.layout import Extent

if TYPE_CHECKING:
    from gmemd.audit.model import Where

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
HOLE = -32768
UNSEEN = -errno.EBUSY


def located(
    nodes: list[int],
    *,
    allowed: set[int] | None = None,
    extents: tuple[Extent, ...] = (),
    window: int = 1 << 20,
    page_size: int = PAGE,
) -> Where:
    """The map of a region with these pages, which come in windows of so many."""
    found = RegionMap(
        len(nodes) * page_size,
        page_size,
        allowed=frozenset(allowed) if allowed is not None else None,
        holes={HOLE},
        extents=extents,
    )
    for at in range(0, len(nodes), window):
        found.add(at * page_size, array("h", nodes[at : at + window]))
    return found.result()


def ranges(where: Where) -> list[tuple[int, int, dict[int, int]]]:
    """Misplaced ranges in pages: first, how many, and pages by node."""
    return [
        (
            found.offset // PAGE,
            found.size_bytes // PAGE,
            {node: size // PAGE for node, size in found.by_node.items()},
        )
        for found in where.misplaced
    ]


def test_pages_in_a_row_are_one_range() -> None:
    assert ranges(located([0, 1, 1, 1, 0, 1], allowed={0})) == [(1, 3, {1: 3}), (5, 1, {1: 1})]


def test_a_range_goes_over_host_nodes_and_holes_and_ends_with_a_page() -> None:
    where = located([0, HOLE, 1, 2, HOLE, 1, HOLE, HOLE, 0, 2, HOLE], allowed={0})
    assert ranges(where) == [(2, 4, {1: 2, 2: 1}), (9, 1, {2: 1})]


def test_what_is_unknown_ends_a_range_and_is_none() -> None:
    where = located([1, UNSEEN, 1], allowed={0})
    assert ranges(where) == [(0, 1, {1: 1}), (2, 1, {1: 1})]
    assert sum(cell.unknown_bytes for cell in where.stretches[0].cells) == PAGE


def test_where_nothing_is_declared_nothing_is_misplaced() -> None:
    where = located([0, 1, 2])
    assert where.misplaced == ()
    assert [cell.by_node for cell in where.stretches[0].cells] == [{0: PAGE}, {1: PAGE}, {2: PAGE}]


def test_the_largest_ranges_are_kept_in_their_order_and_the_others_counted() -> None:
    sizes = [1 + (7 * number) % 200 for number in range(200)]
    nodes = [node for size in sizes for node in (0, *([1] * size))]
    where = located(nodes, allowed={0})
    kept = [size for _, size, _ in ranges(where)]
    assert sorted(kept) == sorted(sizes)[-MOST_RANGES:]
    assert kept == [size for size in sizes if size in set(kept)]
    assert where.more == 200 - MOST_RANGES
    assert where.more_bytes == (sum(sizes) - sum(kept)) * PAGE


def test_of_equal_ranges_the_first_are_kept() -> None:
    where = located([0, 1] * 100, allowed={0})
    assert [first for first, _, _ in ranges(where)] == list(range(1, 2 * MOST_RANGES, 2))
    assert where.more == 100 - MOST_RANGES


def test_cells_are_no_more_than_a_picture_shows_and_hold_everything() -> None:
    nodes = [0] * 3000 + [1] * 1000 + [HOLE] * 5000 + [2]
    (stretch,) = located(nodes, allowed={0, 1}).stretches
    assert len(stretch.cells) <= MOST_CELLS
    assert stretch.cell_bytes == 64 * PAGE
    assert len(stretch.cells) == -(-9001 // 64)
    assert stretch.cells[0].by_node == {0: stretch.cell_bytes}
    assert stretch.cells[46].by_node == {0: (3000 - 46 * 64) * PAGE, 1: (47 * 64 - 3000) * PAGE}
    assert stretch.cells[100].by_node == {}
    assert (stretch.cells[-1].by_node, stretch.cells[-1].misplaced_bytes) == ({2: PAGE}, PAGE)


def test_extents_have_their_own_cells_and_addresses_and_end_ranges() -> None:
    extents = (Extent(GIB, 0, 4 * PAGE), Extent(4 * GIB, 4 * PAGE, 4 * PAGE))
    where = located([0, 0, 1, 1, 1, 1, 0, 0], allowed={0}, extents=extents, window=3)
    assert [(found.gpa, found.size_bytes) for found in where.misplaced] == [
        (GIB + 2 * PAGE, 2 * PAGE),
        (4 * GIB, 2 * PAGE),
    ]
    assert [(part.gpa, part.offset, part.size_bytes) for part in where.stretches] == [
        (GIB, 0, 4 * PAGE),
        (4 * GIB, 4 * PAGE, 4 * PAGE),
    ]


def test_huge_pages() -> None:
    where = located([1, 0, 1], allowed={0}, page_size=2 * MIB)
    assert [found.offset for found in where.misplaced] == [0, 4 * MIB]
    assert where.stretches[0].cell_bytes == 2 * MIB


def test_a_region_of_4_tib_costs_no_more_than_its_cells() -> None:
    size = 4 << 40
    found = RegionMap(size, 1 << 30, allowed=frozenset({0}), holes={HOLE})
    found.add(0, array("h", [0, 1] * 2048))
    where = found.result()
    assert len(where.stretches[0].cells) == MOST_CELLS
    assert len(where.misplaced) == MOST_RANGES
    assert where.more_bytes + sum(r.misplaced_bytes for r in where.misplaced) == size // 2


@pytest.mark.parametrize("seed", range(40))
def test_windows_chunks_and_runs_are_what_a_walk_over_all_pages_sees(seed: int) -> None:
    draw = random.Random(seed)
    kinds = draw.choice([[0, 1, 2, HOLE, UNSEEN], [1, 2, HOLE], [0, HOLE], [1], [0, 1]])
    nodes: list[int] = []
    while len(nodes) < 3000:
        nodes += [draw.choice(kinds)] * draw.choice([1, 1, 3, 100, 700])
    where = located(nodes, allowed={0}, window=draw.choice([1, 7, 512, 8192]))

    wrong = [(page, node) for page, node in enumerate(nodes) if node not in {0, HOLE, UNSEEN}]
    ends = [0]
    for number, ((before, _), (page, _)) in enumerate(pairwise(wrong), 1):
        if any(nodes[between] != HOLE for between in range(before + 1, page)):
            ends.append(number)
    parts = [wrong[a:b] for a, b in pairwise([*ends, len(wrong)]) if wrong]
    expected = [
        (
            part[0][0],
            part[-1][0] - part[0][0] + 1,
            {node: sum(n == node for _, n in part) for node in sorted({n for _, n in part})},
        )
        for part in parts
    ]
    assert where.more == max(0, len(expected) - MOST_RANGES)
    assert [found for found in expected if found in ranges(where)] == ranges(where)
    assert len(where.misplaced) == min(len(expected), MOST_RANGES)
    cells = where.stretches[0].cells
    assert sum(cell.misplaced_bytes for cell in cells) == len(wrong) * PAGE
    assert sum(cell.unknown_bytes for cell in cells) == nodes.count(UNSEEN) * PAGE
    per_cell = where.stretches[0].cell_bytes // PAGE
    for number, cell in enumerate(cells):
        mine = nodes[number * per_cell : (number + 1) * per_cell]
        held = {node: mine.count(node) * PAGE for node in (0, 1, 2) if node in mine}
        assert cell.by_node == held
