"""What the kernel's counters say of the cgroup that pays for memory: O(1), no page is looked at.

The totals are the cgroup's, never a guest node's, and lag by up to a batch of pages per CPU; they
stand beside what a scan can't see.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.numa_stat import read_hugetlb_numa_stat, read_memory_numa_stat
from gmemd.kernel.procfs.text import ProcfsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BASE_PAGE = 4096


def read_counters(cgroup: Path, page_sizes: Iterable[int] = (_BASE_PAGE,)) -> dict[int, int] | None:
    """Bytes per host node that the cgroup pays for as files (guest_memfd, memfd) and huge pages.

    ``page_sizes`` are those of the memory in question, in bytes. None where the cgroup has no such
    counters (another cgroup version, the controller is off, or it is gone).
    """
    total: Counter[int] = Counter()
    try:
        for page_size in set(page_sizes):
            if page_size == _BASE_PAGE:
                total.update(read_memory_numa_stat(cgroup).get("file", {}))
            else:
                total.update(read_hugetlb_numa_stat(cgroup, page_size))
    except ProcfsError:
        return None
    return dict(sorted(total.items()))
