"""The HTTP server of `/metrics` and `/`: few threads, short patience, read-only.

Each listen address has one accepting thread; requests of all addresses share a bounded number of
handler threads. A client that takes longer than its deadline is cut off, however busily it drips.
"""

from __future__ import annotations

import errno
import gzip
import logging
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler
from selectors import EVENT_READ, DefaultSelector
from socketserver import TCPServer
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qs, urlsplit

from prometheus_client.exposition import gzip_accepted

from gmemd.errors import Exit, GmemdError
from gmemd.export.exposition import Exposition
from gmemd.export.page import render_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gmemd.export.instruments import Counters
    from gmemd.export.snapshot import Snapshot

log = logging.getLogger(__name__)

MAX_REQUESTS = 8
READ_TIMEOUT_SECONDS = 5.0
REQUEST_DEADLINE_SECONDS = 30.0
_POLL_SECONDS = 0.2
_REFUSED_SECONDS = 0.2
"""How long nobody is let in after the kernel refused to: no descriptor may be free for long."""

_JOIN_SECONDS = 5.0
GZIP_LEVEL = 1
"""The quickest; such text shrinks to a twentieth of its size with any."""

_MAX_PORT = 65535

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class ListenError(GmemdError):
    """A listen address that can't be had or can't be read."""

    exit_code = Exit.HOST


class MetricsServer:
    """Serves the metrics and the page on every one of ``listen`` (``HOST:PORT``, ``[V6]:PORT``).

    The addresses are bound when it is made, so that a busy one is found out at once: ListenError.
    Use it as a context manager, or call start() and stop(); stop() returns when nothing runs.
    """

    def __init__(
        self, listen: Sequence[str], get_snapshot: Callable[[], Snapshot], counters: Counters
    ) -> None:
        pages = _Pages(get_snapshot, counters)
        slots = BoundedSemaphore(MAX_REQUESTS)
        self._servers: list[_Server] = []
        self._threads: list[Thread] = []
        try:
            for address in listen:
                for family, sockaddr in _resolve(address):
                    self._servers.append(_Server(address, family, sockaddr, pages, slots))
        except BaseException:
            self._close()
            raise

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound addresses, with the real port where 0 was asked for."""
        return tuple(server.bound for server in self._servers)

    def start(self) -> None:
        """Begin to answer, in threads."""
        for server in self._servers:
            thread = Thread(
                target=server.serve,
                name=f"metrics {server.bound}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop accepting, cut off who is still connected, and wait for the threads."""
        if self._threads:
            for server in self._servers:
                server.end()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _close(self) -> None:
        for server in self._servers:
            server.server_close()


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


