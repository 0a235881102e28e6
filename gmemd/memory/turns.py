"""Whose chunk is allocated next, where more VMs are prefaulted than there are CPUs for it.

Each CPU allocates for one thread at a time, so threads beyond that only make all of them late: the
turn is the VM's that has the least left. A small VM waits for a chunk of a large one, never for its
end; and a large one for no more than what others can still be given, which memory bounds.

Measured on 2 CPUs that others used too, of two VMs of 4 GiB and, 0.2 s later, four of 256 MiB: the
small ones were ready after 6.6 s (mean) where two VMs had their turn at a time, after 1.8 s where
all helpers ran and the CPUs were shared by the kernel, and after 1.0 s so; all six took as long.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from itertools import count
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_POLL_MILLISECONDS = 100


class Seat:
    """One helper among all. ``fd`` is readable once it is worth to ask again after a refusal.

    For one thread; it is given up at the end of its ``with`` block, with all turns.
    """

    def __init__(
        self, turns: Turns, cpus: frozenset[int], n_threads: int, left: Callable[[], int]
    ) -> None:
        self.cpus = cpus
        self.n_threads = n_threads
        self.left = left
        self.taken = 0
        self.waiting = False
        self.number = next(turns.numbers)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._turns = turns

    def __enter__(self) -> Self:
        self._turns.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._turns.leave(self)
        os.close(self.fd)

    @property
    def working(self) -> int:
        """How many of its threads are at work; a chunk more lies ready for the next that is not."""
        return min(self.taken, self.n_threads)

    def take(self) -> bool:
        """Take a turn: whether a chunk may be dealt now. `give_back` it when that is done."""
        return self._turns.take(self)

    def give_back(self) -> None:
        """End a turn."""
        self._turns.give_back(self)

    def wait(self, cancel: threading.Event) -> bool:
        """Wait for a turn, and take it; False once ``cancel`` is set."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while not cancel.is_set():
            if self.take():
                return True
            if poll.poll(_POLL_MILLISECONDS):
                self.clear()
        return False

    def clear(self) -> None:
        """Take note of what made ``fd`` readable; to be followed by asking again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def rest(self) -> None:
        """Ask for no turn any more: whoever has more left needn't wait."""
        if self.waiting:
            self._turns.rest(self)


class Turns:
    """Who allocates and who waits. One for the whole process."""

    def __init__(self) -> None:
        self.numbers = count()
        self._seats: dict[int, Seat] = {}
        self._lock = threading.Lock()

    def seat(self, cpus: frozenset[int], n_threads: int, left: Callable[[], int]) -> Seat:
        """A seat for a helper on these CPUs; ``left``: the bytes that its VM still has to get."""
        return Seat(self, cpus, n_threads, left)

    def enter(self, seat: Seat) -> None:
        """Let a seat take part."""
        with self._lock:
            self._seats[seat.number] = seat

    def leave(self, seat: Seat) -> None:
        """Its turns are others'."""
        with self._lock:
            del self._seats[seat.number]
            self._wake(seat)

    def take(self, seat: Seat) -> bool:
        """Take a turn if a CPU is free, and none that shares its CPUs and has less left waits.

        A chunk beyond a seat's threads is one ahead: that may be had while nobody waits.
        """
        with self._lock:
            others = [other for other in self._seats.values() if self._share(seat, other)]
            waiting = [other for other in others if other.waiting]
            if seat.taken >= seat.n_threads:
                granted = not waiting
            else:
                mine = (seat.left(), seat.number)
                working = seat.working + sum(other.working for other in others)
                granted = working < max(1, len(seat.cpus)) and not any(
                    (other.left(), other.number) < mine for other in waiting
                )
                seat.waiting = not granted
            seat.taken += granted
            return granted

    def rest(self, seat: Seat) -> None:
        """It waits no more."""
        with self._lock:
            seat.waiting = False
            self._wake(seat)

    def give_back(self, seat: Seat) -> None:
        """Give a turn back."""
        with self._lock:
            seat.taken -= 1
            self._wake(seat)

    @staticmethod
    def _share(seat: Seat, other: Seat) -> bool:
        return other is not seat and not seat.cpus.isdisjoint(other.cpus)

    def _wake(self, seat: Seat) -> None:
        for other in self._seats.values():
            if other.waiting and self._share(seat, other):
                os.eventfd_write(other.fd, 1)


turns = Turns()
