"""Prefaulting a region: the helper process from the daemon's side. All sizes in bytes."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.errors import GmemdError
from gmemd.kernel import mempolicy
from gmemd.kernel.errors import KernelError
from gmemd.memory import cgroup, child
from gmemd.memory.dealing import Dealer, Range, StepError, StuckError
from gmemd.memory.residency import BASE_PAGE, allocated_bytes, confirmed_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from gmemd.kernel.mempolicy import MemPolicy
    from gmemd.memory.guard import Guard

_GRACE_SECONDS = 5.0
_FOLLOWERS = 2
_UNPINNED = "the CPUs beside the memory aren't allowed (AllowedCPUs=)"
_NOT_DELEGATED = (
    "gmemd may only move its helpers into cgroups that are delegated to its user; where gmemd "
    "isn't root, the cgroup that both share counts too"
)
_VANISHED = "it was removed meanwhile: name one that is there whenever the VM's memory is made"
_NOT_THE_OPENERS = (
    "who opened its cgroup.procs may not move gmemd's helpers there: only root may from outside"
)


class PrefaultOutcome(StrEnum):
    """How a prefault ended."""

    COMPLETE = "complete"
    STOPPED_AT_RESERVE = "stopped-at-reserve"
    POOL_EMPTY = "pool-empty"
    OOM_KILLED = "oom-killed"
    CGROUP_FULL = "cgroup-full"
    KILLED = "killed"
    STUCK = "stuck"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PrefaultJob:
    """A range of a region's file, and how its pages are to come about.

    ``guard`` None: nothing is held back (hugetlb, whose pool simply ends). ``any_cpus`` is what is
    fallen back to where ``cpus`` are not allowed. ``cgroup`` pays; None: the daemon's own does.
    It is joined through ``cgroup_fd``, open for writing on its cgroup.procs, where there is one.
    ``n_threads`` allocate at the same time (placement.threads_for).
    """

    fd: int
    offset: int
    length: int
    page_size: int
    guard: Guard | None
    task_policy: MemPolicy
    cpus: frozenset[int]
    any_cpus: frozenset[int]
    cgroup: Path | None = None
    cgroup_fd: int | None = None
    n_threads: int = 1


@dataclass(frozen=True, slots=True)
class PrefaultResult:
    """What became of it. ``allocated_bytes`` is the kernel's own count of the range, afterwards.

    ``full_node``, ``needed_bytes`` (still missing), ``available_bytes`` and ``reserve_bytes``
    speak of the node that ended it; ``detail`` names the cgroup, where that did.
    """

    outcome: PrefaultOutcome
    allocated_bytes: int
    full_node: int | None = None
    needed_bytes: int = 0
    available_bytes: int = 0
    reserve_bytes: int = 0
    detail: str = ""
    hint: str | None = None
    notes: tuple[str, ...] = ()


def prefault(
    job: PrefaultJob, *, progress: Callable[[int], None], cancel: threading.Event
) -> PrefaultResult:
    """Have a helper process allocate the range; blocks. Works on any fd that can be fallocated.

    ``progress`` is called with the bytes done so far. Raises KernelError where no helper can be
    started; whatever happens to the helper is a result. Helpers are what the kernel's OOM killer
    takes first, wherever memory ran out: one that had room itself is followed by another.
    """
    for _ in range(_FOLLOWERS):
        result = _attempt(job, progress=progress, cancel=cancel)
        if result.outcome is not PrefaultOutcome.OOM_KILLED or not _has_room(job, result):
            return result
    return _attempt(job, progress=progress, cancel=cancel)


def _has_room(job: PrefaultJob, result: PrefaultResult) -> bool:
    """Whether what is missing fits where it belongs, so that it can't have been what was short."""
    if job.guard is None:
        return True
    return job.guard.headroom(job.guard.available()) > result.needed_bytes


def _attempt(
    job: PrefaultJob, *, progress: Callable[[int], None], cancel: threading.Event
) -> PrefaultResult:
    """Prefault by one helper."""
    kills_before = _count("oom_kill", Path("/proc/vmstat"))
    limits_met_before = _limits_met(_payer(job))
    fds = [job.fd] if job.cgroup_fd is None else [job.fd, job.cgroup_fd]
    ended: dict[str, Any]
    with child.Child("gmemd.memory.prefault_child", fds=fds) as helper:
        dealer = Dealer(_range(job), helper.channel)
        try:
            with child.talking("send"):
                helper.channel.send(_settings(job).encode())
            complete = dealer.deal(progress, cancel)
        except child.ChildError:
            code = helper.end(grace_seconds=_GRACE_SECONDS)
            ended = _ended_early(job, code, helper.last_words(), kills_before, limits_met_before)
        except StuckError as error:
            ended = {"outcome": PrefaultOutcome.STUCK, "detail": str(error)}
        except StepError as error:
            ended = _failed(_step_error(job, error))
        except GmemdError as error:
            ended = _failed(error)
            if isinstance(error, KernelError) and _is_pool_empty(error, job.page_size):
                ended = {"outcome": PrefaultOutcome.POOL_EMPTY}
        else:
            if complete:
                ended = {"outcome": PrefaultOutcome.COMPLETE}
            elif cancel.is_set():
                ended = {"outcome": PrefaultOutcome.CANCELLED}
            else:
                ended = _stopped(job, dealer.payers_room_bytes())
    allocated = confirmed_bytes if ended["outcome"] is PrefaultOutcome.COMPLETE else allocated_bytes
    there = allocated(job.fd, job.offset, job.length, job.page_size)
    ended.setdefault("needed_bytes", job.length - there)
    notes = (_UNPINNED,) if dealer.unpinned else ()
    return PrefaultResult(allocated_bytes=there, notes=notes, **ended)


