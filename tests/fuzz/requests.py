"""HTTP requests at a real daemon's metrics: right, nearly right, cut off, and no such thing."""

from __future__ import annotations

import contextlib
import socket
import time
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz.checking import Finding, require
from tests.fuzz.messages import MOST_FINDINGS, PATIENCE_SECONDS, Tally
from tests.fuzz.mutation import mutate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target

_REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain;version=0.0.4\r\n\r\n",
    b"GET /metrics?name[]=gmemd_vms HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]:9989\r\nConnection: keep-alive\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /metrics HTTP/1.1\r\nAuthorization: Basic YTpi\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n",
)
_WORDS = (
    *(b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI * HTTP/2.0", b" ", b"\r\n", b"\n", b":", b"/"),
    *(b"//[", b"http://[::1", b"/metrics", b"?name[]=", b"&", b"=", b"%00", b"%zz", b"#", b";"),
    b"*",
    *(b"HTTP/0.9", b"HTTP/1.1", b"HTTP/9.9", b"HTTP/1.1.1", b"HTTP/-1.0", b"HTTP/1.99999999999"),
    *(b"Accept: ", b"Accept-Encoding: gzip;q=0\r\n", b"Content-Length: -1\r\n"),
    *(b"Expect: 100-continue\r\n", b"GET http://[::1 HTTP/1.0\r\n", b"Authorization: Basic "),
    *(b"Transfer-Encoding: chunked\r\n", b"Host: \r\n", b"X: " + b"a" * 70_000, b"A: b\r\n" * 200),
    *(b";q=", b",", b"application/openmetrics-text;version=1.0.0", b"escaping=dots", b" " * 2000),
)  # fmt: skip
_STATUSES = (200, 400, 401, 404, 405, 414, 431, 503, 505)
_N_WORDS = 3  # of a request's first line
_SCRAPE = b"GET /metrics HTTP/1.0\r\n\r\n"


def request_of(rng: Random) -> tuple[bytes, bool]:
    """A request, and whether the one who sends it hangs up at once."""
    whole = rng.choice(_REQUESTS)
    content = mutate(rng, whole, _WORDS, _REQUESTS) if rng.random() < _MOSTLY else whole
    return content, rng.random() < 1 - _MOSTLY


_MOSTLY = 0.95


def run(
    target: Target, numbers: range, seed: int, tell: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Send the requests of those numbers; a scrape after every hundredth has to work."""
    tally = Tally()
    begun = time.monotonic()
    for number in numbers:
        content, hang_up = request_of(Random(f"{seed} request {number}"))
        try:
            _send(target, content, hang_up=hang_up, tally=tally)
            if number % 100 == 0:
                require(_exchange(target, _SCRAPE).startswith(b"HTTP/1.0 200"), "no scrape")
        except Finding as finding:
            tally.found.append((number, f"{finding}: {content!r:.300}"))
        tally.n += 1
        if tally.n % 500 == 0:
            tell(tally)
        if len(tally.found) >= MOST_FINDINGS or not target.alive():
            break
    tally.seconds = time.monotonic() - begun
    tell(tally)
    return tally


def _send(target: Target, content: bytes, *, hang_up: bool, tally: Tally) -> None:
    if hang_up:
        with (
            socket.create_connection(("127.0.0.1", target.port)) as connection,
            contextlib.suppress(OSError),  # it was the first to hang up
        ):
            connection.sendall(content)
        return
    answer = _exchange(target, content)
    if not answer:
        # A line that doesn't end asks for nothing; without a version the answer is a body alone.
        line, ended, _ = content.partition(b"\n")
        require(not ended or len(line.split()) < _N_WORDS, "no answer")
        return
    tally.n_replies += 1
    line = answer.split(b"\r\n")[0]
    if answer.startswith(b"HTTP/"):
        status = int(line.split()[1])
        tally.n_errors += status != _STATUSES[0]
        require(status in _STATUSES, f"the answer {line!r}")


def _exchange(target: Target, content: bytes) -> bytes:
    """Send, say that no more comes, and read to the end."""
    answer = b""
    with socket.create_connection(("127.0.0.1", target.port), PATIENCE_SECONDS) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except TimeoutError:
            raise Finding("it keeps a client waiting") from None
        except OSError:  # it has answered and hung up before it had read all
            answer = answer or b"reset"
    return answer
