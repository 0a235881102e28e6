"""Faults: which use of which call fails, in which process, and what all of them agree on.

The daemon and its helpers are processes of their own; what they have in common is a directory with
the fault that is wanted, the calls that were made, and a mark of the fault having come about.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAEMON = "daemon"
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Fault:
    """The use number ``n`` (from 0 on) of ``call`` in ``process`` fails with ``errno``."""

    process: str
    call: str
    n: int
    errno: int

    def __str__(self) -> str:
        number = errno.errorcode.get(self.errno, {133: "EHWPOISON"}.get(self.errno, "?"))
        return f"{self.process}: {self.call} #{self.n} {number}"


def of_a_path(call: str, path: object) -> str:
    """The name of a call that a path is given to: the same for every process, fd and node."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return f"{call} {_NUMBERS.sub('#', text)}"


class Faults:
    """The daemon's side: counts calls while armed, and says which of them fails.

    ``in_helpers``: helpers have to look, too, which takes each of them as long again to start.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.in_helpers = False
        self._lock = threading.Lock()
        self._armed = False
        self._fired = False
        self._fault: Fault | None = None
        self._counts: Counter[str] = Counter()
        self._disarm()

    def errno_of(self, call: str) -> int:
        """What the call fails with now; 0: it is to be made."""
        if not self._armed:
            return 0
        with self._lock:
            n = self._counts[call]
            self._counts[call] += 1
            fault = self._fault
            if fault is None or (fault.process, fault.call, fault.n) != (DAEMON, call, n):
                return 0
            self._fired = True
            return fault.errno

    @contextmanager
    def armed(self, fault: Fault | None) -> Iterator[None]:
        """Have the fault come about in the block, or (None) nothing; calls are counted anew."""
        self._counts.clear()
        self._fault, self._fired = fault, False
        self.in_helpers = fault is None or fault.process != DAEMON
        for path in self.directory.iterdir():
            path.unlink()
        self._arm()
        try:
            yield
        finally:
            self._disarm()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither count nor fail what is done in the block."""
        self._disarm()
        try:
            yield
        finally:
            self._arm()

    @property
    def fired(self) -> bool:
        """Whether the fault came about."""
        return self._fired or (self.directory / "fired").exists()

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each call was made, by process and call."""
        counts = {(DAEMON, call): count for call, count in self._counts.items()}
        made = self.directory / "made"
        lines = made.read_text().splitlines() if made.exists() else []
        helpers = Counter(line.partition("\t")[::2] for line in lines)
        return counts | dict(helpers)

    def _arm(self) -> None:
        fault = asdict(self._fault) if self._fault is not None else None
        (self.directory / "armed").write_text(json.dumps(fault))
        self._armed = True

    def _disarm(self) -> None:
        self._armed = False
        (self.directory / "armed").unlink(missing_ok=True)


class HelpersFaults:
    """The same in a helper process, which may be one of many of its kind, one after the other."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory = directory
        self._process = process
        self._busy = threading.Lock()

    def errno_of(self, call: str) -> int:
        """What the call fails with now; 0: it is to be made."""
        with self._busy:
            try:
                armed = json.loads((self._directory / "armed").read_text())
            except FileNotFoundError:
                return 0
            fault = Fault(**armed) if armed is not None else None
            n = self._count(call)
            if fault is None or (fault.process, fault.call, fault.n) != (self._process, call, n):
                return 0
            (self._directory / "fired").touch()
            return fault.errno

    def _count(self, call: str) -> int:
        """Note one more use; how many there were before."""
        line = f"{self._process}\t{call}\n"
        with (self._directory / "made").open("a+") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            made.seek(0)
            before = made.read().splitlines(keepends=True).count(line)
            made.write(line)
        return before
