"""Who a call names by its file descriptors: the process that is to hold memory, and who pays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gmemd.daemon.handing import PassedCgroup
from gmemd.daemon.holding import Holder
from gmemd.daemon.varlink import errors
from gmemd.daemon.varlink.peer import PeerError
from gmemd.errors import GmemdError
from gmemd.host.vms.holders import (
    cgroup_of_procs,
    pid_of_pidfd,
    read_facts,
)

if TYPE_CHECKING:
    from gmemd.daemon.varlink.protocol import Call
    from gmemd.daemon.work import Workers


class Payer:
    """A passed cgroup, with a descriptor of its own for as long as the block lasts."""

    def __init__(self, passed: PassedCgroup | None) -> None:
        self._passed = passed

    def __enter__(self) -> PassedCgroup | None:
        return self._passed

    def __exit__(self, *_: object) -> None:
        if self._passed is not None:
            os.close(self._passed.procs_fd)


async def holder_of(call: Call, index: int | None, workers: Workers) -> Holder:
    """The process that is to hold the memory: that of a passed pidfd, or the caller."""
    try:
        own = call.peer.pidfd()
    except PeerError as error:
        if index is None:
            raise errors.FdRejected(index=-1, reason=error.in_one_line) from error
        own = -1
    try:
        if index is None:
            return Holder(own, call.peer.pid, await workers.read(read_facts, call.peer.pid))
        passed = _passed_fd(call, index)
        try:
            pid = pid_of_pidfd(passed)
        except GmemdError as error:
            raise errors.FdRejected(index=index, reason=error.in_one_line) from error
        facts = await workers.read(read_facts, pid)
        vouched = call.peer.privileged or pid == call.peer.pid
        return Holder(_duplicate(passed, index), pid, facts, call.peer.pid, own, vouched)
    except BaseException:
        _close(own)
        raise


async def payer_of(call: Call, index: int | None, workers: Workers) -> Payer:
    """The cgroup that the caller lets pay."""
    if index is None:
        return Payer(None)
    passed = _passed_fd(call, index)
    try:
        directory = await workers.read(cgroup_of_procs, passed)
    except GmemdError as error:
        raise errors.FdRejected(index=index, reason=error.in_one_line) from error
    return Payer(PassedCgroup(_duplicate(passed, index), directory))


def _passed_fd(call: Call, index: int) -> int:
    """A descriptor of the call, by its number; raises FdRejected."""
    if not 0 <= index < len(call.fds):
        raise errors.FdRejected(
            index=index, reason=f"the call came with {len(call.fds)} file descriptors"
        )
    return call.fds[index]


def _duplicate(fd: int, index: int) -> int:
    """A descriptor of one's own; raises FdRejected where there is no room for it."""
    try:
        return os.dup(fd)
    except OSError as error:
        reason = f"the daemon has no room for file descriptors ({error.strerror})"
        raise errors.FdRejected(index=index, reason=reason) from error


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
