"""Finds running VMs: every process that holds a KVM VM, and known VMMs that emulate one."""

from __future__ import annotations

import os
import pwd
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.host.vms.cgroups import main_cgroup, read_cgroups, read_mems, unit_of
from gmemd.host.vms.descriptors import Descriptors, read_descriptors
from gmemd.host.vms.filesystems import Filesystems, read_filesystems
from gmemd.host.vms.model import FoundVmms, VmmProcess
from gmemd.host.vms.pieces import large_mappings, maps_a_vcpu, read_pieces
from gmemd.kernel.procfs.text import ProcfsError, below, list_names, parse_number, read_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from gmemd.host.vms.model import Piece

LIVE_ROOT = Path("/")

_EMULATORS = re.compile(r"(?:qemu-system-.+|qemu-kvm|qemu|kvm)$")
_PROGRAMS = re.compile(rf"{_EMULATORS.pattern}|(?:cloud-hypervisor.*|firecracker.*|crosvm)$")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_OWN_CHILD = "gmemd.memory.creator_child"  # makes guest_memfds, and is gone at once


@dataclass(frozen=True, slots=True)
class _Stat:
    """Some of /proc/PID/stat."""

    comm: str
    parent: int
    start_ticks: int
    address_space_bytes: int
    stack_start: int
    kernel_thread: bool

    @property
    def identity(self) -> tuple[int, int]:
        """What stays the same as long as a process maps nothing new."""
        return self.start_ticks, self.address_space_bytes


class VmmFinder:
    """Looks at all processes, again and again.

    It remembers those that held no VM: one that comes to hold one maps memory for it, so a process
    with the same start and the same address space needn't be looked into again.
    """

    def __init__(self, root: Path = LIVE_ROOT, filesystems: Filesystems | None = None) -> None:
        self._root = root
        self._filesystems = read_filesystems(root) if filesystems is None else filesystems
        self._without: dict[int, tuple[int, int]] = {}

    def find(self, only: int | None = None, *, among: Collection[int] | None = None) -> FoundVmms:
        """All VMMs by pid, or the one with that pid, which is taken for one whatever it is.

        ``among`` are the processes to look at, if not all.
        """
        without: dict[int, tuple[int, int]] = {}
        found: dict[int, VmmProcess] = {}
        parents: dict[int, int] = {}
        unseen = 0
        every = self._pids() if among is None else among
        for pid in every if only is None else (only,):
            try:
                stat = _read_stat(pid, self._root)
                if only is None and self._is_ours_or_nobodys(pid, stat):
                    continue
                if only is None and self._without.get(pid) == stat.identity:
                    without[pid] = stat.identity
                    continue
                seen, process = self._look_at(pid, stat, wanted=only is not None)
            except (ProcfsError, OSError) as error:
                unseen += not _gone(error)
                continue
            unseen += not seen
            if process is not None:
                found[pid], parents[pid] = process, stat.parent
            elif seen:
                without[pid] = stat.identity
        if only is None and among is None:
            self._without = without
        elif only is None:
            self._without |= without
        vmms = [vmm for pid, vmm in found.items() if not _is_fork(vmm, found.get(parents[pid]))]
        by_argv: dict[tuple[str, ...], list[VmmProcess]] = {}
        for vmm in vmms:
            by_argv.setdefault(vmm.argv, []).append(vmm)
        held = (vmm for vmm in vmms if not _waits(vmm, by_argv[vmm.argv]))
        return FoundVmms(tuple(sorted(held, key=lambda vmm: vmm.pid)), unseen)

    def mappings(self, pid: int, least_bytes: int) -> tuple[str, ...]:
        """What a process has mapped that may be guest memory; empty where that can't be seen."""
        try:
            return large_mappings(pid, self._root, least_bytes)
        except ProcfsError:
            return ()

    def _pids(self) -> Iterator[int]:
        for name in list_names(self._root / "proc"):
            if name.isdigit():
                yield int(name)

    def _is_ours_or_nobodys(self, pid: int, stat: _Stat) -> bool:
        return stat.kernel_thread or (self._root == LIVE_ROOT and pid == os.getpid())

    def _look_at(self, pid: int, stat: _Stat, *, wanted: bool) -> tuple[bool, VmmProcess | None]:
        """Whether it could be seen what the process is, and the VMM if it is one."""
        argv = _read_argv(pid, self._root)
        if not argv and not wanted:  # a zombie
            return True, None
        if _OWN_CHILD in argv:
            return True, None
        program = _program(argv, stat)
        known = _PROGRAMS.match(program) is not None
        kvm: bool | None = None
        try:
            descriptors = read_descriptors(pid, self._root)
            kvm = descriptors.holds_vm
            if kvm is None:
                kvm = maps_a_vcpu(pid, self._root)
            if not (kvm or wanted or _EMULATORS.match(program)):
                return True, None
            return True, self._described(pid, stat, argv, program, kvm=kvm, descriptors=descriptors)
        except (ProcfsError, PermissionError) as error:
            if _gone(error):
                raise
            if not (kvm or known or wanted):
                return False, None
            return True, self._blocked(pid, stat, argv, program)

    def _described(
        self,
        pid: int,
        stat: _Stat,
        argv: tuple[str, ...],
        program: str,
        *,
        kvm: bool,
        descriptors: Descriptors,
    ) -> VmmProcess | None:
        """Everything about a VMM; None where it became another program while it was looked at."""
        cgroups = read_cgroups(pid, self._root)
        pieces = read_pieces(pid, descriptors, self._filesystems, self._root)
        again = _read_stat(pid, self._root)
        same = (again.start_ticks, again.stack_start) == (stat.start_ticks, stat.stack_start)
        if not same or _read_argv(pid, self._root) != argv:
            return None
        cgroup = main_cgroup(cgroups)
        return VmmProcess(
            pid=pid,
            start_ticks=stat.start_ticks,
            stack_start=stat.stack_start,
            started_timestamp=self._started_timestamp(stat),
            program=program,
            argv=argv,
            kvm=kvm,
            cgroup=cgroup,
            unit=unit_of(cgroup),
            mems=read_mems(pid, cgroups, self._root),
            pieces=pieces,
            userfaultfd=descriptors.userfaultfd,
        )

    def _blocked(self, pid: int, stat: _Stat, argv: tuple[str, ...], program: str) -> VmmProcess:
        """What anybody may see of a VMM."""
        try:
            cgroups = read_cgroups(pid, self._root)
        except ProcfsError:
            cgroups = {}
        cgroup = main_cgroup(cgroups)
        return VmmProcess(
            pid=pid,
            start_ticks=stat.start_ticks,
            started_timestamp=self._started_timestamp(stat),
            program=program,
            argv=argv,
            kvm=None,
            cgroup=cgroup,
            unit=unit_of(cgroup),
            mems=read_mems(pid, cgroups, self._root),
            blocked=f"not permitted to look into pid {pid}, which runs as {self._owner(pid)}",
            hint=to_see_it(),
        )

    def _owner(self, pid: int) -> str:
        try:
            uid = (self._root / f"proc/{pid}").stat().st_uid
        except OSError:
            return "another user"
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"

    def _started_timestamp(self, stat: _Stat) -> float:
        """When the process was started, in seconds since the epoch."""
        try:
            uptime = float(read_text(below(self._root, "proc/uptime")).split()[0])
        except (ProcfsError, ValueError, IndexError):
            return 0.0
        return time.time() - uptime + stat.start_ticks / _TICKS_PER_SECOND


