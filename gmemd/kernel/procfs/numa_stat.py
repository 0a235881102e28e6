"""A memory cgroup's memory.numa_stat and hugetlb.SIZE.numa_stat: bytes per host node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NODE = re.compile(r"^N(\d{1,20})=(\d{1,20})$", re.ASCII)
_NAME = re.compile(r"^(\w+)(?:=(\d{1,20}))?$", re.ASCII)


def parse_memory_numa_stat(
    text: str, path: str = "memory.numa_stat", *, page_size: int = 4096
) -> Mapping[str, Mapping[int, int]]:
    """Counter (``file``, ``unevictable``, …) to bytes per host node. Raises ProcfsError.

    Both cgroup versions are read: v2 counts bytes (``file N0=…``), v1 pages (``file=9 N0=…``),
    which are turned into bytes by ``page_size``.
    """
    return {
        name: {node: count * (1 if total is None else page_size) for node, count in nodes.items()}
        for name, total, nodes in _lines(text, path)
    }


def parse_hugetlb_numa_stat(text: str, path: str = "hugetlb.numa_stat") -> Mapping[int, int]:
    """Return the cgroup's own huge pages of one size: bytes per host node. Raises ProcfsError."""
    for name, _, nodes in _lines(text, path):
        if name == "total":
            return nodes
    raise ProcfsError(path, "holds no 'total' line")


def read_memory_numa_stat(
    cgroup: Path, *, page_size: int = 4096
) -> Mapping[str, Mapping[int, int]]:
    """Return the memory.numa_stat of a cgroup's directory, in bytes. Raises ProcfsError."""
    path = cgroup / "memory.numa_stat"
    return parse_memory_numa_stat(read_text(path), str(path), page_size=page_size)


def read_hugetlb_numa_stat(cgroup: Path, page_size: int) -> Mapping[int, int]:
    """Bytes per host node of the cgroup's huge pages of ``page_size`` bytes. Raises ProcfsError."""
    path = cgroup / f"hugetlb.{hugetlb_size_name(page_size)}.numa_stat"
    return parse_hugetlb_numa_stat(read_text(path), str(path))


def hugetlb_size_name(page_size: int) -> str:
    """How the hugetlb controller spells a page size given in bytes: 2MB, 1GB, 64KB."""
    for shift, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if page_size >= 1 << shift:
            return f"{page_size >> shift}{unit}"
    raise ProcfsError(f"hugetlb.{page_size}.numa_stat", "no page is that small")


def _lines(text: str, path: str) -> list[tuple[str, int | None, dict[int, int]]]:
    """Per line: the counter's name, its v1 total if there is one, and counts per node."""
    found = []
    for line in text.split("\n"):
        words = line.split()
        if not words:
            continue
        name = _NAME.match(words[0])
        nodes = [_NODE.match(word) for word in words[1:]]
        if name is None or not all(nodes):
            raise ProcfsError(path, f"{line[:60]!r} is no line of a numa_stat")
        counts = {int(node[1]): int(node[2]) for node in nodes if node is not None}
        found.append((name[1], None if name[2] is None else int(name[2]), counts))
    return found
