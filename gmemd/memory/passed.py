"""What a file descriptor is that another process passed or that was taken from it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from gmemd.errors import GmemdError
from gmemd.kernel.identity import (
    FileKind,
    MemoryFile,
    NotMemoryError,
    guest_memfd_device,
    identify_memory,
)
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import PAGE_SIZE
from gmemd.memory.creator import create_guest_memfds

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FileKind", "MemoryFile", "MemoryFiles", "NotMemoryError"]

_FLAGS: Sequence[int] = (GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED, 0)

_PAUSE_SECONDS = 60.0
"""Between two attempts to make a guest_memfd on a host where it failed."""


class MemoryFiles:
    """Tells memory from other files. The first guest_memfd has one of gmemd's own made beside it.

    Safe to use from any thread; blocks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._device: int | None = None
        self._try_again = 0.0

    def identify(self, fd: int) -> MemoryFile:
        """Say which memory a descriptor is; no file system is asked.

        Raises NotMemoryError, and KernelError where the kernel doesn't tell.
        """
        try:
            return identify_memory(fd, guest_memfd_device=self._device)
        except NotMemoryError:
            if self._device is not None or not self._learn_device():
                raise
        return identify_memory(fd, guest_memfd_device=self._device)

    def _learn_device(self) -> bool:
        """Find the device of guest_memfds by making one; False where none can be made."""
        with self._lock:
            if self._device is None and self._try_again <= time.monotonic():
                self._device = _device()
                self._try_again = time.monotonic() + _PAUSE_SECONDS
        return self._device is not None


def _device() -> int | None:
    for flags in _FLAGS:
        try:
            (fd,) = create_guest_memfds([PAGE_SIZE], flags=flags)
        except GmemdError:
            continue
        try:
            return guest_memfd_device(fd)
        finally:
            os.close(fd)
    return None
