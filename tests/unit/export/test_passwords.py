"""Passwords: right ones once, wrong ones slowly, unknown users as wrong ones, and few at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest

from gmemd.export import passwords as passwords_module
from gmemd.export.passwords import Passwords, Verdict
from tests.certificates import hashed

USERS = {"alice": hashed("a").encode(), "bob": hashed("b" * 72).encode()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that were computed."""
    computed: list[bytes] = []
    real = bcrypt.checkpw

    def check(password: bytes, hashed_password: bytes) -> bool:
        computed.append(hashed_password)
        return real(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    return computed


def test_a_right_password_is_hashed_once(counted: list[bytes]) -> None:
    passwords = Passwords()
    for _ in range(3):
        assert passwords.verify(USERS, "alice", b"a", "1") is Verdict.RIGHT
    assert len(counted) == 1


def test_a_wrong_one_and_an_unknown_user_cost_a_hash_each_time(counted: list[bytes]) -> None:
    passwords = Passwords()
    assert passwords.verify(USERS, "alice", b"a", "1") is Verdict.RIGHT
    for _ in range(2):
        assert passwords.verify(USERS, "alice", b"b", "1") is Verdict.WRONG
        assert passwords.verify(USERS, "carol", b"a", "1") is Verdict.WRONG
    assert len(counted) == 5
    assert counted[2] == counted[4]


def test_an_unknown_user_with_the_password_of_the_stand_in_is_not_let_in() -> None:
    one = {"alice": USERS["alice"]}
    assert Passwords().verify(one, "carol", b"a", "1") is Verdict.WRONG


def test_another_hash_makes_the_old_password_wrong() -> None:
    passwords = Passwords()
    assert passwords.verify(USERS, "alice", b"a", "1") is Verdict.RIGHT
    changed = USERS | {"alice": hashed("new").encode()}
    assert passwords.verify(changed, "alice", b"a", "1") is Verdict.WRONG
    assert passwords.verify(changed, "alice", b"new", "1") is Verdict.RIGHT
    assert passwords.verify({"bob": USERS["bob"]}, "alice", b"new", "1") is Verdict.WRONG


@pytest.mark.parametrize(("password", "verdict"), [
    (b"b" * 80, Verdict.RIGHT),
    (b"b" * 72, Verdict.RIGHT),
    (b"b" * 71, Verdict.WRONG),
    (b"", Verdict.WRONG),
    (b"b" * 72 + b"\0", Verdict.WRONG),
    (b"\xff\xfe", Verdict.WRONG),
])  # fmt: skip
def test_passwords_that_bcrypt_shortens_or_doesnt_take(password: bytes, verdict: Verdict) -> None:
    assert Passwords().verify(USERS, "bob", password, "1") is verdict


def test_only_users_are_remembered() -> None:
    passwords = Passwords()
    for name in ("alice", "bob"):
        users = {name: hashed(name).encode()}
        assert passwords.verify(users, name, name.encode(), "1") is Verdict.RIGHT
        passwords.verify(users, "x", b"x", "1")
    assert passwords._right.keys() == {"bob"}
    assert not passwords._waiting


def test_a_flood_is_turned_away_and_who_is_known_or_comes_from_elsewhere_gets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords = Passwords()
    assert passwords.verify(USERS, "alice", b"a", "good") is Verdict.RIGHT
    at_work = threading.Event()
    go_on = threading.Event()
    running: list[int] = []
    real = bcrypt.checkpw

    def slowly(password: bytes, hashed_password: bytes) -> bool:
        running.append(1)
        assert len(running) == 1
        at_work.set()
        go_on.wait(20)
        running.clear()
        return real(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", slowly)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(passwords.verify, USERS, "alice", b"wrong", "bad")
        assert at_work.wait(20)
        flood = [
            pool.submit(passwords.verify, USERS, "alice", str(number).encode(), "bad")
            for number in range(6)
        ]
        elsewhere = pool.submit(passwords.verify, USERS, "bob", b"b" * 72, "other")
        deadline = time.monotonic() + 20
        while sum(one.done() for one in flood) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert passwords.verify(USERS, "alice", b"a", "good") is Verdict.RIGHT
        go_on.set()
        verdicts = [one.result() for one in flood]
        assert first.result() is Verdict.WRONG
        assert elsewhere.result() is Verdict.RIGHT
    assert verdicts.count(Verdict.BUSY) == 5
    assert verdicts.count(Verdict.WRONG) == 1


def test_a_wrong_password_is_followed_by_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "PAUSE_FACTOR", 1e9)
    monkeypatch.setattr(passwords_module, "LONGEST_PAUSE_SECONDS", 0.2)
    passwords = Passwords()
    began = time.monotonic()
    passwords.verify(USERS, "alice", b"a", "1")
    assert time.monotonic() - began < 0.15
    passwords.verify(USERS, "alice", b"wrong", "1")
    assert time.monotonic() - began >= 0.2
