from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.numa_maps import parse_numa_maps, read_numa_maps
from gmemd.kernel.procfs.text import ProcfsError

TEXT = """\
7f0000000000 bind:0-1 file=/memfd:a\\040b\\040(deleted) dirty=5 active=0 N0=3 N1=2
7f0000400000 prefer (many):0,2 anon=1 N2=1 kernelpagesize_kB=4
7f0000600000 weighted interleave=static:0-3 file=/x huge N1=7 kernelpagesize_kB=2048
7f0000800000 default stack anon=3 dirty=3 N0=3 kernelpagesize_kB=4
7f0000a00000 prefer=static|balancing:1
7f0000c00000 local
"""


def test_reads_modes_flags_nodes_and_pages() -> None:
    bind, many, weighted, default, prefer, local = parse_numa_maps(TEXT)
    assert (bind.mode, bind.nodes, bind.file) == ("bind", {0, 1}, "/memfd:a b (deleted)")
    assert (bind.pages, bind.counters) == ({0: 3, 1: 2}, {"dirty": 5, "active": 0})
    assert (many.mode, many.nodes) == ("preferred-many", {0, 2})
    assert (weighted.mode, weighted.flags) == ("weighted-interleave", {"static"})
    assert (weighted.page_size, weighted.pages) == (2 << 20, {1: 7})
    assert weighted.words == {"huge"}
    assert (default.mode, default.words) == ("default", {"stack"})
    assert (prefer.mode, prefer.flags) == ("preferred", {"static", "balancing"})
    assert (local.mode, local.nodes, local.pages) == ("local", frozenset(), {})


def test_a_node_list_that_the_kernel_cut_is_known_as_cut() -> None:
    nodes = ",".join(str(number) for number in range(0, 60, 2))
    (entry,) = parse_numa_maps(f"7f0000000000 {('interleave:' + nodes)[:63]} N0=1")
    assert entry.truncated
    assert entry.nodes < set(range(0, 60, 2))
    assert entry.pages == {0: 1}


def test_reads_this_process() -> None:
    assert any(entry.pages for entry in read_numa_maps())


@pytest.mark.parametrize(
    "line", ["7f00", "7f00 dancing:0", "zz bind:0", "7f00 bind:3-1", "7f00 bind:0 N0=x"]
)
def test_damage_is_a_typed_error(line: str) -> None:
    with pytest.raises(ProcfsError):
        parse_numa_maps(line)


@given(st.integers(0, len(TEXT)))
def test_a_cut_anywhere_is_no_crash(end: int) -> None:
    try:
        assert len(parse_numa_maps(TEXT[:end])) <= 6
    except ProcfsError as error:
        assert error.why  # noqa: PT017  some cuts fail, some don't


@given(st.text())
def test_any_text_is_mappings_or_the_typed_error(text: str) -> None:
    try:
        parse_numa_maps("7f0000000000 bind:0 " + text)
    except ProcfsError as error:
        assert error.why  # noqa: PT017
