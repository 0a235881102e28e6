"""asyncvarlink's transport, made safe against hostile and unlucky peers.

What is mended: a message has a largest size and most fds, and reaches the protocol whole, with the
fds of all its pieces; one call is read at a time, and none from a peer that reads no replies;
received fds are closed on exec, and off the event loop; a truncated control message, or a reply
that can't be sent, ends the connection; a hang-up is noticed during a call as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from array import array
from typing import TYPE_CHECKING, cast

from asyncvarlink import FileDescriptorArray, VarlinkTransport

from gmemd.daemon.varlink.closing import ClosedLater
from gmemd.daemon.varlink.peer import PeerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from gmemd.daemon.varlink.closing import Closer
    from gmemd.daemon.varlink.hangups import Hangups
    from gmemd.daemon.varlink.peer import Peer
    from gmemd.daemon.varlink.protocol import Protocol

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 20
MAX_FDS_TO_CLOSE = 1024
"""Of one process, before nothing more is read from it; usually they are closed at once."""

_FD_BYTES = array("i").itemsize


class Connection(socket.socket):
    """An accepted connection, which its ``close()`` leaves to somebody else if it may hang."""

    def __init__(self, accepted: socket.socket, close: Callable[[int, bool], None]) -> None:
        super().__init__(fileno=accepted.detach())
        self.setblocking(False)
        self._close_fd = close

    def __repr__(self) -> str:
        # asyncio asks often, and socket's own costs four system calls.
        return f"<connection {self.fileno()}>"

    def close(self) -> None:
        """Give the file descriptor away, and whether its close may hang. Harmless twice."""
        if self.fileno() >= 0:
            may_hang = not self._is_at_end()
            self._close_fd(self.detach(), may_hang)

    def _is_at_end(self) -> bool:
        """Whether nothing is in its queue, and nothing can get there."""
        try:
            return self.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return False


class Transport(VarlinkTransport):
    """A transport that closes the connection on what asyncvarlink's lets through.

    ``closer`` closes what was received and sent. ``on_unfinished`` is called when a message, or its
    file descriptors, wait for more. File descriptors of peers who aren't privileged are taken only
    if ``may_send_fds`` says so; those of others are dropped by the kernel and never open here.
    """

    MAX_RECV_FDS = 253
    """Most file descriptors of a message: the kernel's own limit of one sendmsg (SCM_MAX_FD)."""

    RECV_BUFFER_SIZE = 1 << 16

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
        protocol: Protocol,
        peer: Peer,
        *,
        closer: Closer,
        hangups: Hangups,
        on_unfinished: Callable[[], None],
        may_send_fds: Callable[[Peer], Awaitable[bool]],
    ) -> None:
        super().__init__(loop, connection, connection, protocol, {"peer": peer})
        self.peer = peer
        self.last_active = loop.time()
        self._closer = closer
        self._hangups = hangups
        self._on_unfinished = on_unfinished
        self._may_send_fds = may_send_fds
        self._fds_welcome = True if peer.privileged else None
        self._asking: asyncio.Task[None] | None = None
        self._connection_fd = connection.fileno()
        self._message = bytearray()
        self._fds: list[int] = []
        self._call_under_way = False
        hangups.watch(self._connection_fd, protocol.peer_gone)

    @property
    def busy(self) -> bool:
        """Whether a call is under way for a peer that reads its replies."""
        return self._call_under_way and not self._sendqueue

    @property
    def unfinished(self) -> tuple[int, int]:
        """Bytes, and file descriptors, of a message that isn't whole yet."""
        return len(self._message), len(self._fds)

    def own(self, fd: int) -> ClosedLater:
        """Return a fd of this process', to be sent, with a close that doesn't wait."""
        return ClosedLater(fd, None, self._closer)

    def pause_reading(self) -> None:
        """Read no further: a call is under way."""
        self._call_under_way = True
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read on, as the call is answered."""
        self._call_under_way = False
        self.last_active = self._loop.time()
        super().resume_reading()

    def abort(self) -> None:
        """End the connection now, whatever waits to be sent."""
        super().pause_reading()
        super().abort()
        if self.closed_future.done():
            self._close_sender()

    def refuse(self, why: str) -> None:
        """End the connection, and say why in the log."""
        log.warning("connection of pid %d (user %d) closed: %s", self.peer.pid, self.peer.uid, why)
        self._drop_message()
        self.abort()

    def _resume_reading(self) -> None:
        # Whoever reads no replies is read no further.
        if not self._call_under_way and not self._sendqueue and self._asking is None:
            super()._resume_reading()

    def _handle_read_socket_peek(self) -> None:
        """Read up to the end of one message; the loop calls again while there is more."""
        if self._sendqueue:
            super().pause_reading()
            return
        if self._closer.waiting(self.peer.source) > MAX_FDS_TO_CLOSE:
            self.refuse("file descriptors that it sent can't be closed")
            return
        connection = cast("Connection", self._recvfd)
        try:
            # Without room for fds the peek tells by MSG_CTRUNC that there are some.
            peeked, _, flags, _ = connection.recvmsg(self.RECV_BUFFER_SIZE, 0, socket.MSG_PEEK)
            size = peeked.find(b"\0") + 1 or max(1, len(peeked))
            if flags & socket.MSG_CTRUNC and not self._fds_welcome:
                super().pause_reading()
                self._asking = self._loop.create_task(self._receive_from_stranger(size))
                return
            data, control, flags, _ = connection.recvmsg(
                size,
                socket.CMSG_SPACE(self.MAX_RECV_FDS * _FD_BYTES),
                socket.MSG_CMSG_CLOEXEC,
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop_message()
            self.abort()
            return
        self.last_active = self._loop.time()
        self._take(data, _fds_of(control), truncated=bool(flags & socket.MSG_CTRUNC))

    async def _receive_from_stranger(self, size: int) -> None:
        """Receive bytes that come with fds, these without the fds unless the peer may send some."""
        try:
            if self._fds_welcome is None:
                self._fds_welcome = False
                with contextlib.suppress(PeerError):
                    self._fds_welcome = await self._may_send_fds(self.peer)
            if not self._fds_welcome:
                self._take(await self._read_without_fds(size), [], truncated=False)
        except OSError:
            self.abort()
        finally:
            self._asking = None
            super().resume_reading()

    async def _read_without_fds(self, size: int) -> bytes:
        """Read, with the kernel dropping fds, which may hang as much as a close. Raises OSError."""
        done: asyncio.Future[bytes] = self._loop.create_future()

        def read() -> None:
            try:
                data, error = os.read(self._connection_fd, size), None
            except OSError as failed:
                data, error = b"", failed
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(tell, data, error)

        def tell(data: bytes, error: OSError | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(data)
            else:
                done.set_exception(error)

        # The connection is closed by the same source's thread, later.
        self._closer.do(read, self.peer.source)
        return await done

    def _take(self, data: bytes, fds: list[int], *, truncated: bool) -> None:
        """Hand a whole message to the protocol, with all fds that came with any of its bytes."""
        self._message += data
        self._fds += fds
        if truncated or len(self._fds) > self.MAX_RECV_FDS:
            self.refuse("it sent more file descriptors than fit, or than this process may open")
        elif len(self._message) > MAX_MESSAGE_BYTES:
            self.refuse(f"it sent a message of more than {MAX_MESSAGE_BYTES} bytes")
        elif not data:
            self._drop_message()
            self._loop.remove_reader(cast("Connection", self._recvfd))
            self._loop.call_soon(self._eof_received)
        elif data.endswith(b"\0"):
            self._deliver()
        else:
            self._on_unfinished()

    def _deliver(self) -> None:
        message, self._message = bytes(self._message), bytearray()
        fds, self._fds = self._fds, []
        if not fds:
            self._protocol.message_received(message, None)
            return
        referee = object()
        owned = FileDescriptorArray(
            referee, [ClosedLater(fd, self.peer.source, self._closer) for fd in fds]
        )
        try:
            self._protocol.message_received(message, owned)
        finally:
            owned.release(referee)

    def _drop_message(self) -> None:
        """Forget the message that isn't whole yet, and close its fds."""
        self._message.clear()
        while self._fds:
            self._closer.close(self._fds.pop(), self.peer.source)

    def _handle_write(self) -> None:
        """Send what is queued; once all is sent, read on."""
        super()._handle_write()
        self.last_active = self._loop.time()
        if self._sendfd is None:
            self.abort()
        elif not self._sendqueue and not self._call_under_way:
            super().resume_reading()

    def _connection_lost(self, exc: Exception | None = None) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._drop_message()
        self._hangups.forget(self._connection_fd)
        super()._connection_lost(exc)


def _fds_of(control: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the fds of received control messages."""
    fds = array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return list(fds)
