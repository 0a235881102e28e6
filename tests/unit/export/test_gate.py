from __future__ import annotations

import base64
import time

import pytest

from gmemd.export.gate import Gate
from gmemd.export.protection import Protection
from tests.certificates import hashed

USERS = {"alice": hashed("a:ä").encode()}


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def code(protection: Protection, authorization: str) -> int:
    refusal = Gate().refusal(protection, authorization, "1")
    return refusal.code if refusal is not None else 200


def test_without_users_everybody_is_let_in() -> None:
    assert code(Protection(), "") == 200
    assert code(Protection(), "nonsense") == 200


@pytest.mark.parametrize(("authorization", "expected"), [
    (basic("alice:a:ä"), 200),
    (basic("alice:a:ä").replace("Basic ", "bASIC  "), 200),
    (basic("alice:a"), 401),
    (basic("alice"), 401),
    (basic("bob:a:ä"), 401),
    (basic(":"), 401),
    ("", 401),
    ("Basic", 401),
    ("Basic !!!", 401),
    ("Basic /w==", 401),
    ("Basic YTp/9zo=", 401),
    ("Bearer abc", 401),
    ("Basic é", 401),
])  # fmt: skip
def test_credentials(authorization: str, expected: int) -> None:
    assert code(Protection(users=USERS), authorization) == expected


def test_a_401_says_what_is_wanted() -> None:
    refusal = Gate().refusal(Protection(users=USERS), "", "1")
    assert refusal is not None
    assert refusal.header == ("WWW-Authenticate", 'Basic realm="gmemd"')


def test_a_rate_is_kept_before_passwords_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    gate = Gate()
    protection = Protection(users=USERS, rate_interval_seconds=2.0, rate_burst=3)

    def codes(number: int) -> list[int]:
        refusals = [gate.refusal(protection, "", "1") for _ in range(number)]
        return [refusal.code for refusal in refusals if refusal is not None]

    assert codes(5) == [401, 401, 401, 429, 429]
    now[0] += 3.9
    assert codes(2) == [401, 429]
    now[0] += 0.1
    assert codes(2) == [401, 429]
    now[0] += 1000
    assert codes(4) == [401, 401, 401, 429]
