"""Windows that stay mapped, and what fell out of them since the last look.

The page tables tell: guest_memfd pages can't move, so one that is still mapped is where it was, and
only what isn't mapped any more is read again (scan.c's way, which never allocates a hole).
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.kernel._kernel import ffi, lib
from gmemd.kernel.descriptor import OwnedFd
from gmemd.kernel.errors import invoke, system_call
from gmemd.kernel.pages import WindowScan, scanned

if TYPE_CHECKING:
    from gmemd.kernel.mapping import Mapping

MOST_RUNS = 1024
"""Runs of pages that one re-scan tells."""


@dataclass(frozen=True, slots=True)
class Rescan:
    """What changed in a window: ``lost`` as it was known, ``found`` as it is now, in base pages.

    A page that was punched and made again is in both. ``runs`` are those found (first page, number
    of pages), at most MOST_RUNS of ``n_runs``.
    """

    lost: WindowScan
    found: WindowScan
    runs: tuple[tuple[int, int], ...]
    n_runs: int


class Pagemap(OwnedFd):
    """The page tables of this process, open for reading. Raises KernelError."""

    def __init__(self) -> None:
        path = "/proc/self/pagemap"
        with system_call("open pagemap", f"opening {path}"):
            super().__init__(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def rescan(self, window: Mapping, fd: int, nodes: array[int]) -> Rescan:
        """Look again at a whole mapped window of ``fd``; ``nodes`` are its pages' (scan_window).

        They are brought up to date. Raises KernelError: ENOTTY before Linux 6.7, and EOPNOTSUPP of
        hugetlb; ``nodes`` may have lost pages then, which a full scan has to find.
        """
        lost, found = ffi.new("struct gm_scan *"), ffi.new("struct gm_scan *")
        runs = array("Q", bytes(16 * MOST_RUNS))
        n_runs = invoke(
            "re-scan",
            lib.gm_rescan,
            self.fd,
            fd,
            window.offset,
            window.at(0),
            window.length,
            ffi.from_buffer("int16_t[]", nodes, require_writable=True),
            ffi.from_buffer("uint64_t[]", runs, require_writable=True),
            MOST_RUNS,
            lost,
            found,
            what=f"scanning {window.length} bytes at offset {window.offset} of fd {fd} again",
        )
        told = 2 * min(n_runs, MOST_RUNS)
        return Rescan(
            lost=scanned(lost, "pagemap"),
            found=scanned(found, "cachestat"),
            runs=tuple(zip(runs[:told:2], runs[1:told:2], strict=True)),
            n_runs=n_runs,
        )