class _Pages:
    """What is served: the metrics, and the page."""

    def __init__(self, get_snapshot: Callable[[], Snapshot], counters: Counters) -> None:
        self._get_snapshot = get_snapshot
        self._exposition = Exposition(counters)

    def page(self) -> bytes:
        """The page at `/`."""
        return render_page(self._get_snapshot()).encode()

    def metrics(self, query: str, accept: str, encoding: str) -> tuple[dict[str, str], bytes]:
        """Headers and body of `/metrics` in the format and encoding that the client takes."""
        names = parse_qs(query).get("name[]", ())
        kind, body = self._exposition.render(self._get_snapshot(), accept, names)
        headers = {"Content-Type": kind}
        if gzip_accepted(encoding):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, GZIP_LEVEL)
        return headers, body


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection closes (HTTP/1.0)."""

    server_version = "gmemd"
    sys_version = ""
    timeout = READ_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer any failure in plain text; a method that isn't served is 405, not 501."""
        del explain
        known = {501: (405, "only GET and HEAD are served")}
        status, text = known.get(code, (code, message or "bad request"))
        headers = {"Allow": "GET, HEAD"} if status == known[501][0] else {}
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are of interest only when debugging."""
        log.debug("%s: %s", self.address_string(), format % args)

    def _answer(self, *, body: bool) -> None:
        pages = cast("_Server", self.server).pages
        target = urlsplit(self.path)
        try:
            if target.path == "/metrics":
                accept = ",".join(self.headers.get_all("Accept", []))
                encoding = ",".join(self.headers.get_all("Accept-Encoding", []))
                headers, content = pages.metrics(target.query, accept, encoding)
                kind = headers.pop("Content-Type")
                self._send(200, kind, content, headers, body=body)
            elif target.path == "/":
                self._send(200, "text/html; charset=utf-8", pages.page(), {}, body=body)
            else:
                text = b"not found; metrics are at /metrics\n"
                self._send(404, "text/plain; charset=utf-8", text, {}, body=body)
        except OSError:
            raise
        except Exception:
            log.exception("could not render %s", target.path)
            self._send(500, "text/plain; charset=utf-8", b"internal error\n", {}, body=body)

    def _send(
        self, code: int, kind: str, content: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(code)
        for name, value in (_HEADERS | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


class _Server(TCPServer):
    """One listening socket, and the connections that came in by it."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        address: str,
        family: socket.AddressFamily,
        sockaddr: Any,
        pages: _Pages,
        slots: BoundedSemaphore,
    ) -> None:
        self.address_family = family
        self.pages = pages
        self._slots = slots
        self._lock = Lock()
        self._end, self._ended = socket.socketpair()
        self._deadlines: dict[socket.socket, float] = {}
        self._handlers: set[Thread] = set()
        try:
            super().__init__(sockaddr, _Handler)
        except OSError as error:
            raise _listen_error(address, error) from error

    def serve(self) -> None:
        """Answer until the end is told; nothing wakes this thread while nobody asks."""
        with DefaultSelector() as selector:
            selector.register(self.socket, EVENT_READ)
            selector.register(self._ended, EVENT_READ)
            while True:
                ready = selector.select(_POLL_SECONDS if self._deadlines else None)
                asked = [key.fileobj for key, _ in ready]
                if self._ended in asked:
                    return
                if asked:
                    self.handle_request()
                self._cut_off_late()

    def end(self) -> None:
        """Have serve() return."""
        self._end.send(b"\0")

    @property
    def bound(self) -> str:
        """The address it really listens on."""
        host, port = self.server_address[:2]
        host = str(host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def server_bind(self) -> None:
        """Bind; an IPv6 socket takes IPv6 only, so that both families can be listed."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; whoever couldn't be is still there, and is tried again later."""
        try:
            return super().get_request()
        except OSError as error:
            log.debug("no connection could be accepted: %s", error)
            time.sleep(_REFUSED_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to a thread, or turn it away if all are busy."""
        if not self._slots.acquire(blocking=False):
            self._turn_away(request)
            return
        thread = Thread(
            target=self._handle, args=(request, client_address), name="metrics request", daemon=True
        )
        with self._lock:
            self._deadlines[request] = time.monotonic() + REQUEST_DEADLINE_SECONDS
            self._handlers.add(thread)
        thread.start()

    def _cut_off_late(self) -> None:
        """Cut off whoever is past the deadline."""
        now = time.monotonic()
        self._cut_off(lambda deadline: deadline < now)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ask nothing more of a client that went away or was cut off."""
        del request
        log.debug("connection of %s ended early: %s", client_address, sys.exception())

    def server_close(self) -> None:
        """Close the listening socket and every connection, and wait for their threads."""
        super().server_close()
        self._end.close()
        self._ended.close()
        self._cut_off(lambda _: True)
        with self._lock:
            handlers = list(self._handlers)
        for thread in handlers:
            thread.join(_JOIN_SECONDS)

    def _handle(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001  whatever a client brings about ends with its connection
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._deadlines.pop(request, None)
            self.shutdown_request(request)
            self._slots.release()
            with self._lock:
                self._handlers = {thread for thread in self._handlers if thread.is_alive()}

    def _turn_away(self, request: Any) -> None:
        request.setblocking(False)
        try:
            request.send(_BUSY)
        except OSError:
            log.debug("could not tell a client that all handlers are busy", exc_info=True)
        self.shutdown_request(request)

    def _cut_off(self, due: Callable[[float], bool]) -> None:
        with self._lock:
            for request, deadline in self._deadlines.items():
                if due(deadline):
                    try:
                        request.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        log.debug("connection had ended already", exc_info=True)


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
    return ListenError(why, hint="ports below 1024 need a privilege; choose a higher one")