def _range(job: PrefaultJob) -> Range:
    return Range(
        fd=job.fd,
        offset=job.offset,
        length=job.length,
        page_size=job.page_size,
        guard=job.guard,
        payer=_payer(job),
        n_threads=job.n_threads,
    )


def _payer(job: PrefaultJob) -> Path | None:
    """The directory of the cgroup that pays; None where it isn't known."""
    return job.cgroup or cgroup.own_cgroup()


def _settings(job: PrefaultJob) -> str:
    """What the helper is told first: prefault_child.main()."""
    mode, words = mempolicy.encoded(job.task_policy)
    settings: dict[str, object] = {
        "fd": job.fd,
        "threads": job.n_threads,
        "cpus": " ".join(map(str, sorted(job.cpus))),
        "any_cpus": " ".join(map(str, sorted(job.any_cpus))),
        "policy": " ".join(map(str, [mode, *words])),
    }
    if job.cgroup is not None:
        settings["cgroup"] = job.cgroup
    if job.cgroup_fd is not None:
        settings["procs"] = job.cgroup_fd
    return "\n".join(f"{name} {value}" for name, value in settings.items())


def _ended_early(
    job: PrefaultJob, code: int, said: str, kills_before: int, limits_met_before: int
) -> dict[str, Any]:
    """The helper is gone, with this return code."""
    if code == -signal.SIGKILL and _limits_met(_payer(job)) > limits_met_before:
        return {"outcome": PrefaultOutcome.CGROUP_FULL, "detail": str(_payer(job))}
    if code == -signal.SIGKILL and _count("oom_kill", Path("/proc/vmstat")) > kills_before:
        return {"outcome": PrefaultOutcome.OOM_KILLED} | _full_node(job)
    if code < 0:
        return {"outcome": PrefaultOutcome.KILLED, "detail": signal.Signals(-code).name}
    return {
        "outcome": PrefaultOutcome.FAILED,
        "detail": said or f"it exited with status {code} and no answer",
    }


def _failed(error: GmemdError) -> dict[str, Any]:
    return {"outcome": PrefaultOutcome.FAILED, "detail": error.message, "hint": error.hint}


def _step_error(job: PrefaultJob, error: StepError) -> KernelError:
    """What the helper couldn't become, for people."""
    match error.step:
        case "oom":
            call, what, hint = "write", "setting the helper's oom_score_adj", None
        case "cgroup":
            call, what = "write", f"joining cgroup {job.cgroup}"
            hint = _NOT_DELEGATED if job.cgroup_fd is None else _NOT_THE_OPENERS
            if error.errno in {errno.ENOENT, errno.ENODEV}:
                hint = _VANISHED
        case "pin":
            call, what, hint = "sched_setaffinity", f"pinning to CPUs {sorted(job.any_cpus)}", None
        case _:
            call, what = "set_mempolicy", f"setting {job.task_policy} as the helper's policy"
            hint = None
    return KernelError(call, error.errno, what, hint=hint)


def _is_pool_empty(error: KernelError, page_size: int) -> bool:
    return error.errno == errno.ENOSPC and page_size != BASE_PAGE


def _stopped(job: PrefaultJob, payers_room: int | None) -> dict[str, Any]:
    """No room was left: in the cgroup that pays, or on a node."""
    if payers_room is not None and payers_room < job.page_size:
        return {
            "outcome": PrefaultOutcome.CGROUP_FULL,
            "available_bytes": payers_room,
            "detail": str(_payer(job)),
        }
    if job.guard is None:
        return {"outcome": PrefaultOutcome.FAILED, "detail": "it ended before all was allocated"}
    if not job.guard.reserve_bytes:
        return {
            "outcome": PrefaultOutcome.FAILED,
            "detail": "none of its host nodes is there, or gmemd may use none of them",
        }
    full = _full_node(job)
    reserve = job.guard.reserve_bytes[full["full_node"]]
    return {"outcome": PrefaultOutcome.STOPPED_AT_RESERVE, "reserve_bytes": reserve} | full


def _full_node(job: PrefaultJob) -> dict[str, Any]:
    """The node that ran out, with the region's pages still on it."""
    if job.guard is None or not job.guard.reserve_bytes:
        return {}
    available = job.guard.available()
    node = job.guard.fullest(available)
    return {"full_node": node, "available_bytes": available.get(node, 0)}


def _count(name: str, counters: Path) -> int:
    """A counter of the kernel's, from a file of lines `name value`; 0 where it can't be read."""
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _limits_met(cgroup: Path | None) -> int:
    """How often the cgroup, or one above it, was out of its own memory limit.

    `oom` says that; `oom_kill` counts processes killed for a full node as well.
    """
    if cgroup is None:
        return 0
    return sum(_count("oom", at / "memory.events.local") for at in (cgroup, *cgroup.parents))
