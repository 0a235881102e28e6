"""Where log lines go: to the journal under systemd, to stderr else."""

from __future__ import annotations

import logging
import os
import sys
from typing import cast

from gmemd.daemon.notify import systemd_python

_SYSLOG = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.DEBUG, 7),
)


def configure(level: int = logging.INFO) -> None:
    """Send gmemd's log lines, and its libraries' warnings, where they belong."""
    root = logging.getLogger()
    root.handlers[:] = [_handler()]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("gmemd").setLevel(level)
    logging.captureWarnings(capture=True)


def _handler() -> logging.Handler:
    if _stderr_is_journal():
        journal = systemd_python("journal")
        if journal is not None:
            return cast("logging.Handler", journal.JournalHandler(SYSLOG_IDENTIFIER="gmemd"))
        prefixed = logging.StreamHandler()
        prefixed.setFormatter(_PriorityFormatter("%(message)s"))
        return prefixed
    plain = logging.StreamHandler()
    stamp = "%(asctime)s " if sys.stderr.isatty() else ""
    plain.setFormatter(logging.Formatter(f"{stamp}gmemd: %(levelname)s: %(message)s", "%H:%M:%S"))
    return plain


def _stderr_is_journal() -> bool:
    """Whether stderr is the stream to the journal that systemd opened ($JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    status = os.fstat(sys.stderr.fileno())
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class _PriorityFormatter(logging.Formatter):
    """Begins each line with its syslog priority, as the journal reads it from a stream."""

    def format(self, record: logging.LogRecord) -> str:
        """Format, with <N> before every line."""
        priority = next((number for level, number in _SYSLOG if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
