"""What a process holds: descriptors, mappings of memory files, children, threads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_NUMBERS = re.compile(r"\d+")
_MEMORY = re.compile(r"memfd:|kvm-gmem|anon_hugepage|userfaultfd")


def descriptors(pid: str | int = "self") -> Counter[str]:
    """How many of each kind are open; sockets and pipes by kind, files by name."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(fd.readlink())
        except FileNotFoundError:
            continue
        if not name.startswith("/proc/"):
            found[_NUMBERS.sub("#", name)] += 1
    return found


def mappings(pid: str | int = "self") -> int:
    """How many mappings of memory files there are."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum(bool(_MEMORY.search(line)) for line in lines)


def children(pid: str | int = "self") -> int:
    """How many child processes there are, zombies included."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            count += len((task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count


def threads(pid: str | int = "self") -> int:
    """How many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def rss_bytes(pid: str | int = "self") -> int:
    """Its anonymous resident memory: what it has allocated, not what it maps of guests."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
