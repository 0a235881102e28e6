"""Closing what came from peers, off the event loop and each peer's apart: it may take for ever.

The close of a file on FUSE waits for its server, that of a TCP socket for as long as its SO_LINGER
says, and that of the last descriptor of a guest's memory until all is freed. What is still on its
way in a connection's queue is closed with the connection.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Closer:
    """Closes file descriptors, in a thread for each source of them that has any.

    A close that hangs holds up those of the same source alone.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[Hashable, deque[tuple[int, Callable[[], None] | None]]] = {}

    def close(self, fd: int, source: Hashable, closed: Callable[[], None] | None = None) -> None:
        """Close a file descriptor sometime; ``closed`` is then called, in a thread."""
        with self._lock:
            waiting = self._waiting.get(source)
            if waiting is not None:
                waiting.append((fd, closed))
                return
            self._waiting[source] = deque([(fd, closed)])
        # A hanging close must not hold up the daemon's end.
        Thread(target=self._work, args=(source,), name="close", daemon=True).start()

    def waiting(self, source: Hashable) -> int:
        """Return how many of a source's are not being closed yet."""
        return len(self._waiting.get(source, ()))

    def _work(self, source: Hashable) -> None:
        while True:
            with self._lock:
                if not self._waiting[source]:
                    del self._waiting[source]
                    return
                fd, closed = self._waiting[source].popleft()
            os.close(fd)
            if closed is not None:
                closed()


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
