"""How much of a region exists, whoever made it. Sizes in bytes."""

from __future__ import annotations

import contextlib
import errno
import random

from gmemd.kernel import pages
from gmemd.kernel.descriptor import status_of
from gmemd.kernel.errors import KernelError
from gmemd.kernel.memfd import is_guest_memfd

BASE_PAGE = 4096
_CONFIRMED_WINDOWS = 64
_NOT_COUNTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
_CONFIRMED_WINDOW_BYTES = 1 << 20


def allocated_bytes(fd: int, offset: int, length: int, page_size: int) -> int:
    """What is allocated of a range, untouched pages included.

    The kernel counts huge pages per file; of a part of one they are looked at, one by one, and
    where that is forbidden the file's count is the most that it may be.
    """
    if page_size == BASE_PAGE:
        try:
            return pages.cachestat(fd, offset, length).cache * BASE_PAGE
        except KernelError as error:
            if error.errno not in _NOT_COUNTED or is_guest_memfd(fd):  # which has no st_blocks
                raise
    status = status_of(fd)
    allocated = min(status.st_blocks * 512, length)
    if page_size == BASE_PAGE or not allocated or (offset == 0 and length >= status.st_size):
        return allocated
    with contextlib.suppress(KernelError):
        return pages.scan_huge_window(fd, offset, length, page_size).resident_pages * page_size
    return allocated


def confirmed_bytes(fd: int, offset: int, length: int, page_size: int) -> int:
    """``length`` where all of a range that was just allocated seems to be there, else what is.

    Counting takes a tenth of the time that allocating does (0.09 and 0.83 s for 4 GiB), so windows
    drawn at random are looked at, and everything only where one of them has a hole.
    """
    if page_size == BASE_PAGE and length > _CONFIRMED_WINDOWS * _CONFIRMED_WINDOW_BYTES:
        last = length // _CONFIRMED_WINDOW_BYTES - 1
        draw = random.SystemRandom()
        starts = [0, *(draw.randint(0, last) for _ in range(_CONFIRMED_WINDOWS - 2)), last]
        windows = [offset + start * _CONFIRMED_WINDOW_BYTES for start in starts]
        if all(
            allocated_bytes(fd, window, _CONFIRMED_WINDOW_BYTES, page_size)
            == _CONFIRMED_WINDOW_BYTES
            for window in windows
        ):
            return length
    return allocated_bytes(fd, offset, length, page_size)
