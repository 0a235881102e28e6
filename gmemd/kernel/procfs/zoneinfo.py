"""/proc/zoneinfo: what each zone of each node has, in pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, parse_number, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = re.compile(r"Node (\d{1,20}), zone +(\S+)", re.ASCII)
_PROTECTION = re.compile(r"^ *protection: \(([\d, ]*)\)$", re.ASCII)
_LINE = re.compile(r"^ *(?:pages )?(\w+) +(\d{1,20})$", re.ASCII)
_NEEDED = ("free", "high", "managed")
_NEEDED_IF_POPULATED = (
    "nr_zone_inactive_file",
    "nr_zone_active_file",
    "nr_zone_write_pending",
    "nr_free_cma",
)


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of one node; all counts in pages.

    ``protection[i]`` is what the zone keeps back from allocations that could also use zone i
    (lowmem reserve). ``counters`` are the per-zone lines as they are: free, min, low, high,
    managed, cma, nr_zone_active_file and so on.
    """

    node: int
    name: str
    protection: tuple[int, ...]
    counters: Mapping[str, int]

    def pages(self, counter: str) -> int:
        """Return the counter's pages; one that this kernel doesn't print is 0."""
        return self.counters.get(counter, 0)


def parse_zoneinfo(text: str, path: str = "/proc/zoneinfo") -> tuple[Zone, ...]:
    """All zones in the file's order, unpopulated ones too. Raises ProcfsError.

    Per-CPU pagesets, most of the file on a big machine, are cut off unread.
    """
    if not text.endswith("\n"):
        raise ProcfsError(path, "cut short: its last line has no end" if text else "is empty")
    zones = tuple(_parse_zone(section, path) for section in _sections(text))
    if not zones:
        raise ProcfsError(path, "holds no zone")
    return zones


def read_zoneinfo(root: Path = Path("/")) -> tuple[Zone, ...]:
    """All zones of the machine below ``root``. Raises ProcfsError."""
    path = root / "proc/zoneinfo"
    return parse_zoneinfo(read_text(path), str(path))


def _sections(text: str) -> list[str]:
    starts = [match.start() for match in re.finditer(r"^Node ", text, re.MULTILINE)]
    return [text[start:end] for start, end in pairwise([*starts, None])]


def _parse_zone(section: str, path: str) -> Zone:
    header = _HEADER.match(section)
    if header is None:
        line, _, _ = section.partition("\n")
        raise ProcfsError(path, f"{line[:60]!r} is no zone's heading")
    node, name = int(header[1]), header[2]
    # The node-wide statistics come before "pages free", the per-CPU pagesets after the counters.
    start = section.find("\n  pages free")
    if start < 0:
        raise ProcfsError(path, f"node {node} zone {name}: no 'pages free' line")
    end = section.find("\n  pagesets", start)
    body = section[start : end if end >= 0 else len(section)]
    protection: tuple[int, ...] | None = None
    counters: dict[str, int] = {}
    for line in body.split("\n"):
        counter = _LINE.match(line)
        if counter is not None:
            counters.setdefault(counter[1], int(counter[2]))
            continue
        protected = _PROTECTION.match(line)
        if protected is not None:
            parts = [part for part in protected[1].split(",") if part.strip()]
            protection = tuple(parse_number(part, path) for part in parts)
    needed = _NEEDED + (_NEEDED_IF_POPULATED if counters.get("managed") else ())
    missing = [counter for counter in needed if counter not in counters]
    if protection is None:
        missing.append("protection")
    if missing or protection is None:
        raise ProcfsError(path, f"node {node} zone {name}: cut short, no {', '.join(missing)}")
    return Zone(node, name, protection, counters)
