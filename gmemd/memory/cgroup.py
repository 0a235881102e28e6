"""Who pays for prefaulted pages: a cgroup per VM below the service's delegated subtree.

The helper's cgroup is charged for what it allocates. Under a unit with ``Delegate=`` the subtree
is the service user's own: gmemd moves itself to a leaf (a cgroup whose children have controllers
may hold no process), turns the memory controller on, and makes one leaf per VM.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from gmemd.memory.errors import ProvisionError

_MOUNT = Path("/sys/fs/cgroup")
_OWN_LEAF = "daemon"
_VM_PREFIX = "vm-"
_MOVE_ATTEMPTS = 10
_lock = threading.Lock()


def settle() -> None:
    """Take up the place below a delegated subtree, before memory is taken, which is charged there.

    Nothing happens where no subtree is delegated, or it can't be divided.
    """
    with _lock, contextlib.suppress(OSError):
        subtree = delegated_subtree()
        if subtree is not None:
            _become_leaf(subtree)


@dataclass(frozen=True, slots=True)
class Payer:
    """The cgroup directory that pays (None: the daemon's own cgroup), and why it is that one.

    ``own``: gmemd made it, and removes it with the VM.
    """

    directory: Path | None
    reason: str
    own: bool = False


def payer_for(vm: str, wanted: str) -> Payer:
    """Who pays for a VM's prefaulted pages, by its spec's ``cgroup`` (``none`` or a path).

    Raises ProvisionError where a named cgroup can't be joined.
    """
    if wanted not in {"none", "peer"}:
        return Payer(_named(vm, wanted), f"cgroup: {wanted}")
    subtree = delegated_subtree()
    if subtree is None:
        return Payer(None, "no cgroup subtree is delegated to gmemd (Delegate=): its own pays")
    try:
        with _lock:
            _become_leaf(subtree)
            directory = _make_unused(subtree / f"{_VM_PREFIX}{vm}")
    except OSError as error:
        return Payer(None, f"{subtree} can't be divided ({error}): gmemd's own cgroup pays")
    return Payer(directory, "delegated to gmemd", own=True)


def _make_unused(directory: Path) -> Path:
    """Make the directory, by another name while an earlier VM of that name is being released."""
    for number in itertools.count(2):
        try:
            directory.mkdir()
        except FileExistsError:
            directory = directory.with_name(f"{directory.name.split('@')[0]}@{number}")
        else:
            break
    return directory


def remove(directory: Path) -> None:
    """Remove a VM's cgroup after its memory; what is still charged falls to its parent."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def room_bytes(directory: Path) -> int | None:
    """What may still be charged to a cgroup and all above it; None where nothing limits them.

    Clean file cache that is charged there is dropped on demand, and so counts as room.
    """
    rooms = []
    while directory.is_relative_to(_MOUNT) and directory != _MOUNT:
        limit = _words(directory / "memory.max")
        if limit and limit != ["max"]:
            current = int(_words(directory / "memory.current")[0])
            rooms.append(int(limit[0]) - current + _clean_cache_bytes(directory))
        directory = directory.parent
    return min(rooms, default=None)


def _clean_cache_bytes(directory: Path) -> int:
    words = _words(directory / "memory.stat")
    stat = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    return max(0, cache - stat.get("file_dirty", 0) - stat.get("file_writeback", 0))


def _named(vm: str, wanted: str) -> Path:
    """The directory of a cgroup that a spec names: absolute, or below the cgroup mount."""
    path = Path(wanted)
    if not path.is_relative_to(_MOUNT):
        path = _MOUNT / wanted.lstrip("/")
    procs = path / "cgroup.procs"
    if not procs.exists():
        raise ProvisionError(
            f"{vm}: cgroup {wanted} does not exist ({path})",
            reason="cgroup",
            hint="name a cgroup that exists when the VM is provisioned, or `cgroup: none`",
        )
    if not os.access(procs, os.W_OK):
        raise ProvisionError(
            f"{vm}: gmemd may not move its helper into cgroup {wanted}",
            reason="cgroup",
            hint="only cgroups delegated to gmemd's user, together with it, can be joined; "
            "run gmemd as root, or use `cgroup: none`",
        )
    return path


def delegated_subtree() -> Path | None:
    """The cgroup directory that was given to gmemd to divide, or None.

    systemd marks it by an extended attribute; to a user other than root being able to write
    there says the same. Cgroup v2 only.
    """
    if not (_MOUNT / "cgroup.controllers").exists():
        return None
    own = own_cgroup()
    if own is None:
        return None
    if own.name == _OWN_LEAF and _is_delegated(own.parent):
        return own.parent
    return own if _is_delegated(own) else None


def own_cgroup(root: Path = Path("/")) -> Path | None:
    """Own cgroup v2 directory, or None where there is none."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            return _MOUNT / line.removeprefix("0::/")
    return None


def _is_delegated(directory: Path) -> bool:
    if "memory" not in _words(directory / "cgroup.controllers"):
        return False
    try:
        return os.getxattr(directory, "user.delegate") == b"1"
    except OSError:
        writable = all(
            os.access(path, os.W_OK)
            for path in (
                directory,
                directory / "cgroup.procs",
                directory / "cgroup.subtree_control",
            )
        )
        return writable and os.geteuid() != 0


def _become_leaf(subtree: Path) -> None:
    """Move what runs in the subtree itself to a leaf, and give its children the controller."""
    control = subtree / "cgroup.subtree_control"
    if "memory" in _words(control):
        return
    leaf = subtree / _OWN_LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_MOVE_ATTEMPTS):
        for pid in _words(subtree / "cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
        with contextlib.suppress(BlockingIOError, OSError):
            control.write_text("+memory")
            break
    else:
        control.write_text("+memory")
    _protect(subtree, leaf)


def _protect(subtree: Path, leaf: Path) -> None:
    """Claim for the daemon what is protected (MemoryMin=): guests' pages can't be reclaimed."""
    with contextlib.suppress(OSError):
        (leaf / "memory.min").write_text((subtree / "memory.min").read_text())


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
