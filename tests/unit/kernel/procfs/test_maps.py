from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.maps import parse_maps, read_maps
from gmemd.kernel.procfs.text import ProcfsError

TEXT = (
    "7f0000000000-7f0000200000 rw-s 00100000 00:01 2051    /memfd:guest ram (deleted)\n"
    "7f0000200000-7f0000201000 ---p 00000000 00:00 0 \n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n"
)


def test_reads_names_with_spaces_and_mappings_without_any() -> None:
    shared, nameless, vsyscall = parse_maps(TEXT)
    assert shared.name == "/memfd:guest ram (deleted)"
    assert (shared.offset, shared.inode, shared.device) == (1 << 20, 2051, (0, 1))
    assert shared.shared
    assert shared.size_bytes == 2 << 20
    assert (nameless.name, nameless.shared) == ("", False)
    assert vsyscall.name == "[vsyscall]"


def test_sees_a_mapping_of_this_process() -> None:
    with mmap.mmap(-1, 3 * mmap.PAGESIZE, mmap.MAP_SHARED) as mapped:
        sizes = {entry.size_bytes for entry in read_maps() if entry.name.startswith("/dev/zero")}
        assert 3 * mmap.PAGESIZE in sizes
        assert len(mapped) == 3 * mmap.PAGESIZE


@pytest.mark.parametrize("line", ["x", "2000-1000 rw-p 0 00:00 0", "1000-2000 rw-q 0 00:00 0"])
def test_damage_is_a_typed_error(line: str) -> None:
    with pytest.raises(ProcfsError):
        parse_maps(line)


@given(st.integers(0, len(TEXT)))
def test_a_cut_anywhere_is_no_crash(end: int) -> None:
    try:
        assert len(parse_maps(TEXT[:end])) <= 3
    except ProcfsError as error:
        assert error.why  # noqa: PT017  some cuts fail, some don't


@given(st.text())
def test_any_text_is_mappings_or_the_typed_error(text: str) -> None:
    try:
        parse_maps("1000-2000 rw-p 00000000 00:00 0 " + text)
    except ProcfsError as error:
        assert error.why  # noqa: PT017
