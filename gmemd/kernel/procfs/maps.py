"""/proc/PID/maps: a process' mappings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gmemd.kernel.procfs.text import ProcfsError, read_text

_LINE = re.compile(
    r"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps-]) ([0-9a-f]{1,16})"
    r" ([0-9a-f]+):([0-9a-f]+) (\d{1,20})(?: +(.*))?$",
    re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class MapsEntry:
    """One mapping. Addresses and offset in bytes; ``start`` is in it, ``end`` isn't.

    ``device`` is (major, minor). ``name`` is the file's path as the kernel prints it, with
    ``(deleted)`` where it has no name any more, or ``[heap]`` and such, or nothing.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: tuple[int, int]
    inode: int
    name: str

    @property
    def size_bytes(self) -> int:
        """The mapping's length in bytes."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """Whether it is MAP_SHARED; a private file mapping's written pages are anonymous."""
        return self.permissions[3] == "s"


def parse_maps(text: str, path: str = "maps") -> tuple[MapsEntry, ...]:
    """All mappings in the file's order. Raises ProcfsError."""
    entries = []
    for line in text.split("\n"):
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            raise ProcfsError(path, f"{line[:60]!r} is no mapping")
        start, end = int(match[1], 16), int(match[2], 16)
        if end < start:
            raise ProcfsError(path, f"{line[:60]!r} ends before it starts")
        device = (int(match[5], 16), int(match[6], 16))
        offset, name = int(match[4], 16), match[8] or ""
        entries.append(MapsEntry(start, end, match[3], offset, device, int(match[7]), name))
    return tuple(entries)


def read_maps(pid: int | str = "self", root: Path = Path("/")) -> tuple[MapsEntry, ...]:
    """Return the process' mappings. Raises ProcfsError."""
    path = root / f"proc/{pid}/maps"
    return parse_maps(read_text(path), str(path))
