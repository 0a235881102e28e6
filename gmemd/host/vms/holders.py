"""A process that holds a VM's memory: what is told of it, and the file descriptors that name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmemd.host.vms.cgroups import main_cgroup, read_cgroups, read_mems, unit_of
from gmemd.kernel.identity import (
    NotACgroupError,
    NotAPidfdError,
    cgroup_of_procs,
    pid_of_pidfd,
)
from gmemd.kernel.process import has_exited, peer_pidfd, pidfd_open
from gmemd.kernel.procfs.text import ProcfsError, below, parse_number, read_text

__all__ = [
    "NotACgroupError",
    "NotAPidfdError",
    "ProcessFacts",
    "cgroup_of_procs",
    "has_exited",
    "peer_pidfd",
    "pid_of_pidfd",
    "pidfd_open",
    "read_facts",
]

_ROOT = Path("/")
_CGROUPS = Path("/sys/fs/cgroup")
_STARTED = 19  # starttime is the 22nd field of /proc/PID/stat, the 20th behind the name


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What everybody may know of a process: program, systemd unit, cgroup, its cpuset's nodes.

    ``start_ticks`` tell it from a later one of the same pid: clock ticks since boot, 0 if unknown.
    """

    program: str = ""
    unit: str = ""
    cgroup: str = ""
    mems: frozenset[int] = frozenset()
    start_ticks: int = 0

    @property
    def cgroup_directory(self) -> Path | None:
        """Where its cgroup's counters are (cgroup v2); None for the root cgroup."""
        return _CGROUPS / self.cgroup.lstrip("/") if self.cgroup.strip("/") else None


def read_facts(pid: int, root: Path = _ROOT) -> ProcessFacts:
    """What is told of a process; nothing of one that is gone. Blocks."""
    try:
        program = read_text(root / f"proc/{pid}/comm").strip()
        cgroups = read_cgroups(pid, root)
        ticks = _start_ticks(pid, root)
    except ProcfsError:
        return ProcessFacts()
    cgroup = main_cgroup(cgroups)
    return ProcessFacts(program, unit_of(cgroup), cgroup, read_mems(pid, cgroups, root), ticks)


def _start_ticks(pid: int, root: Path) -> int:
    """When a process was started; its name, between parentheses, may hold anything."""
    path = below(root, f"proc/{pid}/stat")
    fields = read_text(path).rpartition(")")[2].split()
    return parse_number(fields[_STARTED], path) if len(fields) > _STARTED else 0
