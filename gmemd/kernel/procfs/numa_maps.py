"""/proc/PID/numa_maps: per mapping the policy in force and mapped pages per host node."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, parse_id_list, parse_number, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODES = {
    "default": "default",
    "local": "local",
    "prefer": "preferred",
    "prefer (many)": "preferred-many",
    "bind": "bind",
    "interleave": "interleave",
    "weighted interleave": "weighted-interleave",
    "unknown": "unknown",
}
"""mpol_to_str()'s words (two of them with a space) and a spec's."""

_LINE = re.compile(
    r"^([0-9a-f]{1,16}) (?P<policy>(?P<mode>prefer \(many\)|weighted interleave|[a-z]+)"
    r"(?:=(?P<flags>[a-z|]+))?(?::(?P<nodes>[\d,-]*))?)(?P<rest>(?: .*)?)$",
    re.ASCII,
)
_NODE = re.compile(r"N(\d{1,5})$", re.ASCII)
_OCTAL = re.compile(r"\\([0-7]{3})", re.ASCII)
_BUFFER = 64
"""The kernel prints the policy into a buffer of this many bytes, and cuts it there in silence."""


@dataclass(frozen=True, slots=True)
class NumaMapsEntry:
    """One mapping: where it starts, its policy, its mapped pages.

    ``mode`` is spelled as in specs. ``truncated`` says that the kernel cut the node list, so that
    ``nodes`` isn't all of them. ``pages`` counts pages of ``page_size`` bytes per host node;
    ``counters`` holds the other figures (anon, dirty, mapped, …), ``words`` the bare ones
    (heap, stack, huge).
    """

    start: int
    mode: str
    flags: frozenset[str]
    nodes: frozenset[int]
    truncated: bool
    file: str
    page_size: int
    pages: Mapping[int, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    words: frozenset[str] = frozenset()


def parse_numa_maps(text: str, path: str = "numa_maps") -> tuple[NumaMapsEntry, ...]:
    """All mappings in the file's order. Raises ProcfsError."""
    return tuple(_parse_line(line, path) for line in text.split("\n") if line)


def read_numa_maps(pid: int | str = "self", root: Path = Path("/")) -> tuple[NumaMapsEntry, ...]:
    """Return the process' mappings; reading another's holds its locks. Raises ProcfsError."""
    path = root / f"proc/{pid}/numa_maps"
    return parse_numa_maps(read_text(path), str(path))


def _parse_line(line: str, path: str) -> NumaMapsEntry:
    match = _LINE.match(line)
    mode = _MODES.get(match["mode"]) if match is not None else None
    if match is None or mode is None:
        raise ProcfsError(path, f"{line[:60]!r} is no line of a numa_maps")
    truncated = len(match["policy"]) >= _BUFFER - 1
    nodes = match["nodes"] or ""
    if truncated:  # the last number may be cut in two
        nodes = nodes.rpartition(",")[0]
    file, pages, counters, words = _fields(match["rest"].split(" "), path)
    page_size = counters.pop("kernelpagesize_kB", 4) * 1024
    return NumaMapsEntry(
        start=int(match[1], 16),
        mode=mode,
        flags=frozenset((match["flags"] or "").split("|")) - {""},
        nodes=parse_id_list(nodes, path),
        truncated=truncated,
        file=file,
        page_size=page_size,
        pages=pages,
        counters=counters,
        words=words,
    )


def _fields(
    words: list[str], path: str
) -> tuple[str, dict[int, int], dict[str, int], frozenset[str]]:
    """Return the file's name, pages per node, other counters, bare words."""
    file = ""
    pages: dict[int, int] = {}
    counters: dict[str, int] = {}
    bare: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        if key == "file" and equals:
            file = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), value)
        elif not equals:
            bare.add(word)
        elif (node := _NODE.match(key)) is not None:
            pages[int(node[1])] = parse_number(value, path)
        else:
            counters[key] = parse_number(value, path)
    return file, pages, counters, frozenset(bare - {""})
