"""Accepting connections, so many of each user that nobody locks out others."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from asyncvarlink import VarlinkUnixServer

from gmemd.daemon.varlink.closing import Closer
from gmemd.daemon.varlink.hangups import Hangups
from gmemd.daemon.varlink.listener import BACKLOG
from gmemd.daemon.varlink.peer import peer_of
from gmemd.daemon.varlink.transport import Connection, Transport

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from gmemd.daemon.varlink.peer import Peer
    from gmemd.daemon.varlink.protocol import Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS_PER_USER = 256
MAX_CONNECTIONS_OF_USERS = 2048
"""Of all users together that are neither root nor the daemon's own."""
MAX_UNFINISHED_BYTES = 16 << 20
MAX_UNFINISHED_FDS = 1024
"""What those may have sent in all of messages that aren't whole yet."""
ACCEPT_BACKOFF_SECONDS = 0.5
ACCEPTED_AT_ONCE = 16

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Server(VarlinkUnixServer):
    """Accepts connections on a listening socket, and outlives a shortage of fds.

    Root and the daemon's own user have as many as they like. Where others reach a limit the
    connection that is idle for longest is closed for the new one: within a user that of the process
    that has most of them, as one user often runs all VMs. ``may_send_fds`` says of whom file
    descriptors are taken at all; root's and the daemon's own user's always are.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol_factory: Callable[[], Protocol],
        may_send_fds: Callable[[Peer], Awaitable[bool]],
    ) -> None:
        super().__init__(listener, protocol_factory)
        self._make_protocol = protocol_factory
        self._may_send_fds = may_send_fds
        self._closer = Closer()
        self._hangups = Hangups(self._loop)
        self._limited: set[Transport] = set()
        self._not_yet_closed: Counter[int] = Counter()
        self._backing_off: asyncio.TimerHandle | None = None

    async def start_serving(self) -> None:
        """Accept from now on."""
        if self._serving is None and self._sock is not None:
            self._serving = self._loop.create_future()
            self._sock.listen(BACKLOG)
            self._loop.add_reader(self._sock, self._handle_accept)

    def close(self) -> None:
        """Accept no more; connections that are open stay so."""
        if self._backing_off is not None:
            self._backing_off.cancel()
        super().close()

    def abort_clients(self) -> None:
        """End all connections."""
        super().abort_clients()
        self._hangups.close()
        self._closer.end()

    def _handle_accept(self) -> None:
        """Take some connections; the loop calls again while there are more."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self._sock is None:
                return
            try:
                accepted, _ = self._sock.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._back_off(error)
                return
            self._take(accepted)

    def _take(self, accepted: socket.socket) -> None:
        """Serve a connection, or refuse it."""
        peer = peer_of(accepted)
        connection = Connection(accepted, partial(self._close_connection, peer))
        peer = replace(peer, connection=connection)  # the accepted one is detached
        self._not_yet_closed[peer.uid] += 1
        if not peer.privileged and not self._make_room(peer):
            log.warning("connection of pid %d refused: user %d has too many", peer.pid, peer.uid)
            connection.close()
            return
        transport = Transport(
            self._loop,
            connection,
            self._make_protocol(),
            peer,
            closer=self._closer,
            hangups=self._hangups,
            on_unfinished=self._limit_unfinished,
            may_send_fds=self._may_send_fds,
        )
        self._transports.add(transport)
        if not peer.privileged:
            self._limited.add(transport)
            transport.closed_future.add_done_callback(lambda _: self._limited.discard(transport))

    def _make_room(self, newcomer: Peer) -> bool:
        """Have a user's limits hold with one more connection; returns whether they do."""
        alive = [each for each in self._limited if not each.is_closing()]
        if self._not_yet_closed[newcomer.uid] > MAX_CONNECTIONS_PER_USER:
            theirs = [each for each in alive if each.peer.uid == newcomer.uid]
            return _end_one(theirs, lambda each: each.peer.pid, newcomer.pid)
        if len(alive) >= MAX_CONNECTIONS_OF_USERS:
            return _end_one(alive, lambda each: each.peer.uid, newcomer.uid)
        return True

    def _limit_unfinished(self) -> None:
        """Close the connections that wait longest for the rest of a message, if too many do."""
        waiting = [each for each in self._limited if any(each.unfinished)]
        waiting.sort(key=lambda each: each.last_active, reverse=True)
        while waiting:
            n_bytes, n_fds = map(sum, zip(*(each.unfinished for each in waiting), strict=True))
            if n_bytes <= MAX_UNFINISHED_BYTES and n_fds <= MAX_UNFINISHED_FDS:
                return
            waiting.pop().refuse("too many messages are sent by halves")

    def _close_connection(
        self,
        peer: Peer,
        fd: int,
        may_hang: bool,  # noqa: FBT001  of one caller
    ) -> None:
        if may_hang:
            self._closer.close(fd, peer.source, partial(self._closed_elsewhere, peer.uid))
        else:
            os.close(fd)
            self._forget(peer.uid)

    def _closed_elsewhere(self, uid: int) -> None:
        """Called in another thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._forget, uid)

    def _forget(self, uid: int) -> None:
        self._not_yet_closed[uid] -= 1
        if not self._not_yet_closed[uid]:
            del self._not_yet_closed[uid]

    def _back_off(self, error: OSError) -> None:
        """Leave the listener alone for a moment, as accepting fails for want of a resource."""
        log.warning("accepting a connection failed, trying again soon: %s", error)
        self._loop.remove_reader(cast("socket.socket", self._sock))
        self._backing_off = self._loop.call_later(ACCEPT_BACKOFF_SECONDS, self._accept_again)

    def _accept_again(self) -> None:
        self._backing_off = None
        with contextlib.suppress(OSError):
            if self._sock is not None:
                self._loop.add_reader(self._sock, self._handle_accept)


_Key = TypeVar("_Key", bound="Hashable")


def _end_one(
    transports: Sequence[Transport], key: Callable[[Transport], _Key], newcomer: _Key
) -> bool:
    """Close one connection for a new one; returns whether there was one to close.

    It is of whoever has most connections: the one that is idle for longest, or, so that nobody
    keeps out others by calls that never end, the one that is busy for longest.
    """
    held = Counter(key(each) for each in transports)
    most = max(held.values(), default=0)
    greedy = [each for each in transports if held[key(each)] == most]
    choice = [each for each in greedy if not each.busy] or [
        each for each in greedy if most > 1 and key(each) != newcomer
    ]
    if not choice:
        return False
    min(choice, key=lambda each: each.last_active).refuse("others want to connect as well")
    return True
