"""Prefaulting a region: the helper process from the daemon's side. All sizes in bytes."""

from __future__ import annotations

import select
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.memory import child
from gmemd.memory.residency import allocated_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from gmemd.kernel.mempolicy import MemPolicy
    from gmemd.memory.guard import Guard

_POLL_MILLISECONDS = 100
_GRACE_SECONDS = 5.0


class PrefaultOutcome(StrEnum):
    """How a prefault ended."""

    COMPLETE = "complete"
    STOPPED_AT_RESERVE = "stopped-at-reserve"
    POOL_EMPTY = "pool-empty"
    OOM_KILLED = "oom-killed"
    CGROUP_FULL = "cgroup-full"
    KILLED = "killed"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PrefaultJob:
    """A range of a region's file, and how its pages are to come about.

    ``guard`` None: nothing is held back (hugetlb, whose pool simply ends). ``any_cpus`` is what is
    fallen back to where ``cpus`` are not allowed. ``cgroup`` pays; None: the daemon's own does.
    It is joined through ``cgroup_fd``, open for writing on its cgroup.procs, where there is one.
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
    started; whatever happens to the helper is a result.
    """
    kills_before = _count("oom_kill", Path("/proc/vmstat"))
    limits_met_before = _limits_met(job.cgroup)
    with child.Child("gmemd.memory.prefault_child") as helper:
        fds = [job.fd] if job.cgroup_fd is None else [job.fd, job.cgroup_fd]
        child.send(helper.channel, _request(job), fds)
        answer, notes = _follow(helper, progress, cancel)
        code = helper.end(grace_seconds=0 if cancel.is_set() else _GRACE_SECONDS)
        said = helper.last_words()
    ended: dict[str, Any]
    if answer is not None:
        ended = _ended_itself(answer)
    elif cancel.is_set():
        ended = {"outcome": PrefaultOutcome.CANCELLED}
    elif code == -signal.SIGKILL and _limits_met(job.cgroup) > limits_met_before:
        ended = {"outcome": PrefaultOutcome.CGROUP_FULL, "detail": str(job.cgroup)}
    elif code == -signal.SIGKILL and _count("oom_kill", Path("/proc/vmstat")) > kills_before:
        ended = {"outcome": PrefaultOutcome.OOM_KILLED} | _full_node(job)
    elif code < 0:
        ended = {"outcome": PrefaultOutcome.KILLED, "detail": signal.Signals(-code).name}
    else:
        ended = {
            "outcome": PrefaultOutcome.FAILED,
            "detail": said or f"it exited with status {code} and no answer",
        }
    allocated = allocated_bytes(job.fd, job.offset, job.length, job.page_size)
    ended.setdefault("needed_bytes", job.length - allocated)
    return PrefaultResult(allocated_bytes=allocated, notes=notes, **ended)


def _request(job: PrefaultJob) -> dict[str, Any]:
    guard = job.guard
    return {
        "offset": job.offset,
        "length": job.length,
        "page_size": job.page_size,
        "reserve": None if guard is None else dict(guard.reserve_bytes),
        "shares": {} if guard is None else dict(guard.shares),
        "movable": guard is not None and guard.movable,
        "root": "/" if guard is None else guard.root,
        "task_policy": {
            "mode": job.task_policy.mode,
            "nodes": sorted(job.task_policy.nodes),
        },
        "cpus": sorted(job.cpus),
        "any_cpus": sorted(job.any_cpus),
        "cgroup": "" if job.cgroup is None else str(job.cgroup),
    }


def _follow(
    helper: child.Child, progress: Callable[[int], None], cancel: threading.Event
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Pass the helper's progress on until it ends: its last message (None: it had none), notes."""
    poll = select.poll()
    poll.register(helper.channel, select.POLLIN)
    notes: list[str] = []
    while not cancel.is_set():
        if not poll.poll(_POLL_MILLISECONDS):
            continue
        try:
            message, _ = child.receive(helper.channel)
        except child.ChildError:
            break
        if "allocated" in message:
            progress(message["allocated"])
        elif "note" in message:
            notes.append(message["note"])
        else:
            return message, tuple(notes)
    return None, tuple(notes)


def _ended_itself(answer: dict[str, Any]) -> dict[str, Any]:
    """The result's fields from the helper's last message."""
    if "error" in answer:
        error = child.error_from_message(answer["error"])
        return {"outcome": PrefaultOutcome.FAILED, "detail": error.message, "hint": error.hint}
    outcome = PrefaultOutcome(answer["outcome"])
    if outcome is PrefaultOutcome.CGROUP_FULL:
        return {
            "outcome": outcome,
            "available_bytes": answer["available"],
            "detail": answer["cgroup"],
        }
    if outcome is not PrefaultOutcome.STOPPED_AT_RESERVE:
        return {"outcome": outcome}
    return {
        "outcome": outcome,
        "full_node": answer["node"],
        "needed_bytes": answer["needed"],
        "available_bytes": answer["available"],
        "reserve_bytes": answer["reserve"],
    }


def _full_node(job: PrefaultJob) -> dict[str, Any]:
    """The node that ran out, with the region's pages still on it."""
    if job.guard is None:
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
