"""Who is at the other end of a connection, as the kernel tells it: at the time of connect()."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from gmemd.errors import Exit, GmemdError
from gmemd.host.vms.cgroups import main_cgroup, read_cgroups
from gmemd.host.vms.holders import has_exited, peer_pidfd

_SO_PEERGROUPS = 59
_UCRED = struct.Struct("iII")
_MOST_BYTES = 1024  # the largest buffer that Python's getsockopt() takes
_ROOT = Path("/")


class PeerError(GmemdError):
    """The process that called can't be had hold of, or is gone."""

    exit_code = Exit.NOT_PERMITTED


@dataclass(frozen=True, slots=True)
class Peer:
    """A process and its user. ``pid`` is 0 for one in a pid namespace that isn't seen from here.

    ``groups`` are the supplementary ones; none where there are more than 256.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    connection: socket.socket | None = field(default=None, compare=False, repr=False)

    @property
    def privileged(self) -> bool:
        """Whether it is root or the user that this process runs as."""
        return self.uid in {0, os.geteuid()}

    @property
    def source(self) -> tuple[int, int]:
        """What is the same of all connections of a process."""
        return self.uid, self.pid

    def pidfd(self) -> int:
        """A new pidfd of the process, close-on-exec; the caller's. Raises PeerError."""
        if not self.pid:
            raise PeerError(
                "the caller's process is in a pid namespace that the daemon doesn't see",
                hint="run both in the same one, or the daemon in the host's",
            )
        try:
            return (
                os.pidfd_open(self.pid) if self.connection is None else peer_pidfd(self.connection)
            )
        except (OSError, GmemdError) as error:
            raise self._gone() from error

    def living_pid(self) -> int:
        """The pid of the process that connected, while it lives; 0 once it may be another's.

        Its connection may have been left to another process.
        """
        try:
            pidfd = self.pidfd()
        except PeerError:
            return 0
        try:
            return 0 if has_exited(pidfd) else self.pid
        finally:
            os.close(pidfd)

    def cgroup(self, root: Path = _ROOT) -> str:
        """The cgroup that the process is in now (``/system.slice/db.service``). Blocks.

        Raises PeerError.
        """
        pidfd = self.pidfd()
        try:
            cgroups = read_cgroups(self.pid, root)
            # Only while it lives its pid is nobody else's.
            exited = has_exited(pidfd)
        except GmemdError as error:
            raise self._gone() from error
        finally:
            os.close(pidfd)
        if exited:
            raise self._gone()
        return main_cgroup(cgroups)

    def unit(self, root: Path = _ROOT) -> str:
        """The systemd unit that the process runs in, or nothing. Blocks; raises PeerError."""
        return trusted_unit(self.cgroup(root))

    def _gone(self) -> PeerError:
        return PeerError(f"the caller, pid {self.pid}, is gone")


def peer_of(connection: socket.socket) -> Peer:
    """Return the credentials of a unix socket's other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return Peer(pid, uid, gid, _groups_of(connection), connection)


def trusted_unit(cgroup: str) -> str:
    """The unit that the system's own systemd put a cgroup into, or nothing.

    That is the outermost below the slices (as sd_pid_get_unit(3) has it): whoever a cgroup was
    delegated to, such as each user's own service manager, names what is below as he likes.
    """
    parts = cgroup.strip("/").split("/")
    unit = next((part for part in parts if not part.endswith(".slice")), "")
    return unit if unit.endswith((".service", ".scope")) else ""


def _groups_of(connection: socket.socket) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError as error:
        if error.errno in {errno.ERANGE, errno.ENODATA}:
            return frozenset()
        raise
    return frozenset(array("I", raw))
