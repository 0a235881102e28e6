"""File descriptors that systemd passes at the start: of the API, its listening socket.

As sd_listen_fds_with_names(3) has it: LISTEN_FDS of them from number 3 on, for the process of
LISTEN_PID, with LISTEN_FDNAMES between colons.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from gmemd.daemon.varlink.listener import Listener, SocketError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.spec.config import DaemonConfig

log = logging.getLogger(__name__)

FIRST_FD = 3
NAME = "io.gmemd"
"""What the socket unit calls its socket (FileDescriptorName=)."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def passed_fds() -> list[tuple[str, int]]:
    """Return the names and numbers of what systemd passed; a second time it is nothing.

    They are closed on exec from then on, and are the caller's.
    """
    pid, number, names, _ = (os.environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()) or not number.isdecimal():
        return []
    fds = range(FIRST_FD, FIRST_FD + int(number))
    for fd in fds:
        os.set_inheritable(fd, False)
    named = names.split(":") if names else []
    return list(zip(named if len(named) == len(fds) else ["unknown"] * len(fds), fds, strict=True))


def open_listener(config: DaemonConfig, passed: Sequence[tuple[str, int]]) -> Listener:
    """Return a listener on the passed socket, or on one of its own at the configured path.

    All passed fds are used or closed. Raises SocketError.
    """
    ours = None
    for name, fd in passed:
        if name == NAME and ours is None:
            ours = fd
        else:
            log.warning("file descriptor %d (%s), passed by systemd, is not used", fd, name)
            os.close(fd)
    if ours is None:
        return Listener(config.socket)
    listening = socket.socket(fileno=ours)
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
            f"the socket that systemd passes as {NAME} doesn't listen for streams at a path",
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
