"""The API's socket on disk: whole before it is seen, one daemon's at a time, removed at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

BACKLOG = 128
"""Connections that may wait to be accepted: how long a newcomer waits behind a flood of them."""
SOCKET_MODE = 0o666
PROBE_TIMEOUT_SECONDS = 2.0


class SocketError(GmemdError):
    """The API's socket can't be had."""

    exit_code = Exit.HOST


class Listener:
    """A listening unix socket at a path, as a context manager; ``socket`` is it.

    Whoever may reach the path may connect; what each may do is decided by who it is. A stale
    socket is replaced in one step; a live daemon's is left alone: SocketError. One that is
    ``passed``, and listens already, is served in its stead, and its path left to who made it.
    """

    def __init__(self, path: Path, passed: socket.socket | None = None) -> None:
        with contextlib.ExitStack() as stack:
            if passed is not None:
                self.socket = stack.enter_context(passed)
                self.socket.setblocking(False)
                self.path = Path(passed.getsockname())
            else:
                self.path = path
                self._listen(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _listen(self, stack: contextlib.ExitStack) -> None:
        """Take the path; the stack gives it back."""
        directory = self.path.parent
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.socket = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self.socket.setblocking(False)
            with _locked(directory):
                _check_replaceable(self.path)
                inode = self._publish()
        except OSError as error:
            raise _socket_error(self.path, error) from error
        stack.callback(self._remove, inode)

    def _publish(self) -> int:
        """Bind and listen under a name of its own, then take the path; returns the inode."""
        fresh = self.path.with_name(f".{os.getpid()}")
        fresh.unlink(missing_ok=True)
        self.socket.bind(str(fresh))
        try:
            fresh.chmod(SOCKET_MODE)
            self.socket.listen(BACKLOG)
            inode = fresh.stat().st_ino
            fresh.replace(self.path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        return inode

    def _remove(self, inode: int) -> None:
        """Remove the path, if it still is this socket's."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == inode:
                self.path.unlink()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that two daemons can't take a path in it at once."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SocketError(
            f"another process is making a socket in {directory}",
            hint=f"if it doesn't end, see who holds the directory: fuser -v {directory}",
        ) from None
    finally:
        os.close(fd)


def _check_replaceable(path: Path) -> None:
    """Raise SocketError where something lives at the path."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise SocketError(
            f"{path} exists and is no socket",
            hint="remove it, or name another path under socket: in gmemd.yaml",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except TimeoutError:
            raise _taken(path) from None
    raise _taken(path)


def _taken(path: Path) -> SocketError:
    return SocketError(
        f"another daemon answers at {path}",
        hint="stop it first (systemctl stop gmemd), or name another path under socket: in "
        "gmemd.yaml",
    )


def _socket_error(path: Path, error: OSError) -> SocketError:
    """Say why the socket can't be made at the path."""
    hint = "name another path under socket: in gmemd.yaml"
    if isinstance(error, PermissionError):
        hint = f"run it as root, or name a path that you may write to under socket: ({path.parent})"
    return SocketError(f"making the socket {path}: {error.strerror or error}", hint=hint)
