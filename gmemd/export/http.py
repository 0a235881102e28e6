"""The HTTP server of `/metrics` and `/`: few threads, short patience, read-only.

Each listen address has one accepting thread; requests of all addresses share a bounded number of
handler threads. A client that takes longer than its deadline is cut off, however busily it drips.
With a web.yaml it is a server of HTTPS, with passwords: handshakes are the handlers' work, too.
"""

from __future__ import annotations

import gzip
import logging
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler
from selectors import EVENT_READ, DefaultSelector
from socketserver import BaseServer, TCPServer
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qs, urlsplit

from prometheus_client.exposition import gzip_accepted

from gmemd.export.exposition import Exposition
from gmemd.export.gate import Gate
from gmemd.export.listening import bound, listen_at
from gmemd.export.page import render_page
from gmemd.export.protection import Protection
from gmemd.export.tls import say_goodbye, shake_hands

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gmemd.export.instruments import Counters
    from gmemd.export.snapshot import Snapshot
    from gmemd.export.web import Web

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

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_OPEN = Protection()
_PLAIN = "text/plain; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class MetricsServer:
    """Serves the metrics and the page at every one of ``listen``.

    These are addresses (``HOST:PORT``, ``[V6]:PORT``), or sockets that listen already, which are
    its own from then on. The addresses are bound when it is made, so that a busy one is found out
    at once: ListenError. ``web`` says what protects them; without it nothing does.
    Use it as a context manager, or call start() and stop(); stop() returns when nothing runs.
    """

    def __init__(
        self,
        listen: Sequence[str | socket.socket],
        get_snapshot: Callable[[], Snapshot],
        counters: Counters,
        web: Web | None = None,
    ) -> None:
        pages = _Pages(get_snapshot, counters, web)
        slots = BoundedSemaphore(MAX_REQUESTS)
        self._threads: list[Thread] = []
        listening = [one for one in listen if isinstance(one, socket.socket)]
        listening += listen_at(one for one in listen if isinstance(one, str))
        self._servers: list[_Server] = []
        try:
            for one in listening:
                self._servers.append(_Server(one, pages, slots))
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


class _Pages:
    """What is served, the metrics and the page, and to whom."""

    def __init__(
        self, get_snapshot: Callable[[], Snapshot], counters: Counters, web: Web | None
    ) -> None:
        self._get_snapshot = get_snapshot
        self._exposition = Exposition(counters, () if web is None else (web,))
        self._web = web
        self.gate = Gate()

    def protection(self) -> Protection:
        """What protects a connection that comes in now."""
        return self._web.protection() if self._web is not None else _OPEN

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

    def __init__(
        self, request: Any, client_address: Any, server: _Server, protection: Protection
    ) -> None:
        self._protection = protection
        super().__init__(request, client_address, server)

    def address_string(self) -> str:
        """Where the request comes from; nothing that tells clients at a path apart."""
        return str(self.client_address[0]) if self.client_address else "a local client"

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
        self._send(status, _PLAIN, f"{text}\n".encode(), headers)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are of interest only when debugging."""
        log.debug("%s: %s", self.address_string(), format % args)

    def _answer(self, *, body: bool) -> None:
        pages = cast("_Server", self.server).pages
        try:
            target = urlsplit(self.path)
        except ValueError:  # of brackets that hold no address
            self.send_error(400, "the request is for no address")
            return
        authorization = self.headers.get("Authorization", "")
        refusal = pages.gate.refusal(self._protection, authorization, self.address_string())
        if refusal is not None:
            text = f"{refusal.text}\n".encode()
            self._send(refusal.code, _PLAIN, text, dict([refusal.header]), body=body)
            return
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
                self._send(404, _PLAIN, text, {}, body=body)
        except OSError:
            raise
        except Exception:
            log.exception("could not render %s", target.path)
            self._send(500, _PLAIN, b"internal error\n", {}, body=body)

    def _send(
        self, code: int, kind: str, content: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(code)
        for name, value in (_HEADERS | dict(self._protection.headers) | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


class _Server(TCPServer):
    """One listening socket, and the connections that came in by it."""

    def __init__(self, listening: socket.socket, pages: _Pages, slots: BoundedSemaphore) -> None:
        # TCPServer's own would make a socket, of a family that may be forbidden.
        BaseServer.__init__(self, listening.getsockname(), cast("Any", _Handler))
        listening.setblocking(False)
        self.socket = listening
        self.bound = bound(listening)
        self.pages = pages
        self._slots = slots
        self._lock = Lock()
        self._end, self._ended = socket.socketpair()
        self._deadlines: dict[socket.socket, float] = {}
        self._handlers: set[Thread] = set()

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
        connection = request
        try:
            protection = self.pages.protection()
            if protection.context is not None:
                connection = self._wrapped(request, protection.context)
                shake_hands(connection, protection.allowed_sans, READ_TIMEOUT_SECONDS)
            _Handler(connection, client_address, self, protection)
        except Exception:  # noqa: BLE001  whatever a client brings about ends with its connection
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._deadlines.pop(connection, None)
            if isinstance(connection, ssl.SSLSocket):
                say_goodbye(connection)
            self.shutdown_request(connection)
            self._slots.release()
            with self._lock:
                self._handlers = {thread for thread in self._handlers if thread.is_alive()}

    def _wrapped(self, request: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        """The connection as one of TLS, which has the deadline now."""
        with self._lock:
            connection = context.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
            self._deadlines[connection] = self._deadlines.pop(request)
        return connection

    def _turn_away(self, request: Any) -> None:
        request.setblocking(False)
        try:
            # Who speaks TLS wouldn't understand it.
            if self.pages.protection().context is None:
                request.send(_BUSY)
        except OSError:
            log.debug("could not tell a client that all handlers are busy", exc_info=True)
        self.shutdown_request(request)

    def _cut_off(self, due: Callable[[float], bool]) -> None:
        with self._lock:
            for request, deadline in self._deadlines.items():
                if due(deadline):
                    try:
                        # Of TLS the connection below: its handler is at work on what is above.
                        socket.socket.shutdown(request, socket.SHUT_RDWR)
                    except OSError:
                        log.debug("connection had ended already", exc_info=True)
