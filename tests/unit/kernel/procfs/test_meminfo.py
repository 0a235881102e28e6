from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.kernel.procfs.meminfo import parse_meminfo, read_node_meminfo
from gmemd.kernel.procfs.text import ProcfsError

TEXT = "Node 3 MemTotal:  2048 kB\nNode 3 MemFree:   1024 kB\nNode 3 HugePages_Total:  7\n"


def test_kilobytes_become_bytes_and_counts_stay() -> None:
    assert parse_meminfo(TEXT) == {"MemTotal": 2 << 20, "MemFree": 1 << 20, "HugePages_Total": 7}


def test_reads_this_machine() -> None:
    assert read_node_meminfo(0)["MemTotal"] > read_node_meminfo(0)["MemFree"] > 0


@pytest.mark.parametrize("text", ["", "Node 0 MemTotal: 1 kB\n", "Node 0 MemTotal: x kB\n", "?"])
def test_damage_is_a_typed_error(text: str) -> None:
    with pytest.raises(ProcfsError):
        parse_meminfo(text)


@given(st.text())
def test_any_text_is_figures_or_the_typed_error(text: str) -> None:
    try:
        parse_meminfo(TEXT + text)
    except ProcfsError as error:
        assert error.why  # noqa: PT017  most texts fail, some don't
