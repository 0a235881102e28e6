"""How much of a region exists, whoever made it. Sizes in bytes."""

from __future__ import annotations

import contextlib
import errno
import os

from gmemd.kernel import pages
from gmemd.kernel.errors import KernelError

BASE_PAGE = 4096


def allocated_bytes(fd: int, offset: int, length: int, page_size: int) -> int:
    """What is allocated of a range, untouched pages included.

    The kernel counts huge pages per file; of a part of one they are looked at, one by one, and
    where that is forbidden the file's count is the most that it may be.
    """
    if page_size == BASE_PAGE:
        try:
            return pages.cachestat(fd, offset, length).cache * BASE_PAGE
        except KernelError as error:
            if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
    status = os.fstat(fd)
    allocated = min(status.st_blocks * 512, length)
    if page_size == BASE_PAGE or not allocated or (offset == 0 and length >= status.st_size):
        return allocated
    with contextlib.suppress(KernelError):
        return pages.scan_huge_window(fd, offset, length, page_size).resident_pages * page_size
    return allocated
