"""The exact scan of one region that gmemd holds: every resident page and its host node.

It goes window by window, each through a mapping that lives as long as the window, so page tables
stay small and the interpreter gets its turn between two calls into C. No hole becomes a page:
residency is counted before and after, and a difference on an idle region is an error.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.audit.model import PolicyRead, RegionAudit
from gmemd.errors import Exit, GmemdError
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE
from gmemd.kernel.mempolicy import get_policy_at
from gmemd.kernel.pages import WindowScan, cachestat, scan_huge_window, scan_window

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

WINDOW_BYTES = 32 << 20
"""Measured on 512 MiB: 1.47 us a page with windows of 2 MiB, 1.42 of 8 MiB, 1.38 of 32 MiB and
more. One of 32 MiB takes about 11 ms, which is how long a stop waits, and 64 KiB of page tables."""

RESIDENCY_CHANGED = "residency_changed"
PUNCHED_MEANWHILE = "punched_meanwhile"

_EHWPOISON = 133
_UNKNOWN = {
    errno.EFAULT: ("private", "private to the guest: the host can't read its pages"),
    _EHWPOISON: ("poisoned", "poisoned by a memory error"),
    errno.ENODEV: ("unmappable", "made without the MMAP flag: only its size can be seen"),
}
_CONFIDENTIAL = "confidential: never read, only its size is seen"


class AuditStoppedError(GmemdError):
    """The audit was asked to stop before it had seen everything."""

    exit_code = Exit.UNSEEN


@dataclass(slots=True)
class _Tally:
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

    def add_unknown(self, unknown_bytes: int, number: int, what: str = "") -> None:
        """Count bytes whose node can't be seen, by the errno that said so."""
        name = errno.errorcode.get(number, f"errno {number}")
        word, reason = _UNKNOWN.get(number, (name.lower(), what or f"the kernel says {name}"))
        self.unknown_bytes += unknown_bytes
        self.errors[word] += 1
        self.reasons[reason] = None


def scan_region(
    fd: int,
    *,
    guest_node: int,
    index: int,
    size_bytes: int,
    page_size: int,
    readable: bool = True,
    policy_kept: bool = True,
    idle: bool = True,
    window_bytes: int = WINDOW_BYTES,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> RegionAudit:
    """Scan the first ``size_bytes`` of a region's fd; what can't be seen is unknown, never lost.

    ``readable=False`` (confidential memory) maps nothing for reading: all of it is unknown.
    ``policy_kept`` says whether a policy read from the inode means anything. ``idle`` says that
    nobody else uses the region now, so that its residency must not change. ``progress`` is called
    with the bytes looked at since the last call. Raises AuditStoppedError between two windows once
    ``stop`` is set.
    """
    tally = _Tally(page_size)
    before = _resident_bytes(fd, 0, size_bytes)
    step = max(window_bytes, page_size)
    readable_still = readable
    for offset in range(0, size_bytes, step):
        if stop is not None and stop.is_set():
            raise AuditStoppedError(f"audit stopped at {offset} of {size_bytes} bytes")
        length = min(step, size_bytes - offset)
        if policy_kept and page_size == PAGE_SIZE:
            _read_policy(fd, offset, tally)
        if readable_still:
            readable_still = _scan_window(fd, offset, length, tally)
        else:
            _count_unread(fd, offset, length, tally, readable=readable)
        if progress is not None:
            progress(length)
    if idle and before is not None and _resident_bytes(fd, 0, size_bytes) != before:
        tally.errors[RESIDENCY_CHANGED] += 1
    policy, *others = tally.policies or [None]
    return RegionAudit(
        guest_node=guest_node,
        index=index,
        size_bytes=size_bytes,
        page_size=page_size,
        resident_bytes=tally.by_node.total() + tally.unknown_bytes,
        by_node=dict(sorted(tally.by_node.items())),
        unknown_bytes=tally.unknown_bytes,
        unknown_reason="; ".join(tally.reasons),
        policy=policy,
        errors=dict(tally.errors),
        pages_seen=tally.pages_seen,
        exact=tally.exact,
        other_policies=tuple(other for other in others if other is not None),
    )


def _resident_bytes(fd: int, offset: int, length: int) -> int | None:
    """Resident bytes by cachestat; None where the kernel or the kind of file has none."""
    try:
        return cachestat(fd, offset, length).pages * PAGE_SIZE
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            return None
        raise


def _read_policy(fd: int, offset: int, tally: _Tally) -> None:
    """Read the policy at a window's start, through a mapping that reads nothing of the memory."""
    try:
        with Mapping(fd, offset, PAGE_SIZE) as window:
            found = get_policy_at(window.address)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            tally.errors[f"policy_{error.errno_name.lower()}"] += 1
        return
    tally.policies[PolicyRead(found.mode, found.nodes, found.flags)] = None


def _scan_window(fd: int, offset: int, length: int, tally: _Tally) -> bool:
    """Scan one window; False if the region can't be mapped at all, so that no other tries."""
    try:
        if tally.page_size != PAGE_SIZE:
            scan = scan_huge_window(fd, offset, length, tally.page_size)
        else:
            with Mapping(fd, offset, length, protection="read") as window:
                scan = scan_window(window, 0, length)
    except KernelError as error:
        unseen = _resident_bytes(fd, offset, length)
        if unseen is None or unseen:
            tally.add_unknown(unseen or 0, error.errno, error.message)
        return error.errno != errno.ENODEV
    tally.add(scan)
    return True


def _count_unread(fd: int, offset: int, length: int, tally: _Tally, *, readable: bool) -> None:
    """Count a window of a region that can't, or must not, be read."""
    unseen = _resident_bytes(fd, offset, length)
    if not unseen:
        return
    tally.unknown_bytes += unseen
    if not readable:
        tally.reasons[_CONFIDENTIAL] = None
