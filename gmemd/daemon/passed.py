"""File descriptors that systemd passes at the start: listening sockets, and what the store kept.

As sd_listen_fds_with_names(3) has it: LISTEN_FDS of them from number 3 on, for the process of
LISTEN_PID, with LISTEN_FDNAMES between colons.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

FIRST_FD = 3
API = "io.gmemd"
"""What the socket unit of the API calls its socket (FileDescriptorName=)."""

METRICS = "gmemd-metrics"
"""What the socket unit of the metrics calls its sockets."""

STORED = ("r.", "h.", "s.")
"""How the names of stored descriptors begin: regions, holders, the state."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(slots=True)
class Passed:
    """What was passed, by what it is for. The descriptors are the caller's.

    ``api`` is -1 where none was; ``stored`` are names and numbers.
    """

    api: int = -1
    metrics: list[int] = field(default_factory=list)
    stored: list[tuple[str, int]] = field(default_factory=list)


def passed_fds() -> list[tuple[str, int]]:
    """Return the names and numbers of what systemd passed; a second time it is nothing.

    They are closed on exec from then on, and are the caller's.
    """
    pid, number, names, _ = (os.environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()) or not number.isdecimal():
        return []
    fds = range(FIRST_FD, FIRST_FD + int(number))
    for fd in fds:
        os.set_inheritable(fd, False)
    named = names.split(":") if names else []
    return list(zip(named if len(named) == len(fds) else ["unknown"] * len(fds), fds, strict=True))


def sort_passed(passed: Iterable[tuple[str, int]]) -> Passed:
    """Say what each is for; what is for nothing may be in the store, and is to go from there."""
    sorted_out = Passed()
    for name, fd in passed:
        if name == API and sorted_out.api < 0:
            sorted_out.api = fd
        elif name == METRICS:
            sorted_out.metrics.append(fd)
        else:
            if not name.startswith(STORED):
                log.warning("file descriptor %d (%s), passed by systemd, is not used", fd, name)
            sorted_out.stored.append((name, fd))
    return sorted_out
