"""Whether there are processes that gmemd can't even know of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gmemd.host.vms.finding import LIVE_ROOT, to_see_it

if TYPE_CHECKING:
    from pathlib import Path

_HOSTS_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel's proc_ns.h


def hidden_processes(root: Path = LIVE_ROOT) -> str:
    """Which processes are hidden from gmemd, and what it would need; empty if none is."""
    if not (root / "proc/1").exists():
        return f"other users' processes are hidden (/proc is mounted with hidepid): {to_see_it()}"
    try:
        namespace = os.readlink(root / "proc/self/ns/pid")  # noqa: PTH115  it leads to no path
    except OSError:
        return ""
    if namespace != _HOSTS_NAMESPACE:
        return (
            "only the processes of gmemd's own PID namespace are seen, a container's: share the "
            "host's with it (docker run --pid=host, hostPID: true)"
        )
    return ""
