"""Where the state is written: a file that is replaced whole, and a memfd that lives in the store.

The memfd lives exactly as long as the descriptors that the state is about, whatever becomes of the
file; it has two slots that are written in turn, so that one of them is whole at any moment. All of
this blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.daemon.store.records import VERSION, NewerStateError, State, StateError, decode_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

SLOT_BYTES = 64 << 20
"""Room for one state in the memfd, of which only what is written takes memory: some 30,000 VMs."""

NAME = f"s.{VERSION}"
"""What the memfd is called in the store."""

_BODY_BYTES = re.compile(rb'"body_bytes":(\d{1,11})\b')
_HEADER_BYTES = 1 << 20
"""More than a header ever has: thousands of names are in it at the most."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class StateFile:
    """The file, in a directory of its own that is made where it is missing."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.json"

    def write(self, data: bytes) -> None:
        """Replace the file, whole or not at all; raises OSError."""
        fresh = self.path.with_name(f".{self.path.name}")  # a daemon that was killed leaves one
        try:
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise

    def read(self) -> bytes | None:
        """What is in it; None where there is none. Raises OSError."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def set_aside(self, ending: str) -> None:
        """Keep what is there under another name, as it can't be read and is about to be replaced.

        What was set aside so before is replaced.
        """
        aside = self.path.with_suffix(f".{ending}.json")
        try:
            self.path.replace(aside)
        except OSError as error:
            log.warning("keeping %s as %s: %s", self.path, aside, error.strerror)


class StateMemory:
    """The memfd. ``fd`` is its own descriptor; it is closed with `close`."""

    def __init__(self, fd: int = -1) -> None:
        """Make one, or take on one that the store kept; raises OSError."""
        self.fd = fd if fd >= 0 else _new_memfd()

    def write(self, data: bytes, sequence: int) -> None:
        """Write a state beside the one before it; raises OSError."""
        if len(data) > SLOT_BYTES:
            raise OSError(27, os.strerror(27))
        at, left = sequence % 2 * SLOT_BYTES, memoryview(data)
        while left:
            written = os.pwrite(self.fd, left, at)
            at, left = at + written, left[written:]

    def read(self) -> Iterator[bytes]:
        """What each of the two slots begins with, which may be anything; raises OSError."""
        for slot in range(2):
            start = slot * SLOT_BYTES
            line = os.pread(self.fd, _HEADER_BYTES, start).partition(b"\n")[0]
            size = len(line) + 1 + _body_bytes(line)
            yield os.pread(self.fd, min(size, SLOT_BYTES), start)

    def close(self) -> None:
        """Close the descriptor. Harmless when repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Found:
    """The newest state that could be read, if any, and what stood in the way of others.

    ``newer`` is the version of a state that a newer gmemd left; ``damaged``: there was something,
    and nothing of it could be read.
    """

    state: State | None = None
    newer: int = 0
    damaged: bool = False
    problems: tuple[str, ...] = ()


def choose_state(candidates: Iterable[tuple[str, bytes]], boot_id: str) -> Found:
    """Choose among what was read: name of the place, and content. One of another boot is none."""
    best: State | None = None
    newer, problems, tried = 0, [], 0
    for place, data in candidates:
        if not data.strip(b"\0"):
            continue
        try:
            state = decode_state(data)
        except NewerStateError as error:
            newer = max(newer, error.version)
            problems.append(f"{place}: {error}")
            continue
        except StateError as error:
            tried += 1
            problems.append(f"{place}: {error}")
            continue
        if state.header.boot_id != boot_id:
            log.info("%s is from before the machine was started: not used", place)
        elif best is None or state.header.sequence > best.header.sequence:
            best = state
    if best is not None:
        problems += best.unreadable
    return Found(best, newer, damaged=best is None and tried > 0, problems=tuple(problems))


def _new_memfd() -> int:
    fd = os.memfd_create("gmemd-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 2 * SLOT_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _body_bytes(line: bytes) -> int:
    """How much follows a header, by the header's word; nothing where it has none."""
    told = _BODY_BYTES.search(line)
    return int(told[1]) if told else 0
