"""Passwords against bcrypt hashes: slow by design, so each right one once, and one at a time.

Who isn't known takes as long as who is. A right password is remembered, as a keyed digest in
memory; a wrong one costs who sent it a pause, so that a flood of them takes a quarter of one CPU at
the most, and those whose password is known get in meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import time
from collections import Counter
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_WAITING = 4
"""Passwords that are verified or wait for it, of all clients: half of the handlers."""

MOST_WAITING_PER_CLIENT = 2
PAUSE_FACTOR = 3
"""A wrong password is followed by a pause this many times as long as its verification was."""

LONGEST_PAUSE_SECONDS = 2.0
LONGEST_PASSWORD = 72
"""bcrypt takes no more bytes of it."""


class Verdict(Enum):
    """What became of a password; BUSY: too many are being verified, it was not looked at."""

    RIGHT = "right"
    WRONG = "wrong"
    BUSY = "busy"


class Passwords:
    """Verifies passwords, for any number of threads."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._right: dict[str, bytes] = {}
        self._waiting: Counter[str] = Counter()
        self._lock = Lock()
        self._turn = Lock()

    def verify(
        self, users: Mapping[str, bytes], user: str, password: bytes, client: str
    ) -> Verdict:
        """Whether it is that user's password; ``client`` is where it came from."""
        digest = self._digest(user, users.get(user, b""), password)
        if self._is_remembered(users, user, digest):
            return Verdict.RIGHT
        with self._place(client) as is_free:
            if not is_free:
                return Verdict.BUSY
            with self._turn:
                # Who came before may have had the same.
                if self._is_remembered(users, user, digest):
                    return Verdict.RIGHT
                return self._verify(users, user, password, digest)

    def _verify(
        self, users: Mapping[str, bytes], user: str, password: bytes, digest: bytes
    ) -> Verdict:
        """Verify it by its hash; of a user that there isn't by somebody else's, for nothing."""
        started = time.monotonic()
        matches = _matches(password, users.get(user) or self._stand_in(users, user))
        if matches and user in users:
            with self._lock:
                known = {name: right for name, right in self._right.items() if name in users}
                self._right = known | {user: digest}
            return Verdict.RIGHT
        pause_seconds = PAUSE_FACTOR * (time.monotonic() - started)
        time.sleep(min(pause_seconds, LONGEST_PAUSE_SECONDS))
        return Verdict.WRONG

    def _is_remembered(self, users: Mapping[str, bytes], user: str, digest: bytes) -> bool:
        right = self._right.get(user, b"")
        return hmac.compare_digest(right, digest) and user in users

    def _digest(self, user: str, hashed: bytes, password: bytes) -> bytes:
        """What stands for these three, and tells nothing of them."""
        parts = b"\0".join(part.hex().encode() for part in (user.encode(), hashed, password))
        return hmac.digest(self._secret, parts, hashlib.sha256)

    def _stand_in(self, users: Mapping[str, bytes], user: str) -> bytes:
        """The hash that an unknown user's password is verified by: for a name always the same."""
        hashes = list(users.values())
        digest = hmac.digest(self._secret, user.encode(), hashlib.sha256)
        return hashes[int.from_bytes(digest) % len(hashes)]

    @contextlib.contextmanager
    def _place(self, client: str) -> Iterator[bool]:
        """A place in the queue, or none."""
        with self._lock:
            is_free = (
                self._waiting.total() < MOST_WAITING
                and self._waiting[client] < MOST_WAITING_PER_CLIENT
            )
            if is_free:
                self._waiting[client] += 1
        try:
            yield is_free
        finally:
            if is_free:
                with self._lock:
                    self._waiting[client] -= 1
                    self._waiting += Counter()


def _matches(password: bytes, hashed: bytes) -> bool:
    """Whether the password has that hash; one that bcrypt doesn't take has none."""
    import bcrypt  # noqa: PLC0415  only who has users needs it

    is_taken = b"\0" not in password
    matches = bcrypt.checkpw(password[:LONGEST_PASSWORD] if is_taken else b"-", hashed)
    return matches and is_taken
