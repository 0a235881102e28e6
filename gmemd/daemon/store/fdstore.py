"""systemd's store of file descriptors, as sd_pid_notify_with_fds(3) has it: put, remove, wait.

systemd says nothing of what it refuses, so what it really has is asked for over D-Bus
(gmemd.daemon.store.manager). All of this blocks.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from gmemd.errors import GmemdError

if TYPE_CHECKING:
    from collections.abc import Mapping

BARRIER_SECONDS = 10.0
_SEND_SECONDS = 10.0
_FLAGS = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC


class StoreError(GmemdError):
    """systemd could not be told."""


class FdStore:
    """The store of this service; ``limit`` is how many descriptors it takes (0: nobody said).

    Where the process wasn't started by systemd, or with another unit than gmemd's, there is none.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        told = os.environ if environment is None else environment
        self._address = told.get("NOTIFY_SOCKET", "")
        limit = told.get("FDSTORE", "")
        self.limit = int(limit) if limit.isascii() and limit.isdigit() else 0

    @property
    def available(self) -> bool:
        """Whether there is a systemd to give descriptors to."""
        return bool(self._address)

    def put(self, name: str, fd: int, *, watched: bool = False) -> None:
        """Have a descriptor kept under a name; systemd drops it where there is no room.

        ``watched``: systemd drops it, too, once it is readable or hung up. Raises StoreError.
        """
        told = f"FDSTORE=1\nFDNAME={name}"
        self._send(told if watched else f"{told}\nFDPOLL=0", [fd])

    def remove(self, name: str) -> None:
        """Have what is kept under a name closed; raises StoreError."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self, seconds: float = BARRIER_SECONDS) -> None:
        """Wait until systemd has taken all that was sent before; raises StoreError."""
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"waiting for systemd: {error.strerror}") from error
        try:
            try:
                self._send("BARRIER=1", [theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, select.POLLHUP)
            if not poll.poll(seconds * 1000):
                raise StoreError(f"systemd has not answered within {seconds:g} s")
        finally:
            os.close(ours)

    def _send(self, text: str, fds: list[int] | None = None) -> None:
        address = self._address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, _FLAGS) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.connect(address)
                if fds:
                    socket.send_fds(sender, [text.encode()], fds)
                else:
                    sender.send(text.encode())
        except OSError as error:
            raise StoreError(f"telling systemd: {error.strerror or error}") from error


def region_name(inode: tuple[int, int]) -> str:
    """What a region's file is called in the store, by (st_dev, st_ino): under 20 bytes."""
    device, number = inode
    return f"r.{device:x}.{number:x}"


def inode_of(name: str) -> tuple[int, int] | None:
    """The inode that a region's name tells; None of other names."""
    kind, _, rest = name.partition(".")
    device, _, number = rest.partition(".")
    try:
        return (int(device, 16), int(number, 16)) if kind == "r" else None
    except ValueError:
        return None


def holder_name(number: int) -> str:
    """What a holder's pidfd is called in the store."""
    return f"h.{number:x}"


def number_of(name: str) -> int:
    """The number that a holder's name tells; 0 of other names."""
    kind, _, number = name.partition(".")
    try:
        return int(number, 16) if kind == "h" else 0
    except ValueError:
        return 0


def shortcomings(store: FdStore) -> tuple[str, ...]:
    """What of VMs' memory would not survive gmemd here, in words; nothing where all does."""
    if not store.available:
        note = (
            "no fd store, as systemd didn't start gmemd: when it ends, memory that no VMM has is "
            "lost, kept memory too; what running VMMs have open is taken from them again at the "
            "next start, if gmemd may look into them (root, or CAP_SYS_PTRACE)"
        )
        return (note,)
    if not store.limit:
        note = (
            "systemd doesn't tell the limit of its fd store ($FDSTORE): it is older than 254, or "
            "the unit lacks FileDescriptorStoreMax=; before 254 a crash loses no memory, but "
            "`systemctl stop` and a start limit that is hit lose what no VMM has"
        )
        return (note,)
    return ()
