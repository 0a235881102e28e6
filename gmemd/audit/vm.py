"""One audit of a VM: all its regions scanned, the counters beside them, time and CPU measured."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.audit.counters import read_counters
from gmemd.audit.jobs import Jobs
from gmemd.audit.model import VmAudit
from gmemd.audit.scan import WINDOW_BYTES, scan_region
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from threading import Event

    from gmemd.plan.model import RegionPlan


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
    jobs: int = 1,
) -> VmAudit:
    """Scan a VM's regions; blocking, for a thread of its own, or for as many as ``jobs`` says.

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

    with Jobs(jobs) as threads:
        audited = tuple(
            replace(
                scan_region(
                    region.fd,
                    guest_node=region.plan.guest_node,
                    index=region.plan.index,
                    size_bytes=region.plan.size_bytes,
                    page_size=region.plan.page_size,
                    offset=region.offset,
                    readable=readable,
                    policy_kept=may_hold_policy(region.plan),
                    idle=idle,
                    window_bytes=window_bytes,
                    stop=stop,
                    progress=advance,
                    jobs=threads,
                ),
                verified_timestamp=started,
            )
            for region in regions
        )
    counters = None
    if counters_cgroup is not None:
        page_sizes = {region.plan.page_size for region in regions}
        counters = read_counters(counters_cgroup, page_sizes)
    return VmAudit(
        vm=vm,
        started_timestamp=started,
        duration_seconds=time.monotonic() - clock,
        cpu_seconds=time.thread_time() - cpu + threads.cpu_seconds,
        regions=audited,
        counters=counters,
        counters_cgroup=str(counters_cgroup) if counters is not None else "",
    )


def may_hold_policy(plan: RegionPlan) -> bool:
    """Whether a policy read from the region's inode can say anything about its placement.

    A guest_memfd under proxy-allocation stands on a kernel that keeps none, or can't be mapped.
    """
    return (
        plan.strategy is Strategy.INODE_POLICY
        or plan.backend is Backend.MEMFD
        or plan.policy is PolicyMode.DEFAULT
    )
