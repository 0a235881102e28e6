"""The table that all measurements make, and what is fitted to them."""

from __future__ import annotations

import math

import pytest

from tests.bench import rows
from tests.bench.rows import Row, compared, fitting, growth_table, growths, table


def way(mebibytes: int, ours: float, theirs: float) -> Row:
    return Row("looking", "every page", mebibytes, ours, "ms", theirs, ours / theirs, "C", "<= 1.1")


def test_a_ratio_is_the_median_of_pairs_and_not_that_of_medians() -> None:
    row = compared(
        [(1.0, 1.0), (4.0, 2.0), (9.0, 3.0)], section="s", what="w", mebibytes=1, beside="C"
    )
    assert row.ratio == 2.0
    assert (row.ours, row.theirs) == (4000, 2000)
    row = compared(
        [(1.0, 2.0), (5.0, 5.0), (9.0, 3.0)], section="s", what="w", mebibytes=1, beside="C"
    )
    assert row.ratio == 1.0
    assert row.ours / (row.theirs or 0) == pytest.approx(5 / 3)


def test_the_exponent_of_each_way_is_fitted() -> None:
    measured = [way(size, 3.0 * size, 5.0 * math.sqrt(size)) for size in (1024, 4096, 16384)]
    ours, theirs = growths(measured)
    assert (ours.way, theirs.way) == ("every page", "  C")
    assert ours.exponent == pytest.approx(1)
    assert theirs.exponent == pytest.approx(0.5)
    assert ours.factor == pytest.approx(16)
    assert "1.00" in growth_table([ours, theirs]).splitlines()[2]


def test_one_size_and_what_has_no_cost_have_no_exponent() -> None:
    share = Row("looking", "share", 1024, 1.0, "% of a CPU")
    assert growths([way(1024, 1, 1), share, Row("looking", "start", None, 1, "ms")]) == []


def test_the_table_names_each_way_once_and_what_is_beside_it() -> None:
    text = table([way(1024, 1234.5, 1200.0), Row("other", "start", None, 0.5, "s")])
    lines = text.splitlines()
    assert lines[1] == "looking"
    assert lines[2].split() == [
        "every",
        "page",
        "1024",
        "1234",
        "1200",
        "ms",
        "1.03",
        "<=",
        "1.1",
        "C",
    ]
    assert lines[3:] == ["other", lines[4]]
    assert lines[4].split() == ["start", "0.50", "s"]


def test_sizes_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "meminfo_mib", lambda _: 5000 + rows.MARGIN_MIB)
    assert fitting([8192, 1024, 5000, 1024]) == ([1024, 5000], [8192])


def test_the_machine_is_named() -> None:
    assert "GiB, Linux " in rows.machine()
