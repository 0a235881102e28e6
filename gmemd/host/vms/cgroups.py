"""The cgroup, the systemd unit and the cpuset that a process is in."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.text import ProcfsError, below, parse_id_list, read_id_list, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIT = re.compile(r".+\.(?:service|scope)$")
_MOUNTS = "sys/fs/cgroup"
_UNIFIED = ""


def read_cgroups(pid: int, root: Path) -> dict[str, str]:
    """The process' cgroup by controller, ``""`` for the unified hierarchy. Raises ProcfsError.

    Whoever a cgroup was delegated to may name what is below as he likes, but for line feeds: to end
    a line at anything else would let him write lines of his own, and be in any unit.
    """
    found = {}
    for line in read_lines(below(root, f"proc/{pid}/cgroup")):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            found[controller.removeprefix("name=")] = path
    return found


def main_cgroup(cgroups: Mapping[str, str]) -> str:
    """The cgroup that names a process best: the unified one, systemd's own, or memory's."""
    for controller in (_UNIFIED, "systemd", "memory"):
        if cgroups.get(controller, "/") != "/":
            return cgroups[controller]
    return "/"


def unit_of(cgroup: str) -> str:
    """The systemd unit that a cgroup belongs to: the innermost service or scope, or nothing."""
    return next((part for part in reversed(cgroup.split("/")) if _UNIT.match(part)), "")


def read_mems(pid: int, cgroups: Mapping[str, str], root: Path) -> frozenset[int]:
    """The host nodes that the process may take memory from; empty where it can't be told.

    ``cpuset.mems.effective`` of its cgroup or the nearest one above that has a cpuset; from a
    namespace that doesn't show it, what the kernel tells of the process itself.
    """
    for place, controller, name in (
        ("", _UNIFIED, "cpuset.mems.effective"),
        ("cpuset", "cpuset", "cpuset.effective_mems"),
    ):
        path = cgroups.get(controller)
        if path is None or ".." in path.split("/"):
            continue
        mount = root / _MOUNTS / place
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            try:
                return read_id_list(mount / str(folder).lstrip("/") / name)
            except ProcfsError:
                continue
    return _mems_allowed(pid, root)


def _mems_allowed(pid: int, root: Path) -> frozenset[int]:
    path = below(root, f"proc/{pid}/status")
    try:
        for line in read_lines(path):
            if line.startswith("Mems_allowed_list:"):
                return parse_id_list(line.partition(":")[2], str(path))
    except ProcfsError:
        pass
    return frozenset()
