"""asyncvarlink's transport and server, made safe against hostile and unlucky peers.

What is mended: a message has a largest size and is read one at a time, a peer that reads no
replies is read no further, received fds are closed on exec, a truncated control message ends the
connection, accept() backs off when fds run out, and the peer is known (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from array import array
from collections import Counter
from typing import TYPE_CHECKING, cast

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkBaseProtocol,
    VarlinkTransport,
    VarlinkUnixServer,
)

from gmemd.daemon.varlink.peer import Peer, peer_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 20
MAX_CONNECTIONS_PER_USER = 64
ACCEPT_BACKOFF_SECONDS = 0.5
BACKLOG = 128

_FD_BYTES = array("i").itemsize
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Transport(VarlinkTransport):
    """A transport that closes the connection on what asyncvarlink's lets through."""

    MAX_RECV_FDS = 253
    """The kernel's own limit of one message (SCM_MAX_FD)."""

    RECV_BUFFER_SIZE = 1 << 16

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        protocol: VarlinkBaseProtocol,
        peer: Peer,
    ) -> None:
        super().__init__(loop, connection, connection, protocol, {"peer": peer})
        self._peer = peer
        self._message = bytearray()
        self._fds: list[int] = []

    def _handle_read_socket_peek(self) -> None:
        """Read up to the end of one message; the loop calls again while there is more."""
        if self._sendqueue:
            self.pause_reading()
            return
        connection = cast("socket.socket", self._recvfd)
        try:
            peeked = connection.recv(self.RECV_BUFFER_SIZE, socket.MSG_PEEK)
            size = peeked.find(b"\0") + 1 or max(1, len(peeked))
            data, control, flags, _ = connection.recvmsg(
                size,
                socket.CMSG_SPACE(self.MAX_RECV_FDS * _FD_BYTES),
                socket.MSG_CMSG_CLOEXEC,
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close_receiver(error)
            return
        self._take(data, _fds_of(control), truncated=bool(flags & socket.MSG_CTRUNC))

    def _take(self, data: bytes, fds: list[int], *, truncated: bool) -> None:
        """Hand a whole message to the protocol, with all fds that came with any of its bytes."""
        self._message += data
        self._fds += fds
        if truncated or len(self._fds) > self.MAX_RECV_FDS:
            self._refuse("more file descriptors than fit, or than this process may open")
        elif len(self._message) > MAX_MESSAGE_BYTES:
            self._refuse(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        elif not data:
            self._drop_message()
            self._loop.remove_reader(cast("socket.socket", self._recvfd))
            self._loop.call_soon(self._eof_received)
        elif data.endswith(b"\0"):
            whole, self._message = bytes(self._message), bytearray()
            received, self._fds = self._fds, []
            referee = object()
            owned = FileDescriptorArray(referee, received) if received else None
            try:
                self._protocol.message_received(whole, owned)
            finally:
                if owned is not None:
                    owned.release(referee)

    def _drop_message(self) -> None:
        """Forget the message that isn't whole yet, and close its fds."""
        _close_all(self._fds)
        self._message.clear()
        self._fds.clear()

    def _refuse(self, what: str) -> None:
        """End a connection whose peer sent what isn't taken."""
        self._drop_message()
        log.warning(
            "connection closed: pid %d (uid %d) sent %s", self._peer.pid, self._peer.uid, what
        )
        self._close_receiver(ConnectionAbortedError(what))

    def _handle_write(self) -> None:
        """Send what is queued; once all is sent, read on."""
        super()._handle_write()
        if not self._sendqueue:
            self.resume_reading()


def _fds_of(control: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the fds of received control messages."""
    fds = array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class Server(VarlinkUnixServer):
    """Accepts connections on a listening socket, and outlives a shortage of fds.

    A user other than root and the daemon's own has at most ``MAX_CONNECTIONS_PER_USER``.
    """

    def __init__(
        self, listener: socket.socket, protocol_factory: Callable[[], VarlinkBaseProtocol]
    ) -> None:
        super().__init__(listener, protocol_factory)
        self._connections: Counter[int] = Counter()
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

    def _handle_accept(self) -> None:
        """Take one connection; the loop calls again while there are more."""
        if self._sock is None:
            return
        try:
            connection, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._back_off(error)
            return
        peer = peer_of(connection)
        if not peer.privileged and self._connections[peer.uid] >= MAX_CONNECTIONS_PER_USER:
            log.warning(
                "connection refused: user %d has %d open", peer.uid, MAX_CONNECTIONS_PER_USER
            )
            connection.close()
            return
        connection.setblocking(False)
        transport = Transport(self._loop, connection, self._protocol_factory(), peer)
        self._connections[peer.uid] += 1
        self._transports.add(transport)
        transport.closed_future.add_done_callback(lambda _: self._forget(peer.uid))

    def _forget(self, uid: int) -> None:
        self._connections[uid] -= 1
        if not self._connections[uid]:
            del self._connections[uid]

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
