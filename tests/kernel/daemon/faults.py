"""Faults around a daemon: its helpers stopped where they are, and what it has left afterwards."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.daemon.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

HELPERS = (b"gmemd.memory.prefault_child", b"gmemd.memory.creator_child")


class Left:
    """What a daemon has, by which a fault that leaves something behind shows."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._daemon = daemon
        self._proc = Path(f"/proc/{daemon.process.pid}")
        self._before = self._now()

    def check(self) -> None:
        """All is as it was, soon."""
        self._daemon.until(lambda: self._now() == self._before)

    def _now(self) -> dict[str, object]:
        links, inodes = [], set()
        for fd in (self._proc / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                links.append(str(fd.readlink()))
                inodes.add(fd.stat().st_ino)
        mapped = re.findall(r"(\d+) +\S*(?:memfd:|kvm-gmem)", (self._proc / "maps").read_text())
        metrics = self._daemon.metrics()
        return {
            "memory": Counter(re.sub(r"\d+", "N", link) for link in links if "mem" in link),
            "pidfds": sum("pidfd" in link for link in links),
            "mapped, and not open": {int(inode) for inode in mapped} - inodes,
            "helpers": helpers(self._daemon),
            "committed": sum(
                size
                for name, size in metrics.items()
                if name.startswith("gmemd_host_node_committed_bytes")
            ),
        }


def helpers(daemon: Daemon) -> set[int]:
    """The short-lived processes that the daemon has now for making memory."""
    return {pid for pid in _children(daemon) if any(name in _command_line(pid) for name in HELPERS)}


def stop_next_helper(daemon: Daemon, before: set[int]) -> int:
    """Stop the prefault helper that is there beside those of before, at its beginning; its pid.

    It is waited for in haste: what it allocates has to take a tenth of a second or more.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for pid in helpers(daemon) - before:
            if HELPERS[0] in _command_line(pid):
                os.kill(pid, signal.SIGSTOP)
                return pid
    raise AssertionError(daemon.log.read_text())


def _children(daemon: Daemon) -> Iterator[int]:
    assert daemon.process is not None
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, (task / "children").read_text().split())


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
