"""A blocking varlink client: one connection, one call, one reply; for the command line."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, cast

from gmemd.errors import Exit, GmemdError

INTERFACE = "io.gmemd"
DEFAULT_SOCKET = Path("/run/gmemd/io.gmemd")
MAX_REPLY_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 16


class NoDaemonError(GmemdError):
    """Nobody answers on the socket."""

    exit_code = Exit.NO_DAEMON


class CallError(GmemdError):
    """The daemon answered with an error; ``error`` is its varlink name, unqualified."""

    def __init__(
        self, error: str, parameters: dict[str, Any], message: str, *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.error = error
        self.parameters = parameters


class RefusedError(CallError):
    """The caller may not do this."""

    exit_code = Exit.NOT_PERMITTED


class BadCallError(CallError):
    """The call names something that isn't there, or isn't understood."""

    exit_code = Exit.USAGE


def call(
    socket_path: Path, method: str, *, timeout_seconds: float | None = None, **parameters: object
) -> dict[str, Any]:
    """Call a method of io.gmemd and return the reply's parameters.

    Raises NoDaemonError where nobody answers, RefusedError, BadCallError or CallError where the
    daemon says no. Without a timeout it waits as long as the daemon takes.
    """
    request = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(socket_path))
            connection.sendall(json.dumps(request).encode() + b"\0")
            reply = json.loads(_receive(connection))
    except OSError as error:
        raise _no_daemon(socket_path, error) from error
    except ValueError as error:
        raise CallError("", {}, f"{method}: the daemon's reply is no JSON: {error}") from error
    if reply.get("error"):
        raise _error(method, reply["error"], reply.get("parameters") or {})
    return cast("dict[str, Any]", reply.get("parameters") or {})


def _receive(connection: socket.socket) -> bytes:
    """Return what comes up to the first NUL, without it."""
    received = bytearray()
    while True:
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("the daemon closed the connection without a reply")
        end = chunk.find(b"\0")
        if end >= 0:
            return bytes(received + chunk[:end])
        received += chunk
        if len(received) > MAX_REPLY_BYTES:
            raise ConnectionAbortedError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")


def _no_daemon(socket_path: Path, error: OSError) -> GmemdError:
    """Tell an absent daemon from one that may not be reached."""
    why = error.strerror or str(error) or type(error).__name__
    if isinstance(error, PermissionError):
        return RefusedError(
            "PermissionDenied",
            {},
            f"connecting to the daemon at {socket_path}: {why}",
            hint="run it as root, or see who may open the socket: "
            f"ls -ld {socket_path.parent} {socket_path}",
        )
    return NoDaemonError(
        f"no daemon answers at {socket_path}: {why}",
        hint="start it with `systemctl start gmemd` (or `gmemd daemon`), or name its socket "
        "with --socket",
    )


def _error(method: str, name: str, parameters: dict[str, Any]) -> CallError:
    """Turn a varlink error into one with a message and a way out."""
    short = name.rpartition(".")[2]
    if short == "NoSuchVM":
        return BadCallError(
            short,
            parameters,
            f"the daemon knows no VM named {parameters.get('vm')!r}",
            hint="`gmemd status` lists them; a new file in vms.d needs `gmemd reload`",
        )
    if short == "PermissionDenied":
        return RefusedError(
            short,
            parameters,
            f"{method}: not permitted",
            hint="only root and the daemon's own user may; run it with sudo",
        )
    if short in ("MethodNotFound", "InterfaceNotFound"):
        return BadCallError(
            short,
            parameters,
            f"the daemon knows no method {method}",
            hint="it is another version than this command; restart it after an upgrade",
        )
    if short == "InvalidParameter":
        what = parameters.get("parameter")
        return BadCallError(short, parameters, f"{method}: the daemon doesn't accept {what!r}")
    message = str(parameters.get("message") or name)
    if short == "ReloadFailed":
        return BadCallError(
            short,
            parameters,
            f"nothing was reloaded: {message}",
            hint=parameters.get("hint"),
        )
    return CallError(short, parameters, f"{method}: {message}", hint=parameters.get("hint"))
