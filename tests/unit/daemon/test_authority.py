from __future__ import annotations

import asyncio
import grp
import os
import pwd
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon import authority
from gmemd.daemon.authority import may_pass_specs, usable
from gmemd.daemon.varlink.peer import Peer, PeerError
from gmemd.spec.model import GuestNode, Owner, RegionSpec, VmSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

STRANGER = 54321
NODE = GuestNode(id=0, regions=(RegionSpec(size_bytes=4096),))


def spec(**owner: str) -> VmSpec:
    return VmSpec(vm="db", owner=Owner(**owner) if owner else None, guest_nodes=(NODE,))


def peer(uid: int = STRANGER, gid: int = STRANGER, *groups: int) -> Peer:
    return Peer(os.getpid(), uid, gid, frozenset(groups))


def uses(who: Peer, asked: VmSpec | None) -> bool:
    return asyncio.run(usable(who, {"db": asked})) == {"db"}


def may(who: Peer, **owner: str) -> bool:
    return uses(who, spec(**owner))


@pytest.fixture(autouse=True)
def known_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Names of users and groups, which a test may change."""
    known = {"operator": 1001, "qemu": STRANGER}

    def find(name: str) -> int:
        return known[name]

    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd(
        (name, "x", find(name), 0, "", "/", "/bin/sh")))  # fmt: skip
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", find(name), [])))
    yield known
    authority._uid_of.cache_clear()
    authority._gid_of.cache_clear()


def test_root_and_our_own_user_may_use_everything() -> None:
    assert may(peer(0))
    assert may(peer(os.geteuid()))
    assert uses(peer(0), None)
    assert asyncio.run(may_pass_specs(peer(0), []))


def test_others_may_use_nothing_that_isnt_theirs() -> None:
    assert not may(peer())
    assert not may(peer(), user="operator")
    assert not may(peer(), user="nobody-knows")
    assert not may(peer(), group="nobody-knows")
    assert not uses(peer(), None)
    assert not asyncio.run(may_pass_specs(peer(), []))
    assert not asyncio.run(may_pass_specs(peer(), ["operator", "1", "nobody-knows"]))


def test_a_user_is_known_by_name_or_number() -> None:
    assert may(peer(), user="qemu")
    assert may(peer(), user=str(STRANGER))
    assert asyncio.run(may_pass_specs(peer(), ["operator", "qemu"]))
    assert asyncio.run(may_pass_specs(peer(), [str(STRANGER)]))


def test_a_group_is_the_first_or_a_further_one() -> None:
    assert may(peer(1, STRANGER), group="qemu")
    assert may(peer(1, 1, 2, STRANGER), group="qemu")
    assert may(peer(1, 1, 1001), group="1001")
    assert not may(peer(STRANGER, 1, 2), group="qemu")


def test_a_user_is_no_group_of_the_same_number() -> None:
    assert not may(peer(STRANGER, 1), group=str(STRANGER))
    assert not may(peer(1, STRANGER), user=str(STRANGER))


@pytest.mark.parametrize(
    ("pattern", "whether"),
    [
        ("db-01.service", True),
        ("db-*.service", True),
        ("*", True),
        ("DB-01.service", False),
        ("db-02.service", False),
        ("db", False),
    ],
)
def test_a_unit_is_a_pattern(
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    whether: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(Peer, "unit", lambda _: "db-01.service")
    assert may(peer(), unit=pattern) is whether


def test_who_is_in_no_unit_or_gone_is_of_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Peer) -> str:
        raise PeerError("gone")

    monkeypatch.setattr(Peer, "unit", lambda _: "")
    assert not may(peer(), unit="*")
    monkeypatch.setattr(Peer, "unit", gone)
    assert not may(peer(), unit="*")


def test_of_several_those_are_told_that_are_the_peers() -> None:
    specs = {"a": spec(user="qemu"), "b": spec(user="operator"), "c": spec(), "d": None}
    assert asyncio.run(usable(peer(), specs)) == {"a"}
    assert asyncio.run(usable(peer(0), specs)) == set(specs)


def test_names_are_believed_for_a_minute(
    monkeypatch: pytest.MonkeyPatch, known_names: dict[str, int]
) -> None:
    assert may(peer(), user="qemu")
    known_names["qemu"] = 1
    assert may(peer(), user="qemu")
    monkeypatch.setattr(authority, "BELIEVED_SECONDS", 1e-9)
    assert not may(peer(), user="qemu")
