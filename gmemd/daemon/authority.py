"""Who may do what: root, the daemon's own user, a VM's owner, and who may bring specs along.

Names of users and groups are looked up off the event loop, as that may ask a directory on the
network, and are believed for a minute.
"""

from __future__ import annotations

import asyncio
import grp
import pwd
import time
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from gmemd.daemon.varlink.peer import PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gmemd.daemon.varlink.peer import Peer
    from gmemd.spec.model import Owner, VmSpec

BELIEVED_SECONDS = 60


async def usable(peer: Peer, specs: Mapping[str, VmSpec | None]) -> frozenset[str]:
    """Return the names of the VMs that the peer may use; ``specs`` is by name."""
    if peer.privileged:
        return frozenset(specs)
    owners = {name: spec.owner for name, spec in specs.items() if spec is not None and spec.owner}
    if not owners:
        return frozenset()
    return await asyncio.to_thread(_owned, peer, owners)


async def may_pass_specs(peer: Peer, users: Sequence[str]) -> bool:
    """Whether the peer may bring a spec along: root, the daemon's user, or one of ``users``."""
    if peer.privileged:
        return True
    return bool(users) and await asyncio.to_thread(_is_any_user, peer, users)


def _owned(peer: Peer, owners: Mapping[str, Owner]) -> frozenset[str]:
    unit = ""
    if any(owner.unit for owner in owners.values()):
        try:
            unit = peer.unit()
        except PeerError:
            unit = ""
    return frozenset(name for name, owner in owners.items() if _is_owner(peer, owner, unit))


def _is_owner(peer: Peer, owner: Owner, unit: str) -> bool:
    if owner.unit is not None:
        return bool(unit) and fnmatchcase(unit, owner.unit)
    if owner.user is not None:
        return _user_number(owner.user) == peer.uid
    return owner.group is not None and _group_number(owner.group) in {peer.gid, *peer.groups}


def _is_any_user(peer: Peer, users: Sequence[str]) -> bool:
    return any(_user_number(user) == peer.uid for user in users)


def _user_number(user: str) -> int | None:
    return int(user) if user.isdecimal() else _uid_of(user, _period())


def _group_number(group: str) -> int | None:
    return int(group) if group.isdecimal() else _gid_of(group, _period())


def _period() -> int:
    """Return what changes each time that names are no longer believed."""
    return int(time.monotonic() // BELIEVED_SECONDS)


@lru_cache(maxsize=256)
def _uid_of(name: str, _period: int) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


@lru_cache(maxsize=256)
def _gid_of(name: str, _period: int) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
