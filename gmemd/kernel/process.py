"""Processes: pidfds, and what a helper process sets for itself."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from pathlib import Path

from gmemd.kernel._kernel import lib
from gmemd.kernel.errors import KernelError, invoke, system_call

_SO_PEERPIDFD = 77  # asm-generic/socket.h
_UCRED = struct.Struct("iII")


def pidfd_open(pid: int) -> int:
    """A pidfd of the process, close-on-exec; the caller's. Raises KernelError (ESRCH: gone)."""
    return invoke("pidfd_open", lib.gm_pidfd_open, pid, what=f"opening a pidfd of pid {pid}")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """A duplicate of another process' fd, close-on-exec; the caller's. Needs ptrace access."""
    what = f"taking fd {target_fd} of another process"
    return invoke("pidfd_getfd", lib.gm_pidfd_getfd, pidfd, target_fd, what=what)


def peer_pidfd(peer: socket.socket) -> int:
    """A pidfd of the process at the other end of a Unix socket; the caller's.

    It is of the process that connected, whatever has its pid now; before Linux 6.5 the pid tells.
    Raises KernelError (ESRCH: it is gone, or in a PID namespace that this process doesn't see).
    """
    try:
        return peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise KernelError(
                "getsockopt", errno.ESRCH, "asking who is at the other end of a socket"
            ) from error
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, _, _ = _UCRED.unpack(credentials)
    if not pid:
        raise KernelError("getsockopt", errno.ESRCH, "asking who is at the other end of a socket")
    return pidfd_open(pid)


def has_exited(pidfd: int) -> bool:
    """Whether the pidfd's process has exited; it may still wait for its parent."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def set_parent_death_signal(signal: int) -> None:
    """The calling process gets ``signal`` when the *thread* that started it ends."""
    what = f"asking for signal {signal} at the parent's death"
    invoke("prctl", lib.gm_prctl, lib.GM_PR_SET_PDEATHSIG, signal, what=what)


def set_oom_score_adj(score: int) -> None:
    """-1000 to 1000; raising one's own needs no privilege. Raises KernelError."""
    with system_call("write /proc/self/oom_score_adj", f"setting oom_score_adj to {score}"):
        Path("/proc/self/oom_score_adj").write_text(f"{score}\n")


def forbid_core_dumps() -> None:
    """No core dump of this process: it would write guest memory out and fill its holes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    what = "forbidding core dumps"
    invoke("prctl", lib.gm_prctl, lib.GM_PR_SET_DUMPABLE, 0, what=what)


def set_affinity(cpus: frozenset[int]) -> None:
    """Pins this thread to the CPUs. Raises KernelError (EINVAL: none of them is allowed)."""
    with system_call("sched_setaffinity", f"pinning to CPUs {sorted(cpus)}"):
        os.sched_setaffinity(0, cpus)
