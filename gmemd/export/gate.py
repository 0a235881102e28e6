"""Who is let in to the metrics: so many at a time, and those with a password."""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from gmemd.export.passwords import Passwords, Verdict

if TYPE_CHECKING:
    from gmemd.export.protection import Protection


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of the one that was asked for."""

    code: int
    text: str
    header: tuple[str, str]


_UNAUTHORIZED = Refusal(
    401, "a user and a password are needed", ("WWW-Authenticate", 'Basic realm="gmemd"')
)
_TOO_MANY = Refusal(429, "too many requests", ("Retry-After", "1"))
_TOO_MANY_PASSWORDS = Refusal(429, "too many passwords to be verified", ("Retry-After", "5"))


class Gate:
    """Remembers who was let in; safe to use from any thread."""

    def __init__(self) -> None:
        self._passwords = Passwords()
        self._bucket = _Bucket()

    def refusal(self, protection: Protection, authorization: str, client: str) -> Refusal | None:
        """Why a request isn't answered; None if it is. ``client`` is where it came from."""
        interval_seconds, burst = protection.rate_interval_seconds, protection.rate_burst
        if interval_seconds and not self._bucket.take(interval_seconds, burst):
            return _TOO_MANY
        if not protection.users:
            return None
        given = _credentials(authorization)
        if given is None:
            return _UNAUTHORIZED
        verdict = self._passwords.verify(protection.users, *given, client)
        if verdict is Verdict.BUSY:
            return _TOO_MANY_PASSWORDS
        return None if verdict is Verdict.RIGHT else _UNAUTHORIZED


class _Bucket:
    """A bucket of tokens, full at first, that gets one each interval."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tokens: float | None = None
        self._filled = 0.0

    def take(self, interval_seconds: float, burst: int) -> bool:
        """Whether there was a token."""
        with self._lock:
            now = time.monotonic()
            fresh = (now - self._filled) / interval_seconds
            before = burst if self._tokens is None else self._tokens
            tokens = min(burst, before + fresh)
            self._filled = now
            self._tokens = tokens - 1 if tokens >= 1 else tokens
            return tokens >= 1


def _credentials(authorization: str) -> tuple[str, bytes] | None:
    """User and password of an Authorization header of the scheme Basic (RFC 7617)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None
