"""One audit of a VM: all its regions scanned, the counters beside them, time and CPU measured."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from gmemd.audit.asked import Asked
from gmemd.audit.counters import read_counters
from gmemd.audit.held import sample_region
from gmemd.audit.jobs import Jobs
from gmemd.audit.model import VmAudit
from gmemd.audit.sampling import allocate
from gmemd.audit.scan import RESIDENCY_CHANGED, WINDOW_BYTES, scan_region
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from threading import Event

    from gmemd.audit.model import RegionAudit
    from gmemd.plan.model import RegionPlan


EVERY_PAGE = Asked()


class _Look(TypedDict):
    """What a region's scan and its sample both are told."""

    guest_node: int
    index: int
    size_bytes: int
    page_size: int
    offset: int
    readable: bool
    policy_kept: bool
    idle: bool
    stop: Event | None
    progress: Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class AuditedRegion:
    """A region to look at: ``plan.size_bytes`` of the fd's file, from ``offset`` (bytes) on."""

    fd: int
    plan: RegionPlan
    offset: int = 0


def audit_vm(
    vm: str,
    regions: Sequence[AuditedRegion],
    *,
    readable: bool = True,
    idle: bool = True,
    progress: Callable[[int, int], None] | None = None,
    stop: Event | None = None,
    counters_cgroup: Path | None = None,
    window_bytes: int = WINDOW_BYTES,
    asked: Asked = EVERY_PAGE,
) -> VmAudit:
    """Look at a VM's regions as is ``asked``; blocking, for a thread of its own.

    ``readable`` is False for confidential VMs, ``idle`` says that nobody uses the memory now
    (`scan_region` has what depends on it).
    ``progress`` gets bytes looked at and bytes in all. ``counters_cgroup`` is the directory of the
    cgroup that pays. Raises AuditStoppedError soon after ``stop`` is set.
    """
    started = time.time()
    clock, cpu = time.monotonic(), time.thread_time()
    total = sum(region.plan.size_bytes for region in regions)
    done = 0

    def advance(length: int) -> None:
        nonlocal done
        done += length
        if progress is not None:
            progress(done, total)

    with Jobs(asked.jobs) as jobs:

        def look(region: AuditedRegion, pages: int) -> RegionAudit:
            how: _Look = {
                "guest_node": region.plan.guest_node,
                "index": region.plan.index,
                "size_bytes": region.plan.size_bytes,
                "page_size": region.plan.page_size,
                "offset": region.offset,
                "readable": readable,
                "policy_kept": may_hold_policy(region.plan),
                "idle": idle,
                "stop": stop,
                "progress": advance,
            }
            if pages:
                return _sampled(region.fd, pages, asked, how)
            return scan_region(region.fd, window_bytes=window_bytes, jobs=jobs, **how)

        shares = pages_asked(regions, asked)
        seen = [look(*each) for each in zip(regions, shares, strict=True)]
    audited = tuple(
        replace(found, verified_timestamp=started)
        if found.sample is None and found.in_sight
        else found
        for found in seen
    )
    counters = None
    if counters_cgroup is not None:
        page_sizes = {region.plan.page_size for region in regions}
        counters = read_counters(counters_cgroup, page_sizes)
    return VmAudit(
        vm=vm,
        started_timestamp=started,
        duration_seconds=time.monotonic() - clock,
        cpu_seconds=time.thread_time() - cpu + jobs.cpu_seconds,
        regions=audited,
        counters=counters,
        counters_cgroup=str(counters_cgroup) if counters is not None else "",
    )


def pages_asked(regions: Sequence[AuditedRegion], asked: Asked) -> list[int]:
    """How many pages of each region are drawn; 0: every page is looked at."""
    pages = asked.sample_pages
    if pages is None or asked.every_page:
        return [0] * len(regions)
    return [pages] * len(regions) if asked.margin is not None else shares_of(regions, pages)


def shares_of(regions: Sequence[AuditedRegion], sample_pages: int) -> list[int]:
    """The pages that are drawn of each region: those of a guest node are for all its regions."""
    shares = dict.fromkeys(range(len(regions)), 0)
    for guest_node in {region.plan.guest_node for region in regions}:
        mine = [i for i in shares if regions[i].plan.guest_node == guest_node]
        pages = [regions[i].plan.size_bytes // regions[i].plan.page_size for i in mine]
        shares |= zip(mine, allocate(pages, sample_pages), strict=True)
    return list(shares.values())


def _sampled(fd: int, pages: int, asked: Asked, how: _Look) -> RegionAudit:
    found = sample_region(
        fd,
        sample_pages=pages,
        rng=random.Random(),  # noqa: S311  a sample, no secret
        clustered=asked.margin is None,
        confidence=asked.confidence,
        **how,
    )
    if found.sample is None:
        return found
    return replace(found, sample=replace(found.sample, margin=asked.margin))


def may_hold_policy(plan: RegionPlan) -> bool:
    """Whether a policy read from the region's inode can say anything about its placement.

    A guest_memfd under proxy-allocation stands on a kernel that keeps none, or can't be mapped.
    """
    return (
        plan.strategy is Strategy.INODE_POLICY
        or plan.backend is Backend.MEMFD
        or plan.policy is PolicyMode.DEFAULT
    )


def no_less_lately_verified(audit: VmAudit, before: VmAudit | None) -> VmAudit:
    """Give the same, with no region verified less lately than it was ``before``.

    What is still to come was told by a clock that was set since, and is no time to go by.
    """
    ended = audit.started_timestamp + audit.duration_seconds
    known = {
        (seen.guest_node, seen.index): seen.verified_timestamp
        for seen in (before.regions if before is not None else ())
        if seen.verified_timestamp is not None and seen.verified_timestamp <= ended
    }
    regions = (
        replace(
            seen,
            verified_timestamp=max(
                seen.verified_timestamp or 0.0, known.get((seen.guest_node, seen.index), 0.0)
            )
            or None,
        )
        for seen in audit.regions
    )
    return replace(audit, regions=tuple(regions))


def without_holders_pages(audit: VmAudit) -> VmAudit:
    """Give the same where memory was handed out meanwhile: that it has grown is no error."""
    regions = (
        replace(region, errors={k: n for k, n in region.errors.items() if k != RESIDENCY_CHANGED})
        for region in audit.regions
    )
    return replace(audit, regions=tuple(regions))
