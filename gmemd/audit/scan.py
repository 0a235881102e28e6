"""The exact scan of one region that gmemd holds: every resident page and its host node.

It goes window by window, each through a mapping that lives as long as the window, so page tables
stay small and the interpreter gets its turn between two calls into C. No hole becomes a page:
residency is counted before and after, and a difference on an idle region is an error.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.audit.model import PolicyRead, RegionAudit
from gmemd.errors import Exit, GmemdError
from gmemd.kernel.bind import read_policy
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import WindowScan, cachestat, scan_huge_window, scan_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

WINDOW_BYTES = 32 << 20
"""Measured on 512 MiB: 1.47 us a page with windows of 2 MiB, 1.42 of 8 MiB, 1.38 of 32 MiB and
more. One of 32 MiB takes about 11 ms, which is how long a stop waits, and 64 KiB of page tables."""

RESIDENCY_CHANGED = "residency_changed"
PUNCHED_MEANWHILE = "punched_meanwhile"

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system
_POISONED = 133  # EHWPOISON, which the errno module lacks before Python 3.14

# Memory that is as it was asked for, and out of the host's sight: unknown, and no error.
_OUT_OF_SIGHT = {
    errno.EACCES: "confidential: never read, only its size is seen",
    errno.EFAULT: "private to the guest: the host can't read its pages",
    errno.ENODEV: "made without the MMAP flag: only its size can be seen",
}


class AuditStoppedError(GmemdError):
    """The audit was asked to stop before it had seen everything."""

    exit_code = Exit.UNSEEN


@dataclass(slots=True)
class Tally:
    """What the windows of one region add up to. In bytes, errors in occurrences."""

    page_size: int
    by_node: Counter[int] = field(default_factory=Counter)
    unknown_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)
    policies: dict[PolicyRead, None] = field(default_factory=dict)
    pages_seen: int = 0
    exact: bool = True

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

    def as_audit(self, guest_node: int, index: int, size_bytes: int) -> RegionAudit:
        """Give the audit of a region of ``size_bytes`` that was seen so."""
        policy, *others = self.policies or [None]
        return RegionAudit(
            guest_node=guest_node,
            index=index,
            size_bytes=size_bytes,
            page_size=self.page_size,
            resident_bytes=self.by_node.total() + self.unknown_bytes,
            by_node=dict(sorted(self.by_node.items())),
            unknown_bytes=self.unknown_bytes,
            unknown_reason="; ".join(self.reasons),
            policy=policy,
            errors=dict(self.errors),
            pages_seen=self.pages_seen,
            exact=self.exact,
            other_policies=tuple(other for other in others if other is not None),
        )


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
) -> RegionAudit:
    """Scan ``size_bytes`` of a region's fd; what can't be seen is unknown, never lost.

    ``offset`` is where the region starts in its file.

    ``readable=False`` (confidential memory) maps nothing for reading: all of it is unknown.
    ``policy_kept`` says whether a policy read from the inode means anything. ``idle`` says that
    nobody else uses the region now, so that its residency must not change; where somebody does, a
    memfd's pages are mapped in a way that makes none, whatever happens meanwhile. ``progress`` is
    called with the bytes looked at since the last call. Raises AuditStoppedError between two
    windows once ``stop`` is set.
    """
    tally = Tally(page_size)
    before = _allocated_bytes(fd, offset, size_bytes, page_size)
    step = max(window_bytes, page_size)
    in_use = not idle and page_size == PAGE_SIZE and not is_guest_memfd(fd)
    out_of_sight = None if readable else errno.EACCES
    for done in range(0, size_bytes, step):
        if stop is not None and stop.is_set():
            raise AuditStoppedError(f"audit stopped at {done} of {size_bytes} bytes")
        at, length = offset + done, min(step, size_bytes - done)
        if policy_kept and page_size == PAGE_SIZE:
            note_policy(fd, at, tally)
        if out_of_sight is None:
            out_of_sight = _scan_window(fd, at, length, tally, in_use=in_use)
        else:
            _count_unread(fd, at, length, tally, number=out_of_sight)
        if progress is not None:
            progress(length)
    after = _allocated_bytes(fd, offset, size_bytes, page_size)
    if idle and after != before:
        tally.errors[RESIDENCY_CHANGED] += 1
    if page_size != PAGE_SIZE and tally.reasons:
        tally.unknown_bytes = max(0, (after or 0) - tally.by_node.total())
    return tally.as_audit(guest_node, index, size_bytes)


def _allocated_bytes(fd: int, offset: int, size_bytes: int, page_size: int) -> int | None:
    """What the region has allocated; of huge pages the file's block count tells the most it may."""
    if page_size != PAGE_SIZE:
        return min(os.fstat(fd).st_blocks * _BLOCK_BYTES, size_bytes)
    return _resident_bytes(fd, offset, size_bytes)


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


def _scan_window(fd: int, offset: int, length: int, tally: Tally, *, in_use: bool) -> int | None:
    """Scan one window; ENODEV if the region can't be mapped at all, so that no other tries."""
    try:
        if tally.page_size != PAGE_SIZE:
            scan = scan_huge_window(fd, offset, length, tally.page_size)
        else:
            with Mapping(fd, offset, length, protection="read") as window:
                scan = scan_window(window, 0, length, existing_only=in_use)
    except KernelError as error:
        message = f"{error.call}: {error.errno_name}"
        if error.hint:
            message += f" ({error.hint})"
        _count_unread(fd, offset, length, tally, number=error.errno, message=message)
        return error.errno if error.errno == errno.ENODEV else None
    tally.add(scan)
    return None


def _count_unread(
    fd: int, offset: int, length: int, tally: Tally, *, number: int, message: str = ""
) -> None:
    """Count a window that can't, or must not, be read; a hole in it is no loss."""
    unseen = _resident_bytes(fd, offset, length)
    if unseen is None or unseen:
        tally.add_unknown(unseen or 0, number, message)