def to_see_it() -> str:
    """What gmemd would need to look into other processes."""
    if os.geteuid() != 0:
        return "run gmemd as root, or give it CAP_SYS_PTRACE"
    return (
        "gmemd is root here and lacks CAP_SYS_PTRACE, or a security module or a container's limits "
        "forbid it"
    )


def still_runs(vmm: VmmProcess, root: Path = LIVE_ROOT) -> bool:
    """Whether the process is there and runs the program that it ran when it was found."""
    try:
        stat = _read_stat(vmm.pid, root)
    except ProcfsError:
        return False
    return (stat.start_ticks, stat.stack_start) == (vmm.start_ticks, vmm.stack_start)


def holds_userfaultfd(pid: int, root: Path = LIVE_ROOT) -> bool:
    """Whether the process holds a userfaultfd now. Raises PermissionError, OSError, ProcfsError."""
    return read_descriptors(pid, root).userfaultfd


def _read_stat(pid: int, root: Path) -> _Stat:
    path = below(root, f"proc/{pid}/stat")
    text = read_text(path)
    comm, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    least = 26
    if len(fields) < least:
        raise ProcfsError(path, "is cut short")
    return _Stat(
        comm=comm,
        parent=parse_number(fields[1], path),
        start_ticks=parse_number(fields[19], path),
        address_space_bytes=parse_number(fields[20], path),
        stack_start=parse_number(fields[25], path),
        kernel_thread=bool(parse_number(fields[6], path) & _KERNEL_THREAD),
    )


def _read_argv(pid: int, root: Path) -> tuple[str, ...]:
    """The command line; a program may have overwritten it with anything."""
    text = read_text(below(root, f"proc/{pid}/cmdline"))
    return tuple(text.removesuffix("\0").split("\0")) if text else ()


def _program(argv: tuple[str, ...], stat: _Stat) -> str:
    """The program's name; what the kernel calls it, where the command line has none."""
    return (argv[0].rpartition("/")[2] if argv else "") or stat.comm


def _is_fork(vmm: VmmProcess, parent: VmmProcess | None) -> bool:
    """Whether it is a VMM's child that hasn't become another program yet: it has no guest."""
    return parent is not None and parent.argv == vmm.argv


def _waits(vmm: VmmProcess, alike: Iterable[VmmProcess]) -> bool:
    """Whether it is a VMM without a VM that waits for its copy, which daemonizes, to have one.

    ``alike`` have its command line. The copy is no child of it any more, was started later, and has
    all that it has mapped.
    """
    return not (vmm.kvm or vmm.blocked) and any(
        (other.start_ticks, other.pid) > (vmm.start_ticks, vmm.pid)
        and all(any(_within(piece, its) for its in other.pieces) for piece in vmm.pieces)
        for other in alike
    )


def _within(piece: Piece, other: Piece) -> bool:
    start, others = piece.address or 0, other.address or 0
    return others <= start and start + piece.size_bytes <= others + other.size_bytes


def _gone(error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, ProcfsError) else error
    return not isinstance(cause, PermissionError)
