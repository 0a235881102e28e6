"""Windows of guest_memfds that stay mapped between two looks, within a budget of memory.

Pages of a guest_memfd can't move, and one that is still mapped in a mapping of gmemd's wasn't
punched since it was read: it is where it was. So a second look asks the page tables what fell out,
and reads only that. Measured on 1 to 4 GiB, CPU time a page: 14 to 18 ns, where the kernel's own
count of mapped pages (numa_maps) takes 48, and reading it anew 1,250. What it costs the VM: a page
that it punches has one more mapping to leave, 4.2 instead of 3.4 us.
"""

from __future__ import annotations

import errno
from array import array
from collections import Counter
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Self

from gmemd.kernel.descriptor import inode_of
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kept import Pagemap
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import ABSENT, WindowScan, scan_window

if TYPE_CHECKING:
    from types import TracebackType

MOST_WINDOWS = 16_384
"""Mappings that are kept at the most: the kernel allows a process 65,530 (vm.max_map_count)."""

MOST_FAILURES = 8
"""Looks again that failed in a row: the kernel can't (before Linux 6.7), or doesn't let gmemd."""

_ENTRY_BYTES = 8
_TABLE_BYTES = PAGE_SIZE
_NODE_BYTES = 2

_File = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Look:
    """A window as it is now; ``read_pages`` of its pages were read, the others are as they were.

    ``lost_pages`` were known and aren't there any more, or were made anew. ``runs`` are those read
    in a window that was kept (first base page in the file, number of pages); ``runs_told`` says
    whether they are all.
    """

    scan: WindowScan
    read_pages: int
    lost_pages: int = 0
    runs: tuple[tuple[int, int], ...] = ()
    runs_told: bool = False


@dataclass(slots=True)
class _Kept:
    mapping: Mapping
    nodes: array[int]
    by_node: Counter[int]
    errors: Counter[int]


def cost_bytes(length: int) -> int:
    """Give what it takes to keep ``length`` bytes mapped: page tables, and each page's node.

    2 MiB of page tables a GiB, one table more for a mapping that starts within one, and half a MiB.
    """
    pages = length // PAGE_SIZE
    tables = -(-pages * _ENTRY_BYTES // _TABLE_BYTES) + 1
    return tables * _TABLE_BYTES + pages * _NODE_BYTES


class KeptWindows:
    """Keeps windows mapped, the first that come, as long as ``budget_bytes`` allow.

    A mapping keeps the file's memory alive: `forget` a file before it is given back. All methods
    may be called by any thread; one that comes while a window is looked at waits for that.
    ``used_bytes`` of the budget are taken by ``n_windows``. Raises KernelError where this process'
    page tables can't be read.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.n_windows = 0
        self._failures = 0
        self._pagemap = Pagemap()
        self._windows: dict[_File, dict[tuple[int, int], _Kept]] = {}
        self._file_of: dict[int, _File] = {}
        self._lock = Lock()

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
        """Unmap everything."""
        with self._lock:
            for file in list(self._windows):
                self._drop_file(file)
            self._pagemap.close()

    def forget(self, fd: int) -> None:
        """Unmap all windows of a file, before that descriptor of it is closed; raises nothing.

        It was remembered which file it is.
        """
        with self._lock:
            if (file := self._file_of.pop(fd, None)) is not None:
                self._drop_file(file)

    def has(self, fd: int, offset: int, length: int) -> bool:
        """Whether a window of a file is kept."""
        with self._lock:
            return bool(self.n_windows) and (offset, length) in self._windows.get(inode_of(fd), ())

    def resize(self, budget_bytes: int) -> None:
        """Take on another budget; what is kept beyond it is unmapped as it is looked at."""
        self.budget_bytes = budget_bytes

    def look(self, fd: int, offset: int, length: int) -> Look | None:
        """Look at a window of a file, for the first time or again; None if it isn't to be kept.

        Its file isn't a guest_memfd, nothing is in it, the budget is used up, or the kernel can't
        tell: a look that keeps nothing has to do. Raises KernelError as a scan does.
        """
        with self._lock:
            file = self._file_of[fd] = inode_of(fd)
            kept = self._windows.get(file, {}).get((offset, length))
            if kept is None:
                return self._first_look(fd, file, offset, length)
            if self.used_bytes > self.budget_bytes:
                self._drop(file, (offset, length))
                return None
            try:
                look = self._look_again(fd, kept)
            except KernelError as error:
                self._drop(file, (offset, length))
                self._failures = (
                    MOST_FAILURES if error.errno == errno.ENOTTY else self._failures + 1
                )
                return None
            self._failures = 0
            return look

    def _first_look(self, fd: int, file: _File, offset: int, length: int) -> Look | None:
        cost = cost_bytes(length)
        full = self.used_bytes + cost > self.budget_bytes or self.n_windows >= MOST_WINDOWS
        if full or self._failures >= MOST_FAILURES:
            return None
        if not is_guest_memfd(fd):
            return None
        mapping = Mapping(fd, offset, length, protection="read")
        try:
            scan = scan_window(mapping, 0, length, per_page=True)
        except KernelError:
            mapping.close()
            raise
        if scan.nodes is None or not scan.resident_pages or scan.method != "cachestat":
            mapping.close()
        else:
            errors, nodes = Counter(scan.errors), scan.nodes
            if errors.pop(errno.ENOENT, 0):
                nodes = array("h", (ABSENT if node == -errno.ENOENT else node for node in nodes))
            kept = _Kept(mapping, nodes, Counter(scan.by_node), errors)
            self._windows.setdefault(file, {})[offset, length] = kept
            self.used_bytes += cost
            self.n_windows += 1
        return Look(replace(scan, nodes=None), scan.resident_pages)

    def _look_again(self, fd: int, kept: _Kept) -> Look:
        rescan = self._pagemap.rescan(kept.mapping, fd, kept.nodes)
        kept.by_node.subtract(rescan.lost.by_node)
        kept.errors.subtract(rescan.lost.errors)
        kept.by_node.update(rescan.found.by_node)
        gone = rescan.found.errors.get(errno.ENOENT, 0)
        kept.errors.update(rescan.found.errors)
        errors = dict(+kept.errors)
        kept.errors[errno.ENOENT] -= gone
        first = kept.mapping.offset // PAGE_SIZE
        return Look(
            scan=WindowScan(
                resident_pages=kept.by_node.total() + sum(errors.values()),
                by_node=dict(+kept.by_node),
                errors=errors,
                method="pagemap",
            ),
            read_pages=rescan.found.resident_pages,
            lost_pages=rescan.lost.resident_pages,
            runs=tuple((first + page, pages) for page, pages in rescan.runs),
            runs_told=len(rescan.runs) == rescan.n_runs and not gone,
        )

    def _drop(self, file: _File, where: tuple[int, int]) -> None:
        self._windows[file].pop(where).mapping.close()
        self.n_windows -= 1
        self.used_bytes -= cost_bytes(where[1])

    def _drop_file(self, file: _File) -> None:
        for where in list(self._windows.get(file, ())):
            self._drop(file, where)
        self._windows.pop(file, None)
