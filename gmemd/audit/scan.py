"""The exact scan of one region that gmemd holds: every resident page and its host node.

It goes window by window, each through a mapping that lives as long as the window (or is kept for
the next look, `audit.kept`), so page tables stay small and the interpreter gets its turn between
two calls into C. No hole becomes a page: what was read is counted again, and a difference on an
idle region is an error.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from gmemd.audit.jobs import Jobs
from gmemd.audit.model import PolicyRead, RegionAudit
from gmemd.errors import Exit, GmemdError
from gmemd.kernel.bind import read_policy
from gmemd.kernel.descriptor import status_of
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import WindowScan, cachestat, scan_huge_window, scan_window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from gmemd.audit.kept import KeptWindows

WINDOW_BYTES = 32 << 20
"""Measured on 512 MiB: 1.47 us a page with windows of 2 MiB, 1.42 of 8 MiB, 1.38 of 32 MiB and
more. One of 32 MiB takes about 11 ms, which is how long a stop waits, and 64 KiB of page tables."""

MOST_RUNS_COUNTED = 64
"""Of a kept window, counted again one by one; of more the window is, which takes 0.3 ms."""

ReadRange = tuple[int, int, int]
"""Offset and length in a file, and how much of it was there when it was read. In bytes."""

RESIDENCY_CHANGED = "residency_changed"
PUNCHED_MEANWHILE = "punched_meanwhile"

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_POISONED = 133  # EHWPOISON, which the errno module lacks before Python 3.14

# Memory that is as it was asked for, and out of the host's sight: unknown, and no error.
_OUT_OF_SIGHT = {
    errno.EAGAIN: "moved or written back by the kernel at every look",
    errno.EACCES: "confidential: never read, only its size is seen",
    errno.EFAULT: "private to the guest: the host can't read its pages",
    errno.ENODEV: "made without the MMAP flag: only its size can be seen",
}


class AuditStoppedError(GmemdError):
    """The audit was asked to stop before it had seen everything."""

    exit_code = Exit.UNSEEN


@dataclass(slots=True)
class Tally:
    """What the windows of one region add up to. In bytes, errors in occurrences.

    ``out_of_sight`` is the errno that said that the file can't be mapped at all.
    """

    page_size: int
    by_node: Counter[int] = field(default_factory=Counter)
    unknown_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)
    policies: dict[PolicyRead, None] = field(default_factory=dict)
    pages_seen: int = 0
    exact: bool = True
    out_of_sight: int = 0

    def add(self, scan: WindowScan) -> None:
        """Count a window. A page that was punched between look and query isn't resident."""
        for node, pages in scan.by_node.items():
            self.by_node[node] += pages * self.page_size
            self.pages_seen += pages
        for number, pages in scan.errors.items():
            if number == errno.ENOENT:
                self.errors[PUNCHED_MEANWHILE] += pages
            else:
                self.add_unknown(pages * self.page_size, number)
        self.exact = self.exact and scan.method != "mincore"

    def add_unknown(self, unknown_bytes: int, number: int, message: str = "") -> None:
        """Count bytes whose node can't be seen, by the errno that said so."""
        self.unknown_bytes += unknown_bytes
        reason = _OUT_OF_SIGHT.get(number)
        if number == _POISONED:
            self.errors["poisoned"] += 1
            reason = "poisoned by a memory error"
        elif reason is None:
            name = errno.errorcode.get(number, f"errno {number}")
            self.errors[name.lower()] += 1
            reason = message or f"the kernel says {name}"
        self.reasons[reason] = None

    def merge(self, other: Tally) -> None:
        """Count what another one counted further on in the same region."""
        self.by_node.update(other.by_node)
        self.unknown_bytes += other.unknown_bytes
        self.errors.update(other.errors)
        self.reasons |= other.reasons
        self.policies |= other.policies
        self.pages_seen += other.pages_seen
        self.exact = self.exact and other.exact
        self.out_of_sight = self.out_of_sight or other.out_of_sight

    @property
    def resident_bytes(self) -> int:
        """What was seen to be there."""
        return self.by_node.total() + self.unknown_bytes

    def as_audit(self, guest_node: int, index: int, size_bytes: int) -> RegionAudit:
        """Give the audit of a region of ``size_bytes`` that was seen so."""
        policy, *others = self.policies or [None]
        return RegionAudit(
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            page_size=self.page_size,
            resident_bytes=self.resident_bytes,
            by_node=dict(sorted(self.by_node.items())),
            unknown_bytes=self.unknown_bytes,
            unknown_reason="; ".join(self.reasons),
            policy=policy,
            errors=dict(self.errors),
            pages_seen=self.pages_seen,
            exact=self.exact,
            other_policies=tuple(other for other in others if other is not None),
        )


