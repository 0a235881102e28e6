"""Several threads for one look at everything, for who can't wait.

The system calls that look at pages run without the interpreter's lock, and in a mapping each, so
that threads hold each other up only where the kernel has one lock for all. A thread isn't pinned
near the memory it reads: what a look reads are the kernel's structures, and whether that pays is to
be measured on a host of several nodes, which no machine was that this was made on.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_T = TypeVar("_T")


class Jobs:
    """So many threads, the caller's own if it is one; ``cpu_seconds`` is what the others used.

    What runs in them is to end soon once ``ending`` is set.
    """

    def __init__(self, number: int = 1) -> None:
        self.cpu_seconds = 0.0
        self.ending = Event()
        self._number = number
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(number, "look") if number > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ending.set()
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, work: Callable[[], _T]) -> list[_T]:
        """Run the same in all threads at once; raises what the first to fail raised."""
        if self._pool is None:
            return [work()]
        running = [self._pool.submit(self._timed, work) for _ in range(self._number)]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
        except BaseException:
            self.ending.set()
            wait(running)
            self.ending.clear()
            raise
        return [each.result() for each in running]

    def one_by_one(self, function: Callable[[int], None]) -> Callable[[int], None]:
        """Give what calls a function from any of the threads, never from two at once."""

        def call(value: int) -> None:
            with self._lock:
                function(value)

        return call

    def _timed(self, work: Callable[[], _T]) -> _T:
        begun = time.thread_time()
        try:
            return work()
        finally:
            with self._lock:
                self.cpu_seconds += time.thread_time() - begun
