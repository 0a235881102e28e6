"""The prefault helper: a process that allocates one region, chunk by chunk, and reports.

It is what the kernel's OOM killer takes first, runs beside the memory it makes, and decides by its
own task policy where that goes when the memory has none.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from gmemd.errors import GmemdError
from gmemd.kernel import fallocate, mempolicy, process
from gmemd.kernel.errors import KernelError
from gmemd.memory import cgroup, child, residency
from gmemd.memory.guard import Guard, next_chunk

if TYPE_CHECKING:
    from pathlib import Path

# Freed pages reach the counters with a delay (per-CPU lists are folded once a second), so a node
# is full only when it was so for longer than that.
_SECOND_LOOKS = 5
_SECOND_LOOK_SECONDS = 0.3
_OOM_SCORE_ADJ = 1000
_STEP_BYTES = 64 << 20
# The helper's own needs, and charges that the kernel makes ahead per CPU.
_PAYERS_MARGIN = 16 << 20
_NOT_DELEGATED = (
    "gmemd may only move its helpers into cgroups that are delegated to its user; where gmemd "
    "isn't root, the cgroup that both share counts too"
)
_NOT_THE_OPENERS = (
    "who opened its cgroup.procs may not move gmemd's helpers there: only root may from outside"
)


def main(channel_fd: int, parent_pid: int) -> None:
    """Take one request with the region's descriptor, serve it, exit.

    A second descriptor is the cgroup.procs of the cgroup that pays.
    """
    child.tie_to_parent(parent_pid)
    with socket.socket(fileno=channel_fd) as channel:
        request, (fd, *payer) = child.receive(channel)
        try:
            _settle(channel, request, payer)
            _prefault(channel, fd, request)
        except GmemdError as error:
            child.send(channel, {"error": child.error_to_message(error)})


def _settle(channel: socket.socket, request: dict[str, Any], payer: list[int]) -> None:
    """Become what the region needs: victim, payer, place, policy."""
    process.set_oom_score_adj(_OOM_SCORE_ADJ)
    if payer or request["cgroup"]:
        _join_cgroup(request["cgroup"], payer)
    _pin(channel, request["cpus"], request["any_cpus"])
    task = request["task_policy"]
    mempolicy.set_task_policy(mempolicy.MemPolicy(task["mode"], frozenset(task["nodes"])))


def _join_cgroup(directory: str, payer: list[int]) -> None:
    """Join through the descriptor that was sent, by the rights of who opened it, or by name."""
    try:
        procs = payer[0] if payer else os.open(f"{directory}/cgroup.procs", os.O_WRONLY)
        os.write(procs, b"0")
    except OSError as error:
        raise KernelError(
            "write",
            error.errno or 0,
            f"joining cgroup {directory}",
            hint=_NOT_THE_OPENERS if payer else _NOT_DELEGATED,
        ) from error


def _pin(channel: socket.socket, cpus: list[int], any_cpus: list[int]) -> None:
    try:
        process.set_affinity(frozenset(cpus))
    except KernelError:
        child.send(channel, {"note": "the CPUs beside the memory aren't allowed (AllowedCPUs=)"})
        process.set_affinity(frozenset(any_cpus))


def _prefault(channel: socket.socket, fd: int, request: dict[str, Any]) -> None:
    """Allocate the range; each message tells how far it is."""
    offset, length, page_size = request["offset"], request["length"], request["page_size"]
    guard = _guard(request) if request["reserve"] is not None else None
    payer = cgroup.own_cgroup()
    done = 0
    while done < length:
        done += _already_there(fd, offset + done, length - done, page_size)
        chunk = _chunk(guard, payer, length - done, page_size)
        if not chunk:
            break
        try:
            _allocate(fd, offset + done, chunk)
        except KernelError as error:
            if error.errno != errno.ENOSPC or page_size == residency.BASE_PAGE:
                raise
            child.send(channel, {"outcome": "pool-empty"})
            return
        done += chunk
        child.send(channel, {"allocated": done})
    if guard is None or done == length:
        child.send(channel, {"outcome": "complete"})
    else:
        child.send(channel, _stopped(guard, payer, length - done, page_size))


def _already_there(fd: int, offset: int, remaining: int, page_size: int) -> int:
    """How much is allocated from here on without a gap: what needs no room any more."""
    there = 0
    while page_size == residency.BASE_PAGE and there < remaining:
        step = min(remaining - there, _STEP_BYTES)
        if residency.allocated_bytes(fd, offset + there, step, page_size) < step:
            break
        there += step
    return there


def _chunk(guard: Guard | None, payer: Path | None, remaining: int, page_size: int) -> int:
    """How much to allocate next; 0 where nothing is left to do, or no room above the reserve."""
    if guard is None:
        return min(remaining, max(page_size, _STEP_BYTES))
    for look in range(1 + _SECOND_LOOKS):
        if look:
            time.sleep(_SECOND_LOOK_SECONDS)
        headroom = min(guard.headroom(guard.available()), _payers_room(payer, remaining))
        chunk = next_chunk(remaining, headroom, page_size)
        if chunk or not remaining:
            return chunk
    return 0


def _payers_room(payer: Path | None, remaining: int) -> int:
    """What the cgroup that pays has room for, up to what remains to be done."""
    room = None if payer is None else cgroup.room_bytes(payer)
    return remaining if room is None else max(0, min(room - _PAYERS_MARGIN, remaining))


def _guard(request: dict[str, Any]) -> Guard:
    return Guard(
        reserve_bytes={int(node): size for node, size in request["reserve"].items()},
        shares={int(node): share for node, share in request["shares"].items()},
        movable=request["movable"],
        root=request["root"],
    )


def _stopped(guard: Guard, payer: Path | None, needed: int, page_size: int) -> dict[str, Any]:
    room = _payers_room(payer, needed)
    if room < page_size:
        return {"outcome": "cgroup-full", "cgroup": str(payer), "available": room}
    available = guard.available()
    node = guard.fullest(available)
    return {
        "outcome": "stopped-at-reserve",
        "node": node,
        "available": available.get(node, 0),
        "reserve": guard.reserve_bytes[node],
        "needed": needed,
    }


def _allocate(fd: int, offset: int, length: int) -> None:
    """Allocate a chunk. A signal's interruption keeps what was made, so starting over resumes."""
    while True:
        try:
            fallocate.allocate(fd, offset, length)
        except KernelError as error:
            if error.errno != errno.EINTR:
                raise
        else:
            return