@dataclass(frozen=True, slots=True)
class Looker:
    """How a file's windows are looked at.

    ``readable=False`` (confidential memory) maps nothing for reading: all of it is unknown.
    ``policy_kept`` says whether a policy read from the inode means anything. ``in_use`` is for a
    memfd that somebody uses: its pages are mapped in a way that makes none, whatever happens
    meanwhile. Windows that may be are ``kept`` there for the next look.
    """

    fd: int
    page_size: int
    readable: bool = True
    policy_kept: bool = True
    in_use: bool = False
    kept: KeptWindows | None = None

    def look(self, offset: int, length: int, tally: Tally) -> Sequence[ReadRange]:
        """Count a window; give what of it was read, and not only known to be where it was.

        Once the file can't be mapped at all (ENODEV), no other window is tried.
        """
        if self.policy_kept and self.page_size == PAGE_SIZE:
            note_policy(self.fd, offset, tally)
        number = tally.out_of_sight or (0 if self.readable else errno.EACCES)
        if number:
            _count_unread(self.fd, offset, length, tally, number=number)
            return ()
        try:
            scan, read = self._scan(offset, length)
        except KernelError as error:
            message = f"{error.call}: {error.errno_name}"
            if error.hint:
                message += f" ({error.hint})"
            _count_unread(self.fd, offset, length, tally, number=error.errno, message=message)
            if error.errno == errno.ENODEV:
                tally.out_of_sight = error.errno
            return ()
        tally.add(scan)
        return read

    def _scan(self, offset: int, length: int) -> tuple[WindowScan, Sequence[ReadRange]]:
        if self.page_size != PAGE_SIZE:
            return scan_huge_window(self.fd, offset, length, self.page_size), ()
        seen = None
        if self.kept is not None and not self.in_use:
            seen = self.kept.look(self.fd, offset, length)
        if seen is None:
            with Mapping(self.fd, offset, length, protection="read") as window:
                scan = scan_window(window, 0, length, existing_only=self.in_use)
        elif seen.runs_told and len(seen.runs) <= MOST_RUNS_COUNTED:
            return seen.scan, [(p * PAGE_SIZE, n * PAGE_SIZE, n * PAGE_SIZE) for p, n in seen.runs]
        else:
            scan = seen.scan
        return scan, [(offset, length, scan.resident_pages * PAGE_SIZE)]


def looker(
    fd: int,
    page_size: int,
    *,
    readable: bool = True,
    policy_kept: bool = True,
    idle: bool = True,
    kept: KeptWindows | None = None,
) -> Looker:
    """Choose how to look at a file, of which ``idle`` says that nobody else uses it now."""
    in_use = not idle and page_size == PAGE_SIZE and not is_guest_memfd(fd)
    return Looker(fd, page_size, readable, policy_kept, in_use, kept)


