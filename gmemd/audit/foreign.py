"""Where the memory of a running VM is that gmemd neither made nor holds: sampled, or all of it.

A process' mappings are asked for by move_pages, which looks at its page tables and faults nothing
in, so that memory behind a userfaultfd (a migration's postcopy) is safe. A guest_memfd is taken for
the time of a look (`audit.held`).
"""

from __future__ import annotations

import errno
from array import array
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gmemd.audit.model import RegionAudit, Sample
from gmemd.audit.sampling import draw_pages, estimated
from gmemd.audit.scan import AuditStoppedError
from gmemd.drift.interval import pages_between
from gmemd.errors import Exit, GmemdError
from gmemd.kernel.errors import KernelError, errno_name
from gmemd.kernel.pages import ForeignScan, scan_foreign_pages, scan_foreign_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random
    from threading import Event

    from gmemd.audit.model import PolicyRead

    # Address and number of pages in a row, or (type Q) the addresses of single pages.
    _Window = tuple[int, int] | array[int]

WINDOW_PAGES = 1 << 15
"""Looked at between two chances to stop: 30 ms in a row, some 150 ms at random."""

NOT_MAPPED = "allocated, but not mapped by the VMM"


class VmGoneError(GmemdError):
    """The process ended while its memory was looked at."""

    exit_code = Exit.UNSEEN


@dataclass(slots=True)
class _Seen:
    """What the windows of one region add up to, in pages; ``unknown`` by errno."""

    by_node: Counter[int] = field(default_factory=Counter)
    unknown: Counter[int] = field(default_factory=Counter)

    def add(self, scan: ForeignScan) -> None:
        self.by_node.update(scan.by_node)
        for number, pages in scan.errors.items():
            if number not in (errno.ENOENT, errno.EFAULT):
                self.unknown[number] += pages


def audit_range(
    pid: int,
    ranges: Sequence[tuple[int, int]],
    *,
    guest_node: int,
    index: int,
    page_size: int,
    sample_pages: int | None,
    rng: Random,
    allocated_bytes: int | None = None,
    policy: PolicyRead | None = None,
    other_policies: Sequence[PolicyRead] = (),
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Look where the pages of a region are that a process maps at ``ranges`` (address, length).

    Lengths are multiples of ``page_size``, that of the mappings. Every page is looked at if
    ``sample_pages`` is None or no fewer than there are; else so many are drawn from all of them,
    holes included, and the figures are estimates. Nothing is populated, in no process.

    ``allocated_bytes`` is what the region's file has allocated, where that is known and is memory
    (not a file on a disk, nor a private mapping): what exists beyond the mapped, swapped pages
    included, is unknown; of a sample, what exists beyond the most that may be mapped. The policies
    are handed on. ``progress`` is called with the bytes covered since the last call.

    Raises VmGoneError if the process ends, AuditStoppedError between two windows once ``stop`` is
    set, KernelError (EPERM) without ptrace access, ValueError for lengths that don't fit.
    """
    if any(length % page_size for _, length in ranges):
        raise ValueError(f"not all of {ranges} are whole pages of {page_size} bytes")
    size_bytes = sum(length for _, length in ranges)
    population = size_bytes // page_size
    if sample_pages is None or sample_pages >= population:
        drawn = population
        windows: Iterator[_Window] = _whole(ranges, page_size)
    else:
        drawn = sample_pages
        windows = _drawn(ranges, page_size, draw_pages(population, drawn, rng))
    seen = _Seen()
    looked_at = covered = 0
    for window in windows:
        _stop_if_asked(stop, covered, size_bytes)
        scan = _look(pid, window, page_size)
        seen.add(scan)
        looked_at += scan.pages
        if progress is not None:
            progress(looked_at * size_bytes // drawn - covered)
        covered = looked_at * size_bytes // drawn
    unknown = seen.unknown.total()
    audit = RegionAudit(
        guest_node=guest_node,
        index=index,
        size_bytes=size_bytes,
        page_size=page_size,
        resident_bytes=(seen.by_node.total() + unknown) * page_size,
        by_node=_in_bytes(seen.by_node, page_size),
        unknown_bytes=unknown * page_size,
        unknown_reason="; ".join(f"the kernel says {errno_name(n)}" for n in sorted(seen.unknown)),
        policy=policy,
        errors={errno_name(n).lower(): pages for n, pages in sorted(seen.unknown.items())},
        pages_seen=seen.by_node.total(),
        other_policies=tuple(other_policies),
    )
    most = audit.resident_bytes
    if drawn < population:
        hits = seen.by_node.total() + unknown
        most = pages_between(hits, drawn, population)[1] * page_size
        audit = estimated(audit, Sample(population, drawn, dict(seen.by_node), unknown))
    return _with_unmapped(audit, min(allocated_bytes or 0, size_bytes) - most)


def _whole(ranges: Sequence[tuple[int, int]], page_size: int) -> Iterator[_Window]:
    """Windows of all pages."""
    for address, length in ranges:
        pages = length // page_size
        for first in range(0, pages, WINDOW_PAGES):
            yield address + first * page_size, min(WINDOW_PAGES, pages - first)


def _drawn(
    ranges: Sequence[tuple[int, int]], page_size: int, drawn: array[int]
) -> Iterator[_Window]:
    """Windows of drawn pages. The ranges' pages are numbered throughout."""
    first = start = 0
    for address, length in ranges:
        base = address - first * page_size
        first += length // page_size
        end = bisect_left(drawn, first)
        for at in range(start, end, WINDOW_PAGES):
            window = drawn[at : min(at + WINDOW_PAGES, end)]
            yield array("Q", (base + page * page_size for page in window))
        start = end


def _look(pid: int, window: _Window, page_size: int) -> ForeignScan:
    try:
        if isinstance(window, array):
            return scan_foreign_pages(pid, window)
        return scan_foreign_range(pid, *window, page_size)
    except KernelError as error:
        # An exiting process has no memory any more, and is told by EINVAL.
        if error.errno in (errno.ESRCH, errno.EINVAL):
            raise VmGoneError(f"pid {pid} ended while its memory was looked at") from error
        raise


def _stop_if_asked(stop: Event | None, done: int, size_bytes: int) -> None:
    if stop is not None and stop.is_set():
        raise AuditStoppedError(f"audit stopped at {done} of {size_bytes} bytes")


def _in_bytes(pages: Counter[int], page_size: int) -> dict[int, int]:
    return {node: count * page_size for node, count in sorted(pages.items())}


def _with_unmapped(audit: RegionAudit, unmapped_bytes: int) -> RegionAudit:
    """The same with bytes that exist, and that the process doesn't map."""
    if unmapped_bytes <= 0:
        return audit
    return replace(
        audit,
        resident_bytes=audit.resident_bytes + unmapped_bytes,
        unknown_bytes=audit.unknown_bytes + unmapped_bytes,
        unknown_reason="; ".join(filter(None, (audit.unknown_reason, NOT_MAPPED))),
    )
