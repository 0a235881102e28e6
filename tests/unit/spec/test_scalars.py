"""Words whose characters are spaces to some, and not to others."""

from __future__ import annotations

import pytest

from gmemd.spec.problems import FieldError
from gmemd.spec.scalars import (
    parse_confidence,
    parse_cpu_share,
    parse_duration,
    parse_margin,
    parse_percent,
)


@pytest.mark.parametrize("space", ["", " ", "\t", " \t "])
def test_a_number_and_its_unit_may_stand_apart(space: str) -> None:
    assert parse_duration(f"2{space}h") == 7200
    assert parse_percent(f"2.5{space}%") == 0.025


@pytest.mark.parametrize("space", ["\x1c", "\x1d", "\x1f", "\x0c", "\x85", "\xa0", "\u2003", "\n"])
def test_by_nothing_but_blanks(space: str) -> None:
    with pytest.raises(FieldError):
        parse_duration(f"2{space}h")
    for parse in (parse_percent, parse_margin, parse_confidence, parse_cpu_share):
        with pytest.raises(FieldError):
            parse(f"9{space}%")
