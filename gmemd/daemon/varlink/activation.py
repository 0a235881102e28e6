"""The API's listening socket, passed by systemd at the start or of one's own."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from gmemd.daemon.passed import API
from gmemd.daemon.varlink.listener import Listener, SocketError

if TYPE_CHECKING:
    from gmemd.spec.config import DaemonConfig


def open_listener(config: DaemonConfig, passed: int) -> Listener:
    """Return a listener on the passed socket, or (-1) on one of its own at the configured path.

    The passed one is used or closed. Raises SocketError.
    """
    if passed < 0:
        return Listener(config.socket)
    listening = socket.socket(fileno=passed)
    try:
        _check(listening, config)
        return Listener(config.socket, listening)
    except SocketError:
        listening.close()
        raise


def _check(listening: socket.socket, config: DaemonConfig) -> None:
    """Raise SocketError unless it is a socket of the kind and place that is wanted."""
    of_kind = (listening.family, listening.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    if not of_kind or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise SocketError(
            f"the socket that systemd passes as {API} doesn't listen for streams at a path",
            hint="it is made by ListenStream= of gmemd.socket, with Accept=no",
        )
    path = listening.getsockname()
    if "socket" in config.model_fields_set and os.path.realpath(path) != os.path.realpath(
        config.socket
    ):
        raise SocketError(
            f"gmemd.yaml says socket: {config.socket}, and systemd listens at {path}",
            hint="leave socket: out, or set ListenStream= of gmemd.socket to the same path "
            "(systemctl edit gmemd.socket)",
        )
