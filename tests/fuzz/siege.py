"""Messages and requests at a daemon, with another client beside: what is found, what grows."""

from __future__ import annotations

from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz import messages, requests
from tests.fuzz.target import Target, bystander, target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fuzz.messages import Tally
    from tests.fuzz.target import Sizes

LIMIT_SECONDS = 0.1
"""For how long the loop may work at other things before it answers another client."""

PATIENCE_SECONDS = 10.0
"""For how long another client may wait in all, on a machine that does much else."""

MOST_GROWTH_BYTES = 16 << 20
MOST_MORE_FDS = 4
MOST_MORE_THREADS = 16
"""Pools of threads fill up to their size."""

_WARM_UP = 0.1
_OF_THE_WHOLE = -1


def input_of(name: str, seed: int, number: int) -> str:
    """The message or request of that number, as it is."""
    if name == "request":
        return repr(requests.request_of(Random(f"{seed} request {number}")))
    return repr(messages.message_of(seed, number))


class Siege:
    """What was seen: lines for people, and findings (kind, number, what)."""

    def __init__(self, besieged: Target) -> None:
        self.target = besieged
        self.lines: list[str] = []
        self.found: list[tuple[str, int, str]] = []

    def run(self, n_messages: int, n_requests: int, seed: int, tell: Callable[[str], None]) -> None:
        """Send messages and requests; the first of both warm the daemon up."""
        warm = max(1, int(n_messages * _WARM_UP)), max(1, int(n_requests * _WARM_UP))
        self.target.settle()
        with bystander(self.target) as latencies:
            self._send(range(warm[0]), range(warm[1]), seed, tell)
            before = self.target.settle()
            sent = self._send(range(warm[0], n_messages), range(warm[1], n_requests), seed, tell)
        for kind, tally in sent.items():
            self._report(kind, tally)
        if not self.target.alive():
            self._find("the daemon ended")
        else:
            self._compare(before, self.target.settle())
        for trouble in self.target.troubles():
            self._find(f"in the daemon's log: {trouble}")
        if not latencies:
            self._find("another client got no answer")
        for latency in latencies:
            self.lines.append(str(latency))
            if latency.busiest > LIMIT_SECONDS or latency.slowest > PATIENCE_SECONDS:
                self._find(f"another client was kept waiting: {latency}")

    def _send(
        self, of_messages: range, of_requests: range, seed: int, tell: Callable[[str], None]
    ) -> dict[str, Tally]:
        return {
            "message": messages.run(
                self.target, of_messages, seed, lambda tally: tell(f"{tally.n} messages")
            ),
            "request": requests.run(
                self.target, of_requests, seed, lambda tally: tell(f"{tally.n} requests")
            ),
        }

    def _report(self, kind: str, tally: Tally) -> None:
        rate = tally.n / tally.seconds if tally.seconds else 0.0
        self.lines.append(
            f"{kind}s: {tally.n} after the warm-up, {rate:.0f}/s, {tally.n_replies} answers, "
            f"{tally.n_errors} of them errors, {len(tally.found)} findings"
        )
        self.found += [(kind, number, what) for number, what in tally.found]

    def _compare(self, before: Sizes, after: Sizes) -> None:
        mib = 1 << 20
        self.lines.append(
            f"the daemon: RSS {before.rss_bytes / mib:.1f} -> {after.rss_bytes / mib:.1f} MiB, "
            f"fds {before.n_fds} -> {after.n_fds}, threads {before.n_threads} -> {after.n_threads}"
        )
        for what, grown, most in (
            ("RSS bytes", after.rss_bytes - before.rss_bytes, MOST_GROWTH_BYTES),
            ("file descriptors", after.n_fds - before.n_fds, MOST_MORE_FDS),
            ("threads", after.n_threads - before.n_threads, MOST_MORE_THREADS),
        ):
            if grown > most:
                self._find(f"the daemon's {what} grew by {grown}")

    def _find(self, what: str) -> None:
        self.found.append(("daemon", _OF_THE_WHOLE, what))


@contextmanager
def siege() -> Iterator[Siege]:
    """A daemon of one's own to be besieged."""
    with target() as besieged:
        yield Siege(besieged)
