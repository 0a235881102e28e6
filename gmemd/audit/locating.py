"""A second look at memory, right after its audit, that tells where in it each page is.

It goes by the rules of the audit: no hole becomes a page, and no page is moved. Of memory in use it
may find other pages than the audit did.
"""

from __future__ import annotations

import errno
import time
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.audit.scan import RESIDENCY_CHANGED, WINDOW_BYTES, AuditStoppedError
from gmemd.audit.where import RegionMap
from gmemd.drift.region import is_declared
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd
from gmemd.kernel.pages import (
    ABSENT,
    WindowScan,
    cachestat,
    move_pages_query,
    scan_huge_window,
    scan_window,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Mapping as MappingOf
    from threading import Event

    from gmemd.audit.model import VmAudit, Where
    from gmemd.audit.vm import AuditedRegion
    from gmemd.plan.layout import Extent
    from gmemd.plan.model import RegionPlan

HOLES = frozenset({ABSENT, -errno.ENOENT})
FOREIGN_HOLES = HOLES | {-errno.EFAULT}
"""The errnos by which move_pages tells of pages that a process doesn't map."""

FOREIGN_PAGES = 512
FOREIGN_REST_SECONDS = 0.0002
"""Asked for in one call, some 0.1 ms in which the process' mmap calls may wait, and the pause after
it: as in the scan that counts them."""


def locate_vm(
    audit: VmAudit,
    regions: Sequence[AuditedRegion],
    *,
    layout: MappingOf[tuple[int, int], Sequence[Extent]],
    idle: bool = True,
    stop: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VmAudit:
    """The same audit of regions that gmemd holds, with where in them their pages are; blocking.

    ``layout`` has the extents of those whose guest-physical addresses are known, by guest node and
    index. A region of which some is out of sight has no ``where``. ``idle`` is as for the audit:
    that other pages are there afterwards than were located is an error then. ``progress`` gets
    bytes looked at and bytes in all. Raises AuditStoppedError.
    """
    clock, cpu = time.monotonic(), time.thread_time()
    total = sum(seen.size_bytes for seen in audit.regions)
    done = 0

    def advance(length: int) -> None:
        nonlocal done
        done += length
        if progress is not None:
            progress(done, total)

    by_key = {(region.plan.guest_node, region.plan.index): region for region in regions}
    located = []
    for seen in audit.regions:
        key = seen.guest_node, seen.index
        where = None
        if seen.exact and not seen.unknown_bytes:
            extents = layout.get(key, ())
            where = locate_region(
                by_key[key], extents=extents, idle=idle, stop=stop, progress=advance
            )
        else:
            advance(seen.size_bytes)
        errors = dict(seen.errors)
        if where is not None and idle and _holds_others(by_key[key], where):
            errors[RESIDENCY_CHANGED] = errors.get(RESIDENCY_CHANGED, 0) + 1
        located.append(replace(seen, where=where, errors=errors))
    return replace(
        audit,
        regions=tuple(located),
        duration_seconds=audit.duration_seconds + time.monotonic() - clock,
        cpu_seconds=audit.cpu_seconds + time.thread_time() - cpu,
    )


def locate_region(
    region: AuditedRegion,
    *,
    extents: Sequence[Extent] = (),
    idle: bool = True,
    window_bytes: int = WINDOW_BYTES,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> Where | None:
    """Where in a region that gmemd holds its pages are; None if they can't be seen.

    ``extents`` are its in the guest's address space, if known; ``progress`` gets bytes looked at
    since the last call; the rest is as for `locate_vm`. Raises AuditStoppedError.
    """
    plan = region.plan
    found = RegionMap(
        plan.size_bytes,
        plan.page_size,
        allowed=_allowed(plan),
        holes=HOLES,
        extents=extents,
    )
    step = max(window_bytes, plan.page_size)
    in_use = not idle and plan.page_size == PAGE_SIZE and not is_guest_memfd(region.fd)
    for done in range(0, plan.size_bytes, step):
        _stop_if_asked(stop)
        length = min(step, plan.size_bytes - done)
        try:
            scan = _scan(region, region.offset + done, length, in_use=in_use)
        except KernelError:
            return None
        if scan.nodes is not None:
            found.add(done, scan.nodes)
        if progress is not None:
            progress(length)
    return found.result()


def locate_mapped(
    pid: int,
    ranges: Sequence[tuple[int, int]],
    plan: RegionPlan,
    *,
    page_size: int,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> Where:
    """Where in a region its pages are that a process maps at ``ranges``, in their order.

    Ranges are address and length, the latter multiples of ``page_size``, that of the mappings.
    Nothing is populated, in no process. Raises KernelError, AuditStoppedError.
    """
    size_bytes = sum(length for _, length in ranges)
    found = RegionMap(size_bytes, page_size, allowed=_allowed(plan), holes=FOREIGN_HOLES)
    step = FOREIGN_PAGES * page_size
    offset = 0
    for address, length in ranges:
        for done in range(0, length, step):
            _stop_if_asked(stop)
            end = min(done + step, length)
            addresses = array("Q", range(address + done, address + end, page_size))
            found.add(offset + done, move_pages_query(pid, addresses))
            if progress is not None:
                progress(end - done)
            time.sleep(FOREIGN_REST_SECONDS)
        offset += length
    return found.result()


def _scan(region: AuditedRegion, offset: int, length: int, *, in_use: bool) -> WindowScan:
    page_size = region.plan.page_size
    if page_size != PAGE_SIZE:
        return scan_huge_window(region.fd, offset, length, page_size, per_page=True)
    with Mapping(region.fd, offset, length, protection="read") as window:
        return scan_window(window, 0, length, per_page=True, existing_only=in_use)


def _holds_others(region: AuditedRegion, where: Where) -> bool:
    """Whether other pages are resident than were located; False where that can't be told."""
    try:
        resident = cachestat(region.fd, region.offset, region.plan.size_bytes).pages
    except KernelError:
        return False
    cells = (cell for stretch in where.stretches for cell in stretch.cells)
    located = sum(sum(cell.by_node.values()) + cell.unknown_bytes for cell in cells)
    return located != resident * PAGE_SIZE


def _allowed(plan: RegionPlan) -> frozenset[int] | None:
    return plan.host_nodes if is_declared(plan) else None


def _stop_if_asked(stop: Event | None) -> None:
    if stop is not None and stop.is_set():
        raise AuditStoppedError("audit stopped while its pages were located")
