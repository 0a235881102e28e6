"""A file descriptor that is closed once."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from gmemd.kernel.errors import system_call

if TYPE_CHECKING:
    from types import TracebackType


def status_of(fd: int) -> os.stat_result:
    """What fstat says of a descriptor; raises KernelError."""
    with system_call("fstat", f"asking what fd {fd} is"):
        return os.fstat(fd)


def inode_of(fd: int) -> tuple[int, int]:
    """The identity of a descriptor's file: (st_dev, st_ino). Raises KernelError."""
    status = status_of(fd)
    return status.st_dev, status.st_ino


def duplicate(fd: int) -> int:
    """A descriptor of the same open file, close-on-exec; the caller's. Raises KernelError."""
    with system_call("fcntl", f"duplicating fd {fd}"):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


class OwnedFd:
    """An fd that is closed at the end of its ``with`` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the fd; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
