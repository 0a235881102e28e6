"""Connections whose peer is gone, also while nobody reads from them."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Hangups:
    """Watches connections for their peers' hanging up; a side that is shut down alone is no such.

    One epoll for all, in the event loop as one file. No event is asked for, so that only EPOLLHUP
    and EPOLLERR come, and each connection's once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._tell)

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """Call ``gone`` once when the connection's peer has hung up."""
        self._epoll.register(fd, select.EPOLLONESHOT)
        self._watched[fd] = gone

    def forget(self, fd: int) -> None:
        """Watch the connection no more; to be told before it is closed."""
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Watch nothing any more. Harmless when repeated."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _tell(self) -> None:
        for fd, _ in self._epoll.poll(0):
            self._watched[fd]()
