"""Where the pages of a file that gmemd holds are, by a sample whose cost is that of its pages.

Pages are drawn from all of the region's, holes included, and a hole is told by cachestat (a huge
page's by userfaultfd) and never read; so those that are found are as good as drawn from the
resident ones. Of a region with many holes more are drawn until enough are found. Of memory that
can't be read it is estimated how much there is, and all of that is unknown.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.audit.model import CONFIDENCE, UNKNOWN_NODE, Sample
from gmemd.audit.sampling import MOST_DRAWS, WHOLE, Draws, cluster_pages, estimated
from gmemd.audit.scan import AuditStoppedError, Tally, note_policy, scan_region
from gmemd.kernel.errors import KernelError
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import ABSENT, resident_of
from gmemd.kernel.pages import sample_pages as look_at

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Sequence
    from random import Random
    from threading import Event

    from gmemd.audit.jobs import Jobs
    from gmemd.audit.model import Cluster, RegionAudit

POLICIES_READ = 4
"""Places of a region at which its policy is read, which takes as long as some 20 pages do."""

_AT_A_TIME = 1024  # pages, some 4 ms between two chances to stop

_NOT_COUNTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)  # by cachestat, of this file or here


def sample_region(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    sample_pages: int,
    rng: Random,
    page_size: int = PAGE_SIZE,
    offset: int = 0,
    most_draws: int = MOST_DRAWS,
    clustered: bool = True,
    confidence: float = CONFIDENCE,
    readable: bool = True,
    policy_kept: bool = True,
    idle: bool = True,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Look at ``sample_pages`` resident pages of a region's fd, drawn at random.

    At most ``most_draws`` times as many are drawn to find them; of large regions in clusters,
    unless ``clustered`` is False (`audit.sampling` has why). The other parameters are
    `scan_region`'s; the bytes of the result are estimates, its ``sample`` says of what, and for
    which ``confidence``. A region that is hardly larger than the sample is looked at whole, and so
    is one of which it can't be told which pages exist. Raises AuditStoppedError, KernelError.
    """
    population = size_bytes // page_size
    together = 1
    if clustered and readable and page_size == PAGE_SIZE:
        together = cluster_pages(population, sample_pages)
    draws = Draws(population, together, sample_pages, most_draws * sample_pages, rng)
    looks = _Looks(
        fd, offset, size_bytes, together, Tally(page_size), not idle and not is_guest_memfd(fd)
    )
    if not readable:
        looks.unread(errno.EACCES)
    small = population <= (WHOLE * sample_pages if most_draws > 1 else sample_pages)
    if small or not _look_at_drawn(draws, looks, stop):
        return scan_region(
            fd,
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            page_size=page_size,
            offset=offset,
            readable=readable,
            policy_kept=policy_kept,
            idle=idle,
            stop=stop,
            progress=progress,
        )
    tally = looks.tally
    for at in range(0, size_bytes, -(-population // POLICIES_READ) * page_size):
        if policy_kept and page_size == PAGE_SIZE:
            note_policy(fd, offset + at, tally)
    if progress is not None:
        progress(size_bytes)
    audit = tally.as_audit(guest_node, index, size_bytes)
    sample = Sample(
        population,
        draws.pages,
        {node: held // page_size for node, held in audit.by_node.items()},
        audit.unknown_bytes // page_size,
        cluster_pages=together,
        clusters=looks.clusters,
        confidence=confidence,
    )
    return estimated(audit, sample)


def audit_taken(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    sample_pages: int | None,
    rng: Random,
    most_draws: int = 1,
    clustered: bool = True,
    confidence: float = CONFIDENCE,
    readable: bool = True,
    policy_kept: bool = True,
    jobs: Jobs | None = None,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Look where the first ``size_bytes`` of a running VM's guest_memfd are, by the caller's fd.

    As `scan_region` of memory in use, or as `sample_region` at so many pages drawn, holes included.
    Several ``jobs`` are for all pages. Nothing stays mapped. Raises AuditStoppedError, KernelError.
    """
    if sample_pages is not None:
        return sample_region(
            fd,
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            sample_pages=sample_pages,
            rng=rng,
            most_draws=most_draws,
            clustered=clustered,
            confidence=confidence,
            readable=readable,
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
        jobs=jobs,
    )


@dataclass(slots=True)
class _Looks:
    """How drawn pages of a file are looked at, and what was seen."""

    fd: int
    offset: int
    size_bytes: int
    together: int
    tally: Tally
    in_use: bool
    clusters: Counter[Cluster] = field(default_factory=Counter)
    _unread: tuple[int, str] | None = None

    def unread(self, number: int, message: str = "") -> None:
        """Only count pages from now on, as unknown by that errno."""
        self._unread = number, message

    def look(self, pages: array[int]) -> None:
        """Look at pages, cluster after cluster; what can't be seen is unknown, never lost."""
        page_size = self.tally.page_size
        if self._unread is None:
            try:
                seen = look_at(
                    self.fd,
                    self.offset,
                    self.size_bytes,
                    pages,
                    page_size,
                    existing_only=self.in_use,
                )
            except KernelError as error:
                if page_size != PAGE_SIZE:
                    raise
                hint = f" ({error.hint})" if error.hint else ""
                self._unread = error.errno, f"{error.call}: {error.errno_name}{hint}"
            else:
                self.tally.add(seen)
                if self.together > 1 and seen.nodes is not None:
                    self.clusters.update(_clusters_of(seen.nodes, self.together))
                return
        step = self.together if self.together > 1 else len(pages)
        found = 0
        for first in range(0, len(pages), step):
            exist = resident_of(self.fd, self.offset, pages[first : first + step])
            found += exist
            if self.together > 1:
                self.clusters[((UNKNOWN_NODE, exist),) if exist else ()] += 1
        if found:
            self.tally.add_unknown(found * page_size, *self._unread)


def _look_at_drawn(draws: Draws, looks: _Looks, stop: Event | None) -> bool:
    """Draw and look until enough pages are found; False where which exist can't be told."""
    done = 0
    try:
        while pages := draws.more(looks.tally.resident_bytes // looks.tally.page_size):
            for first in range(0, len(pages), _AT_A_TIME):
                if stop is not None and stop.is_set():
                    raise AuditStoppedError(f"audit stopped after {done} pages")
                looks.look(pages[first : first + _AT_A_TIME])
                done += len(pages[first : first + _AT_A_TIME])
    except KernelError as error:
        if looks.tally.page_size == PAGE_SIZE and error.errno not in _NOT_COUNTED:
            raise
        return False
    return True


def _clusters_of(nodes: Sequence[int], together: int) -> Counter[Cluster]:
    """Count clusters by what they are; the last may have fewer pages."""
    whole = len(nodes) // together * together
    alike = Counter(zip(*[iter(nodes[:whole])] * together, strict=True))
    if whole < len(nodes):
        alike[tuple(nodes[whole:])] += 1
    clusters: Counter[Cluster] = Counter()
    for members, number in alike.items():
        clusters[_cluster_of(members)] += number
    return clusters


def _cluster_of(nodes: Iterable[int]) -> Cluster:
    """Give what pages are that were drawn together, by their nodes, errnos or ABSENT."""
    held = Counter(
        node if node >= 0 else UNKNOWN_NODE for node in nodes if node not in (ABSENT, -errno.ENOENT)
    )
    return tuple(sorted(held.items()))
