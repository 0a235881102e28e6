from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.numa_stat import (
    hugetlb_size_name,
    parse_hugetlb_numa_stat,
    parse_memory_numa_stat,
    read_hugetlb_numa_stat,
    read_memory_numa_stat,
)
from gmemd.kernel.procfs.text import ProcfsError

if TYPE_CHECKING:
    from pathlib import Path

V2 = "anon N0=4096 N1=0\nfile N0=8192 N1=16384\nunevictable N0=0 N1=12288\n"
V1 = "total=5 N0=2 N1=3\nfile=3 N0=1 N1=2\nhierarchical_total=5 N0=2 N1=3\n"
HUGETLB = "total=4194304 N0=0 N1=4194304\nhierarchical_total=6291456 N0=2097152 N1=4194304\n"


def test_cgroup_v2_counts_bytes() -> None:
    assert parse_memory_numa_stat(V2)["file"] == {0: 8192, 1: 16384}


def test_cgroup_v1_counts_pages() -> None:
    assert parse_memory_numa_stat(V1)["file"] == {0: 4096, 1: 8192}
    assert parse_memory_numa_stat(V1)["hierarchical_total"] == {0: 8192, 1: 12288}


def test_hugetlb_counts_its_own_bytes() -> None:
    assert parse_hugetlb_numa_stat(HUGETLB) == {0: 0, 1: 4194304}
    with pytest.raises(ProcfsError, match="no 'total' line"):
        parse_hugetlb_numa_stat("")


def test_reads_a_cgroups_files(tmp_path: Path) -> None:
    (tmp_path / "memory.numa_stat").write_text(V2)
    (tmp_path / "hugetlb.2MB.numa_stat").write_text(HUGETLB)
    assert read_memory_numa_stat(tmp_path)["anon"][0] == 4096
    assert read_hugetlb_numa_stat(tmp_path, 2 << 20)[1] == 4194304


@pytest.mark.parametrize(
    ("page_size", "name"),
    [(2 << 20, "2MB"), (1 << 30, "1GB"), (64 << 10, "64KB"), (16 << 30, "16GB")],
)
def test_hugetlb_spells_sizes_as_the_controller_does(page_size: int, name: str) -> None:
    assert hugetlb_size_name(page_size) == name


@given(st.integers(0, len(V2)))
def test_a_cut_anywhere_is_no_crash(end: int) -> None:
    try:
        assert len(parse_memory_numa_stat(V2[:end])) <= 3
    except ProcfsError as error:
        assert error.why  # noqa: PT017  some cuts fail, some don't


@given(st.text())
def test_any_text_is_counters_or_the_typed_error(text: str) -> None:
    for parse in (parse_memory_numa_stat, parse_hugetlb_numa_stat):
        try:
            parse(text)
        except ProcfsError as error:
            assert error.why  # noqa: PT017
