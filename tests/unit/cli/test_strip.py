from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from gmemd.cli.strip import MOST_LINES, print_where
from gmemd.export.snapshot_json import vm_to_json
from tests.unit.located import HOLE, UNSEEN, located_status

if TYPE_CHECKING:
    from collections.abc import Sequence


def printed(
    pages: dict[int, Sequence[int]], *, width: int = 1000, laid_out: bool = True, **options: object
) -> str:
    """What is printed of guest nodes with these pages of 2 MiB."""
    file = io.StringIO()
    out = Console(file=file, width=width, highlight=False, markup=False, emoji=False, **options)
    print_where(out, vm_to_json(located_status(pages, laid_out=laid_out)))
    return file.getvalue()


def test_a_strip_has_the_host_nodes_and_marks_what_is_misplaced() -> None:
    out = printed({0: [0, 0, HOLE, 0], 1: [1, 3, 3, UNSEEN]})
    lines = out.splitlines()
    assert lines[1:4] == [
        "  guest node 0  0x000000000  00.0",
        "  guest node 1  0x040000000  133?",
        "                              !!",
    ]
    assert lines[4].split(": ")[1] == (
        "the host node with most of it, . nothing allocated, ? not seen, "
        "! below what has misplaced pages"
    )
    assert "a character is 2MiB" in lines[4]


def test_misplaced_ranges_are_listed_with_their_addresses() -> None:
    out = printed({0: [0], 1: [1, 3, 3, 1]})
    assert "1  0x040200000  0x040600000  4MiB       4MiB  host 3" in out
    out = printed({0: [0] * 4, 1: [1, 3, HOLE, 2, 1]}, laid_out=False)
    assert "+0x200000  +0x800000  6MiB       4MiB  host 2 2MiB, host 3 2MiB" in out


def test_many_ranges_are_cut_and_counted() -> None:
    out = printed({0: [0, 1] * (MOST_LINES + 3)})
    assert out.count("host 1\n") == MOST_LINES
    assert "and 3 more ranges, none larger: 6MiB misplaced" in out
    out = printed({0: [0, 1] * (MOST_LINES + 1)})
    assert "and 1 more range, none larger: 2MiB misplaced" in out


def test_nothing_misplaced() -> None:
    out = printed({0: [0, 0]})
    assert "no page is misplaced" in out
    assert "!" not in out


def test_what_was_not_seen_is_said() -> None:
    status = located_status({0: [0], 1: [1]})
    vm = vm_to_json(status)
    vm["guest_nodes"][1]["regions"][0]["where"] = None
    file = io.StringIO()
    print_where(Console(file=file, width=200), vm)
    assert "guest node 1: not all of its memory could be seen" in file.getvalue()
    assert "guest node 0  0x" in file.getvalue()


@pytest.mark.parametrize(("width", "per_cell"), [(50, 128), (80, 32), (200, 16)])
def test_strips_fit_the_width_on_one_scale(width: int, per_cell: int) -> None:
    """Guest node 0 is in two pieces, below 3 GiB and above 4."""
    out = printed({0: [0] * 2048, 1: [1] * 700}, width=width)
    strips = [line for line in out.splitlines() if "0x" in line]
    assert all(len(line) <= width for line in strips)
    cells = [line.split("  ")[-1] for line in strips]
    assert [len(row) for row in cells] == [1536 // per_cell, 512 // per_cell, -(-700 // per_cell)]


def test_node_numbers_of_two_digits_have_letters() -> None:
    out = printed({0: [0, 10, 35, 36, 37]})
    assert "0az##" in out
    assert "a host node 10, z host node 35, # host node 36, # host node 37" in out


def test_a_terminal_has_colours_darker_where_less_is_resident() -> None:
    out = printed(
        {0: [0] * 64 + [HOLE, 0] * 32, 1: [1] * 4},
        width=60,
        force_terminal=True,
        color_system="truecolor",
    )
    assert "\x1b[37;48;2;68;119;170m" in out
    assert "\x1b[37;48;2;48;83;119m" in out
    assert "\x1b[30;48;2;" in out
