"""One audit of a VM for little: by what the rolling scan saw, and by a sample where that is old.

It is what the daemon does again and again. Its cost is that of the pages drawn, never that of the
memory: the rolling scan, which has a thread and a budget of its own, sees every page in time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.audit.counters import read_counters
from gmemd.audit.held import sample_region
from gmemd.audit.model import VmAudit
from gmemd.audit.rolling import RollingRegion
from gmemd.audit.scan import AuditStoppedError
from gmemd.audit.vm import may_hold_policy, shares_of
from gmemd.spec.model import Backend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random
    from threading import Event

    from gmemd.audit.model import RegionAudit
    from gmemd.audit.rolling import RollingScan
    from gmemd.audit.vm import AuditedRegion


@dataclass(frozen=True, slots=True)
class Watch:
    """How a VM is looked at: its use, and how much of it is drawn where a sample has to do.

    ``sample_pages`` are base pages of each guest node. What the rolling scan saw within
    ``fresh_seconds`` is taken as it is. Up to ``at_once_bytes`` of memory that it hasn't seen whole
    yet are scanned now.
    """

    rng: Random
    sample_pages: int
    fresh_seconds: float
    at_once_bytes: int = 0
    readable: bool = True
    idle: bool = False
    counters_cgroup: Path | None = None
    stop: Event | None = None


def key_of(region: AuditedRegion) -> tuple[int, int]:
    """The key of a region in the rolling scan: what is open has its number for itself."""
    return region.fd, region.offset


def watch_vm(
    vm: str, regions: Sequence[AuditedRegion], rolling: RollingScan, watch: Watch
) -> VmAudit:
    """Audit a VM, and have the rolling scan look at its regions from now on; blocking.

    Memory that nobody uses and that can't move (guest_memfd) is as it was seen, however long ago.
    Each region tells when the oldest of its pages was seen. Raises AuditStoppedError, KernelError.
    """
    started = time.time()
    clock, cpu = time.monotonic(), time.thread_time()
    for region in regions:
        rolling.add(key_of(region), _rolling(region, watch))
    shares = shares_of(regions, watch.sample_pages)
    new_bytes = sum(
        region.plan.size_bytes for region in regions if not rolling.is_verified(key_of(region))
    )
    at_once = new_bytes <= watch.at_once_bytes
    audited = tuple(
        _watched(region, pages, rolling, watch, at_once=at_once, now=started)
        for region, pages in zip(regions, shares, strict=True)
    )
    counters = None
    if watch.counters_cgroup is not None:
        page_sizes = {region.plan.page_size for region in regions}
        counters = read_counters(watch.counters_cgroup, page_sizes)
    return VmAudit(
        vm=vm,
        started_timestamp=started,
        duration_seconds=time.monotonic() - clock,
        cpu_seconds=time.thread_time() - cpu,
        regions=audited,
        counters=counters,
        counters_cgroup=str(watch.counters_cgroup) if counters is not None else "",
    )


def _rolling(region: AuditedRegion, watch: Watch) -> RollingRegion:
    plan = region.plan
    return RollingRegion(
        fd=region.fd,
        guest_node=plan.guest_node,
        index=plan.index,
        size_bytes=plan.size_bytes,
        page_size=plan.page_size,
        offset=region.offset,
        readable=watch.readable,
        policy_kept=may_hold_policy(plan),
        idle=watch.idle and plan.backend is Backend.GUEST_MEMFD,
    )


def with_verified(
    audit: VmAudit, regions: Sequence[AuditedRegion], rolling: RollingScan
) -> VmAudit:
    """The same with the age of what the rolling scan has seen of regions that were sampled."""
    dated = []
    for found, region in zip(audit.regions, regions, strict=True):
        verified = rolling.verified(key_of(region)) if found.sample is not None else None
        since = (verified.audit if verified is not None else found).verified_timestamp
        dated.append(replace(found, verified_timestamp=since))
    return replace(audit, regions=tuple(dated))


def _watched(
    region: AuditedRegion,
    pages: int,
    rolling: RollingScan,
    watch: Watch,
    *,
    at_once: bool,
    now: float,
) -> RegionAudit:
    plan, key = region.plan, key_of(region)
    if at_once:
        rolling.scan_now(key, watch.stop)
    if watch.stop is not None and watch.stop.is_set():
        raise AuditStoppedError(f"audit stopped at guest node {plan.guest_node}")
    verified = rolling.verified(key)
    if verified is not None and (verified.lasts or verified.age_seconds <= watch.fresh_seconds):
        return verified.audit
    sampled = sample_region(
        region.fd,
        guest_node=plan.guest_node,
        index=plan.index,
        size_bytes=plan.size_bytes,
        page_size=plan.page_size,
        offset=region.offset,
        sample_pages=pages,
        rng=watch.rng,
        readable=watch.readable,
        policy_kept=may_hold_policy(plan),
        idle=watch.idle,
        stop=watch.stop,
    )
    if sampled.sample is None:
        return replace(sampled, verified_timestamp=now if sampled.in_sight else None)
    since = verified.audit.verified_timestamp if verified is not None else None
    return replace(sampled, verified_timestamp=since)
