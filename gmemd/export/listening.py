"""The sockets of the metrics: addresses of one's own, or sockets that listen already."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BACKLOG = 64
_MAX_PORT = 65535


class ListenError(GmemdError):
    """A listen address that can't be had or can't be read."""

    exit_code = Exit.HOST


def parse_listen(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[V6]:PORT``; an empty host means every address."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise ListenError(
            f"metrics listen address {address!r}: no port", hint="write HOST:PORT or [IPV6]:PORT"
        )
    if ":" in host and not bracketed:
        raise ListenError(
            f"metrics listen address {address!r}: an IPv6 address without brackets",
            hint=f"write [{host}]:{port}",
        )
    return (host[1:-1] if bracketed else host), int(port)


def listen_at(addresses: Iterable[str]) -> list[socket.socket]:
    """Listen at every address; raises ListenError, with none of them taken then."""
    with ExitStack() as stack:
        listening = [
            stack.enter_context(_listen(address, family, sockaddr))
            for address in addresses
            for family, sockaddr in _resolve(address)
        ]
        stack.pop_all()
    return listening


def bound(listening: socket.socket) -> str:
    """The address that it really listens at, or the path."""
    if listening.family == socket.AF_UNIX:
        return str(listening.getsockname())
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_listening(candidate: socket.socket) -> bool:
    """Whether it is a socket that connections come in by: TCP, or a stream at a path."""
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    return (
        candidate.family in families
        and candidate.type == socket.SOCK_STREAM
        and bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def _resolve(address: str) -> Iterator[tuple[socket.AddressFamily, Any]]:
    host, port = parse_listen(address)
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenError(
            f"metrics listen address {address!r}: {error.strerror}",
            hint="name an address of this machine",
        ) from error
    for family, _kind, _protocol, _name, sockaddr in found:
        yield family, sockaddr


def _listen(address: str, family: socket.AddressFamily, sockaddr: Any) -> socket.socket:  # noqa: ANN401  as the resolver gives it
    try:
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # IPv6 alone, so that both families can be listed.
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(sockaddr)
            listening.listen(BACKLOG)
            stack.pop_all()
            return listening
    except OSError as error:
        raise _listen_error(address, error) from error


def _listen_error(address: str, error: OSError) -> ListenError:
    why = f"metrics listen address {address}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"{why}: another program has it",
            hint=f"see which: ss -ltnp 'sport = :{address.rpartition(':')[2]}'; "
            "or name another address under metrics: listen: in gmemd.yaml",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(why, hint="name an address of this machine, or 0.0.0.0 for all")
    if error.errno in {errno.EAFNOSUPPORT, errno.EPERM}:
        return ListenError(
            f"{why}: this process may not open network sockets",
            hint="have systemd listen for it: install gmemd-metrics.socket beside gmemd.service, "
            "without listen: in gmemd.yaml; or serve none: metrics: {listen: []}",
        )
    return ListenError(why, hint="ports below 1024 need a privilege; choose a higher one")
