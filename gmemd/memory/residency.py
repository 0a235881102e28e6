"""How much of a region exists, whoever made it. Sizes in bytes."""

from __future__ import annotations

import errno
import os

from gmemd.kernel import pages
from gmemd.kernel.errors import KernelError

BASE_PAGE = 4096


def allocated_bytes(fd: int, offset: int, length: int, page_size: int) -> int:
    """What is allocated of a range, untouched pages included.

    Whole inodes only for hugetlb, where the kernel counts per file: cachestat is EOPNOTSUPP there.
    """
    if page_size == BASE_PAGE:
        try:
            return pages.cachestat(fd, offset, length).cache * BASE_PAGE
        except KernelError as error:
            if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
    return min(os.fstat(fd).st_blocks * 512, length)
