"""Where the pages of a file that gmemd holds are, by a sample whose cost is that of its pages.

Pages are drawn from all of the region's, holes included, and a hole is told by cachestat and never
read; so those that are found are as good as drawn from the resident ones. Of a region with many
holes more are drawn until enough are found. Each page is drawn by itself: neighbours are often
alike, and a cluster of them would say little more than one page of it.
"""

from __future__ import annotations

import errno
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.audit.model import Sample
from gmemd.audit.sampling import draw_pages, estimated
from gmemd.audit.scan import AuditStoppedError, Tally, note_policy, scan_region
from gmemd.kernel.errors import KernelError
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import sample_pages as look_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random
    from threading import Event

    from gmemd.audit.model import RegionAudit

MOST_DRAWS = 16
"""Times the pages wanted: a region of which less than a sixteenth is there gives fewer."""

WHOLE = 4
"""Times the pages wanted: a region with no more is looked at whole, which costs about as much."""

POLICIES_READ = 4
"""Places of a region at which its policy is read, which takes as long as some 20 pages do."""

_AT_A_TIME = 1024  # pages, some 4 ms between two chances to stop


def sample_region(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    sample_pages: int,
    rng: Random,
    offset: int = 0,
    most_draws: int = MOST_DRAWS,
    policy_kept: bool = True,
    idle: bool = True,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Look at ``sample_pages`` resident base pages of a region's fd, drawn at random.

    At most ``most_draws`` times as many are drawn to find them. Parameters are `scan_region`'s; the
    bytes of the result are estimates, its ``sample`` says of what. A region that is hardly larger
    than the sample, or can't be mapped at all, is looked at whole. Raises AuditStoppedError,
    KernelError.
    """
    population = size_bytes // PAGE_SIZE
    tally = Tally(PAGE_SIZE)
    draws = _Draws(population, sample_pages, most_draws * sample_pages, rng)

    def look(pages: array[int]) -> None:
        if stop is not None and stop.is_set():
            raise AuditStoppedError(f"audit stopped after {len(draws.drawn)} pages")
        tally.add(look_at(fd, offset, size_bytes, pages, existing_only=in_use))

    in_use = not idle and not is_guest_memfd(fd)
    small = population <= (WHOLE * sample_pages if most_draws > 1 else sample_pages)
    if small or not _look_at_drawn(draws, tally, look):
        return scan_region(
            fd,
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            page_size=PAGE_SIZE,
            offset=offset,
            policy_kept=policy_kept,
            idle=idle,
            stop=stop,
            progress=progress,
        )
    for at in range(0, size_bytes, -(-population // POLICIES_READ) * PAGE_SIZE):
        if policy_kept:
            note_policy(fd, offset + at, tally)
    if progress is not None:
        progress(size_bytes)
    audit = tally.as_audit(guest_node, index, size_bytes)
    by_node = {node: held // PAGE_SIZE for node, held in audit.by_node.items()}
    unknown = audit.unknown_bytes // PAGE_SIZE
    return estimated(audit, Sample(population, len(draws.drawn), by_node, unknown))


def audit_taken(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    sample_pages: int | None,
    rng: Random,
    readable: bool = True,
    policy_kept: bool = True,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Look where the first ``size_bytes`` of a running VM's guest_memfd are, by the caller's fd.

    As `scan_region` of memory in use, or at so many pages drawn, holes included. Nothing stays
    mapped. What can't be mapped for reading at all is counted whole, and unknown. Raises
    AuditStoppedError, KernelError.
    """
    if readable and sample_pages is not None:
        return sample_region(
            fd,
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            sample_pages=sample_pages,
            rng=rng,
            most_draws=1,
            policy_kept=policy_kept,
            idle=False,
            stop=stop,
            progress=progress,
        )
    return scan_region(
        fd,
        guest_node=guest_node,
        index=index,
        size_bytes=size_bytes,
        page_size=PAGE_SIZE,
        readable=readable,
        policy_kept=policy_kept,
        idle=False,
        stop=stop,
        progress=progress,
    )


@dataclass(slots=True)
class _Draws:
    population: int
    wanted: int
    limit: int
    rng: Random
    drawn: set[int] = field(default_factory=set)

    def more(self, found: int) -> array[int]:
        """Draw as many pages as it may take to find those that are missing; none when done."""
        left = self.limit - len(self.drawn)
        if found >= self.wanted or left <= 0:
            return array("Q")
        if not self.drawn:
            return draw_pages(self.population, min(self.wanted, left), self.rng)
        expected = (self.wanted - found) * len(self.drawn) * 21 // (20 * max(found, 1)) + 1
        pages = draw_pages(self.population, min(expected, left), self.rng)
        return array("Q", (page for page in pages if page not in self.drawn))


def _look_at_drawn(draws: _Draws, tally: Tally, look: Callable[[array[int]], None]) -> bool:
    """Draw and look until enough pages are found; False if the file can't be mapped."""
    try:
        while pages := draws.more(tally.resident_bytes // PAGE_SIZE):
            for first in range(0, len(pages), _AT_A_TIME):
                look(pages[first : first + _AT_A_TIME])
            draws.drawn.update(pages)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True
