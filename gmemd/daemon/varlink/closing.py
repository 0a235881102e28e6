"""Closing what came from peers, off the event loop and each peer's apart: it may take for ever.

The close of a file on FUSE waits for its server, that of a TCP socket for as long as its SO_LINGER
says, and that of the last descriptor of a guest's memory until all is freed. What is still on its
way in a connection's queue is closed with the connection.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


_NO_MORE = object()


def _nothing() -> None:
    pass


class Closer:
    """Does what may hang, in a thread for each source of file descriptors that has any.

    What hangs holds up what is of the same source alone; that is done in order. Where no thread can
    be had, one that stands by does it, for all sources.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: SimpleQueue[Hashable] = SimpleQueue()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        Thread(target=self._stand_by, name="close", daemon=True).start()

    def close(self, fd: int, source: Hashable, closed: Callable[[], None] = _nothing) -> None:
        """Close a file descriptor sometime; ``closed`` is then called, in a thread."""

        def close() -> None:
            # A file system may say that it failed; the descriptor is gone all the same.
            with contextlib.suppress(OSError):
                os.close(fd)
            closed()

        self.do(close, source)

    def do(self, work: Callable[[], None], source: Hashable) -> None:
        """Call ``work`` sometime, in a thread; it raises nothing."""
        with self._lock:
            waiting = self._waiting.get(source)
            if waiting is not None:
                waiting.append(work)
                return
            self._waiting[source] = deque([work])
        # What hangs must not hold up the daemon's end.
        thread = Thread(target=self._work, args=(source,), name="close", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._left.put(source)

    def end(self) -> None:
        """Have nobody stand by any more, once what is left is done."""
        self._left.put(_NO_MORE)

    def waiting(self, source: Hashable) -> int:
        """Return how much of a source's isn't begun yet."""
        return len(self._waiting.get(source, ()))

    def _stand_by(self) -> None:
        while (source := self._left.get()) is not _NO_MORE:
            self._work(source)

    def _work(self, source: Hashable) -> None:
        while True:
            with self._lock:
                if not self._waiting[source]:
                    del self._waiting[source]
                    return
                work = self._waiting[source].popleft()
            work()


@dataclass(slots=True)
class ClosedLater:
    """A file descriptor whose ``close()`` doesn't wait; for asyncvarlink's FileDescriptorArray."""

    fd: int
    source: Hashable
    closer: Closer

    def fileno(self) -> int:
        """Return the number; raises ValueError once closed."""
        if self.fd < 0:
            raise ValueError("closed")
        return self.fd

    def close(self) -> None:
        """Have it closed. Harmless when repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.closer.close(fd, self.source)
