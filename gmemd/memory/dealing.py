"""Dealing a range out to a prefault helper, chunk by chunk, each after another look at the guards.

The helper allocates and nothing else. All sizes in bytes.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.kernel.errors import KernelError
from gmemd.memory import cgroup, residency
from gmemd.memory.child import ChildError, talking
from gmemd.memory.guard import claims

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from gmemd.memory.guard import Guard

_POLL_MILLISECONDS = 100
_MOST_MESSAGE_BYTES = 256
# Freed pages reach the counters with a delay (per-CPU lists are folded once a second), so a node
# is full only when it was so for longer than that.
_SECOND_LOOKS = 5
_SECOND_LOOK_SECONDS = 0.3
_STEP_BYTES = 64 << 20
# A chunk is 256 MiB at the most, and allocated in a second or two. A helper of which nothing was
# heard for so long and whose memory doesn't grow is stopped, frozen or stuck in the kernel.
_STUCK_SECONDS = 60.0
# The helper's own needs, and charges that the kernel makes ahead per CPU.
_PAYERS_MARGIN = 16 << 20
_PAYERS_MARGIN_BEFORE_A_PANIC = 64 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """What is to be allocated, under which guard (None: none), and who pays (None: unknown)."""

    fd: int
    offset: int
    length: int
    page_size: int
    guard: Guard | None
    payer: Path | None
    n_threads: int


class StepError(Exception):
    """The helper couldn't become what the range needs: the step, and the errno."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step)
        self.step = step
        self.errno = number


class StuckError(Exception):
    """Nothing was heard of the helper for long, and what it is to allocate doesn't grow."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.0f} s")
        self.seconds = seconds


class Dealer:
    """One range and one helper. ``unpinned``: the CPUs that it was told aren't allowed."""

    def __init__(self, of: Range, channel: socket.socket) -> None:
        self._of = of
        self._channel = channel
        self._position = 0
        self._done = 0
        self._dealt: dict[int, int] = {}
        self._heard_at = 0.0
        self._grown_to = -1
        self.unpinned = False

    def deal(self, progress: Callable[[int], None], cancel: threading.Event) -> bool:
        """Have the range allocated: whether all of it was. Blocks.

        False: no room is left, or ``cancel`` was set. Raises ChildError (the helper is gone),
        StuckError, StepError and KernelError.
        """
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        self._heard_at = time.monotonic()
        try:
            while not cancel.is_set():
                self._deal_out()
                if not self._dealt and not self._look_again(cancel):
                    break
                if not poll.poll(_POLL_MILLISECONDS):
                    self._give_up_if_stuck()
                    continue
                self._heard_at = time.monotonic()
                if self._hear():
                    progress(self._done)
        finally:
            for length in self._dealt.values():
                self._give_back(length)
        return self._done == self._of.length

    def payers_room_bytes(self) -> int | None:
        """What the payer has room for; None where nothing limits it."""
        room = None if self._of.payer is None else cgroup.room_bytes(self._of.payer)
        panics = self._of.guard is not None and self._of.guard.oom_panics
        margin = _PAYERS_MARGIN_BEFORE_A_PANIC if panics else _PAYERS_MARGIN
        return None if room is None else max(0, room - margin)

    def _deal_out(self) -> None:
        """A chunk for each thread and, far from every limit, one that it finds waiting."""
        while len(self._dealt) < 2 * self._of.n_threads:
            self._skip_what_is_there()
            chunk = self._chunk()
            if not chunk:
                return
            offset = self._of.offset + self._position
            self._dealt[offset] = chunk
            self._position += chunk
            with talking("send"):
                self._channel.send(f"{offset} {chunk}".encode())

    def _look_again(self, cancel: threading.Event) -> bool:
        """Nothing is dealt: whether there is something to deal after a while."""
        for _ in range(_SECOND_LOOKS if self._position < self._of.length else 0):
            if cancel.wait(_SECOND_LOOK_SECONDS):
                break
            self._deal_out()
            if self._dealt:
                self._heard_at = time.monotonic()
                return True
        return False

    def _give_up_if_stuck(self) -> None:
        """Raise StuckError where nothing was heard for too long and no page came meanwhile."""
        silent = time.monotonic() - self._heard_at
        if silent < _STUCK_SECONDS:
            return
        of = self._of
        there = residency.allocated_bytes(of.fd, of.offset, of.length, of.page_size)
        if there == self._grown_to:
            raise StuckError(silent)
        self._grown_to, self._heard_at = there, time.monotonic()

    def _hear(self) -> bool:
        """Take one message: whether a chunk is done."""
        with talking("recv"):
            message = self._channel.recv(_MOST_MESSAGE_BYTES).decode()
        match message.split():
            case ["done", offset, length, number]:
                self._give_back(self._dealt.pop(int(offset)))
                if int(number):
                    what = f"allocating {length} bytes at offset {offset} of fd {self._of.fd}"
                    raise KernelError("fallocate", int(number), what)
                self._done += int(length)
                return True
            case ["unpinned"]:
                self.unpinned = True
            case ["failed", step, number]:
                raise StepError(step, int(number))
            case _:
                raise ChildError("it went away")
        return False

    def _skip_what_is_there(self) -> None:
        """What is allocated already, from here on without a gap, needs no room any more."""
        of = self._of
        while of.page_size == residency.BASE_PAGE and self._position < of.length:
            step = min(of.length - self._position, _STEP_BYTES)
            start = of.offset + self._position
            if residency.allocated_bytes(of.fd, start, step, of.page_size) < step:
                return
            self._position += step
            self._done += step

    def _chunk(self) -> int:
        """How much to deal next; 0 where nothing is left to do, or no room above the reserve."""
        of = self._of
        remaining = of.length - self._position
        if of.guard is None:
            return min(remaining, max(of.page_size, _STEP_BYTES))
        if not remaining:
            return 0
        room = self.payers_room_bytes()
        if room is not None:
            room = max(0, room - sum(self._dealt.values()))
        return claims.take(
            of.guard,
            remaining,
            of.page_size,
            n_threads=of.n_threads,
            payers_room=room,
            ahead=len(self._dealt) >= of.n_threads,
        )

    def _give_back(self, chunk: int) -> None:
        if self._of.guard is not None:
            claims.give_back(self._of.guard, chunk)
