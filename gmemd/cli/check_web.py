"""What ``gmemd check`` says of a web.yaml and the files that it names."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SERVICE_USER = "gmemd"


def check_web(path: Path) -> tuple[str, list[str]]:
    """What it protects the metrics by, and what should be otherwise; raises SpecError."""
    from gmemd.export.protection import Reading  # noqa: PLC0415  --help needs none of it

    reading = Reading(path)
    protection = reading.protection()
    return protection.words, [*protection.warnings, *unreadable(reading.stamps)]


def unreadable(paths: Iterable[Path], user: str = SERVICE_USER) -> list[str]:
    """Say which of the files that root can read the service's user can't, by owner and mode."""
    if os.geteuid() != 0:
        return []
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return []
    groups = os.getgrouplist(user, entry.pw_gid)
    return [
        f"{path}: user {user}, which the service runs as, may not read it: "
        f"chgrp {user} it, and chmod g+r"
        for path in paths
        if not _may_read(path, entry.pw_uid, groups)
    ]


def _may_read(path: Path, uid: int, gids: Iterable[int]) -> bool:
    """Whether the file's mode lets them; one that is gone meanwhile is no matter of modes."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if status.st_uid == uid:
            return bool(status.st_mode & stat.S_IRUSR)
        if status.st_gid in gids:
            return bool(status.st_mode & stat.S_IRGRP)
        return bool(status.st_mode & stat.S_IROTH)
    return True
