from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.text import ProcfsError, parse_id_list, parse_number, read_lines, read_text

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "ids"),
    [("", set()), ("\n", set()), ("0\n", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("5,7-7", {5, 7})],
)
def test_id_lists(text: str, ids: set[int]) -> None:
    assert parse_id_list(text, "f") == ids


@pytest.mark.parametrize("text", ["3-1", "a", "0-", "-1", "1,,2", "0-99999999999", "²", "9" * 5000])
def test_what_is_no_id_list(text: str) -> None:
    with pytest.raises(ProcfsError):
        parse_id_list(text, "f")


@given(st.sets(st.integers(0, 1023)))
def test_any_set_of_ids_is_read_back(ids: set[int]) -> None:
    assert parse_id_list(",".join(map(str, sorted(ids))), "f") == ids


@given(st.text())
def test_any_text_is_a_number_or_the_typed_error(text: str) -> None:
    try:
        assert parse_number(text, "f") >= 0
    except ProcfsError as error:
        assert error.path == "f"  # noqa: PT017  most texts fail, some don't


def test_an_unreadable_file_keeps_its_errno(tmp_path: Path) -> None:
    with pytest.raises(ProcfsError, match="ENOENT") as caught:
        read_text(tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_bytes_that_are_no_text_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff\xfe0")
    assert read_text(tmp_path / "f").endswith("0")


def test_a_name_that_no_file_can_have_is_a_typed_error() -> None:
    with pytest.raises(ProcfsError) as caught:
        read_text("/a\0b")
    assert caught.value.errno == errno.EINVAL


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a\x0cb\rc\xc2\x85d\ne\n")
    assert read_lines(path) == ["a\x0cb\rc\x85d", "e"]


def test_what_a_name_holds_does_nothing_to_a_terminal() -> None:
    error = ProcfsError("/a\x1b[31m", "no\u202e \udcff")
    assert str(error) == "/a\\x1b[31m: no\\u202e \\udcff"
    assert error.path == "/a\x1b[31m"