def scan_region(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    page_size: int,
    offset: int = 0,
    readable: bool = True,
    policy_kept: bool = True,
    idle: bool = True,
    window_bytes: int = WINDOW_BYTES,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
    kept: KeptWindows | None = None,
    jobs: Jobs | None = None,
) -> RegionAudit:
    """Scan ``size_bytes`` of a region's fd; what can't be seen is unknown, never lost.

    ``offset`` is where the region starts in its file. `Looker` has ``readable``, ``policy_kept``
    and ``kept``. ``idle`` says that nobody else uses the region now, so that its residency must not
    change. ``progress`` is called with the bytes looked at since the last call. ``jobs`` share the
    windows, without ``kept``. Raises AuditStoppedError between two windows once ``stop`` is set.
    """
    how = looker(fd, page_size, readable=readable, policy_kept=policy_kept, idle=idle, kept=kept)
    huge = page_size != PAGE_SIZE
    before = huge_bytes(fd, size_bytes) if huge else 0
    step = max(window_bytes, page_size)
    left = deque(range(0, size_bytes, step))
    jobs = jobs or Jobs()
    advance = jobs.one_by_one(progress or _ignore)

    def look_at_windows() -> tuple[int, Tally, bool]:
        """Take windows while there are any; give the first, what was seen, whether it changed."""
        first, tally, changed = size_bytes, Tally(page_size), False
        while left and not jobs.ending.is_set():
            try:
                done = left.popleft()
            except IndexError:
                break
            if stop is not None and stop.is_set():
                raise AuditStoppedError(f"audit stopped at {done} of {size_bytes} bytes")
            first = min(first, done)
            length = min(step, size_bytes - done)
            read = how.look(offset + done, length, tally)
            advance(length)
            changed = changed or (idle and has_changed(fd, read))
        return first, tally, changed

    (_, tally, changed), *others = sorted(jobs.run(look_at_windows), key=itemgetter(0))
    for _, other, other_changed in others:
        tally.merge(other)
        changed = changed or other_changed
    if changed or (idle and huge and huge_bytes(fd, size_bytes) != before):
        tally.errors[RESIDENCY_CHANGED] += 1
    if huge and tally.reasons:
        tally.unknown_bytes = max(0, huge_bytes(fd, size_bytes) - tally.by_node.total())
    return tally.as_audit(guest_node, index, size_bytes)


def _ignore(_length: int) -> None:
    """Nobody wants to know how far the look is."""


def has_changed(fd: int, ranges: Sequence[ReadRange]) -> bool:
    """Count what was read again: whether anything came or went, where the kernel can tell."""
    counts = ((_resident_bytes(fd, at, length), resident) for at, length, resident in ranges)
    return any(now is not None and now != resident for now, resident in counts)


def huge_bytes(fd: int, size_bytes: int) -> int:
    """Give the most that a region of huge pages has allocated, by its file's block count."""
    return min(status_of(fd).st_blocks * _BLOCK_BYTES, size_bytes)


def _resident_bytes(fd: int, offset: int, length: int) -> int | None:
    """Resident bytes by cachestat; None where the kernel or the kind of file has none."""
    try:
        return cachestat(fd, offset, length).pages * PAGE_SIZE
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            return None
        raise


def note_policy(fd: int, offset: int, tally: Tally) -> None:
    """Read the policy at a window's start, through a mapping that reads nothing of the memory."""
    try:
        found = read_policy(fd, offset)
    except KernelError as error:
        tally.errors[f"policy_{error.errno_name.lower()}"] += 1
        return
    if found is not None:
        tally.policies[PolicyRead(found.mode, found.nodes, found.flags)] = None


def _count_unread(
    fd: int, offset: int, length: int, tally: Tally, *, number: int, message: str = ""
) -> None:
    """Count a window that can't, or must not, be read; a hole in it is no loss."""
    unseen = _resident_bytes(fd, offset, length)
    if unseen is None:
        tally.add_unknown(_about_resident_bytes(fd, length), number, message)
    elif unseen:
        tally.add_unknown(unseen, number, message)


def _about_resident_bytes(fd: int, length: int) -> int:
    """A window's share of what the file has allocated, as fstat tells; 0 of a guest_memfd."""
    status = status_of(fd)
    pages = status.st_blocks * _BLOCK_BYTES * length // max(status.st_size, 1) // PAGE_SIZE
    return min(pages * PAGE_SIZE, length)
