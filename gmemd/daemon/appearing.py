"""New processes, seen without looking at the old ones again and again.

The kernel tells of each new process only to who has CAP_NET_ADMIN and a netlink socket, and of a
new cgroup only where one is made for it. /proc/loadavg has the number that the newest process or
thread was given: while it is the same there is nothing new, and that is one short read.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from gmemd.errors import GmemdError

YOUNG_SECONDS = 30.0
"""How long a process may take to become a VMM and make its memory: it is looked at until then."""


class Appearances:
    """Processes that have appeared lately. Blocks for some microseconds."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._newest = ""
        self._known: frozenset[str] = frozenset()
        self._young: dict[str, float] = {}

    def look(self) -> frozenset[int]:
        """The pids of processes that are younger than some seconds; all of them the first time.

        Raises GmemdError where they can't be read; the next look tells of them, then.
        """
        try:
            return self._look(time.monotonic())
        except OSError as error:
            raise GmemdError(f"{self._proc} can't be read: {error.strerror}") from error

    def _look(self, now: float) -> frozenset[int]:
        newest = (self._proc / "loadavg").read_text(encoding="ascii").split()[-1]
        if newest != self._newest:
            there = frozenset(filter(str.isdigit, os.listdir(self._proc)))  # noqa: PTH208  names
            self._newest = newest
            self._young = {pid: end for pid, end in self._young.items() if pid in there}
            self._young |= dict.fromkeys(there - self._known, now + YOUNG_SECONDS)
            self._known = there
        self._young = {pid: end for pid, end in self._young.items() if end > now}
        return frozenset(map(int, self._young))
