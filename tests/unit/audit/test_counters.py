from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.audit.counters import read_counters

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def test_file_pages_are_what_guest_memory_is_counted_as(tmp_path: Path) -> None:
    (tmp_path / "memory.numa_stat").write_text(
        "anon N0=4096 N1=0\nfile N0=8192 N1=12288\nunevictable N0=4096 N1=4096\n"
    )
    assert read_counters(tmp_path) == {0: 8192, 1: 12288}


def test_huge_pages_have_counters_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "memory.numa_stat").write_text("file N0=4096 N1=0\n")
    (tmp_path / "hugetlb.2MB.numa_stat").write_text(f"total={4 * MIB} N0={2 * MIB} N1={2 * MIB}\n")
    assert read_counters(tmp_path, {2 * MIB}) == {0: 2 * MIB, 1: 2 * MIB}
    assert read_counters(tmp_path, {4096, 2 * MIB}) == {0: 2 * MIB + 4096, 1: 2 * MIB}


def test_a_cgroup_without_counters_has_none(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "gone") is None
    (tmp_path / "memory.numa_stat").write_text("file N0=4096\n")
    assert read_counters(tmp_path, {4096, 2 * MIB}) is None
