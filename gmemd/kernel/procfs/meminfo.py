"""/sys/devices/system/node/nodeN/meminfo and /proc/meminfo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINE = re.compile(r"^(?:Node \d+ )?([\w()]+): +(\d{1,20})( kB)?$", re.ASCII)


def parse_meminfo(text: str, path: str = "meminfo") -> Mapping[str, int]:
    """Name to bytes; lines without a unit (HugePages_Total and such) stay counts.

    Raises ProcfsError where MemTotal or MemFree is missing or a line isn't understood.
    """
    found: dict[str, int] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None:
            raise ProcfsError(path, f"{line[:60]!r} is no line of a meminfo")
        found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    missing = [name for name in ("MemTotal", "MemFree") if name not in found]
    if missing:
        raise ProcfsError(path, f"cut short, no {', '.join(missing)}")
    return found


def read_node_meminfo(node: int, root: Path = Path("/")) -> Mapping[str, int]:
    """Return the node's meminfo in bytes. Raises ProcfsError."""
    path = root / f"sys/devices/system/node/node{node}/meminfo"
    return parse_meminfo(read_text(path), str(path))
