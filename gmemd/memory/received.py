"""Regions whose files a VMM made, and regions that are prefaulted when it takes them.

Everything here blocks. All sizes in bytes.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from gmemd.kernel.descriptor import duplicate
from gmemd.kernel.identity import NotACgroupError, cgroup_of_procs
from gmemd.memory import cgroup
from gmemd.memory.binding import (
    PEER,
    bind_region,
    is_local,
    say_prefaulted,
    settle_strategy,
    stop_if,
    typed_errors,
    unbind_region,
)
from gmemd.memory.cgroup import Payer
from gmemd.memory.errors import ProvisionError
from gmemd.memory.prefaulting import prefault_regions
from gmemd.memory.regions import Region, release
from gmemd.memory.residency import allocated_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gmemd.host.model import Host
    from gmemd.kernel.identity import MemoryFile
    from gmemd.memory.progress import Progress
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import RegionPlan
    from gmemd.spec.model import VmSpec

    Received = tuple[RegionPlan, int, int, MemoryFile]
    """A region's plan, the fd of its file, its offset there, and what that file is."""


def place_received(
    received: Sequence[Received],
    *,
    spec: VmSpec,
    host: Host,
    reserve: Reserve,
    progress: Callable[[Progress], None],
    cancel: threading.Event,
    payer_fd: int | None = None,
) -> list[Region]:
    """Give regions of a VMM's own files their policies, and prefault those whose plan says so.

    The descriptors stay the caller's; the regions have copies. ``payer_fd`` is the cgroup.procs of
    who pays where the spec says ``cgroup: peer``. ``progress`` may be called from other threads. On
    any failure nothing is held any more, and what was allocated so far stays in the files; raises
    ProvisionError, ProvisionCancelledError once ``cancel`` is set.
    """
    with ExitStack() as undo, typed_errors(spec.vm):
        regions: list[Region] = []
        undo.callback(release, regions)
        for plan, fd, offset, file in received:
            stop_if(cancel, spec.vm)
            regions.append(_take(plan, fd, offset, file))
        for region in regions:
            stop_if(cancel, spec.vm)
            if not (is_local(region) and region.plan.prefault):
                bind_region(region, host)
            settle_strategy(region)
        wanted = [region for region in regions if region.plan.prefault]
        if wanted:
            payer = _payer(spec, payer_fd)
            for region in wanted:
                region.cgroup, region.own_cgroup = payer.directory, payer.own
            prefault_regions(
                wanted,
                vm=spec.vm,
                host=host,
                reserve=reserve,
                progress=progress,
                cancel=cancel,
                payer_fd=payer_fd if spec.cgroup == PEER else None,
            )
        for region in filter(is_local, wanted):
            bind_region(region, host)
            settle_strategy(region)
        stop_if(cancel, spec.vm)
        undo.pop_all()
    return regions


def prefault_acquired(
    regions: Sequence[Region],
    *,
    vm: str,
    host: Host,
    reserve: Reserve,
    progress: Callable[[Progress], None],
    cancel: threading.Event,
    payer_fd: int,
    payer: Path,
) -> None:
    """Prefault what was left for the VMM's cgroup to pay for (``cgroup: peer``).

    ``payer`` is the cgroup's directory, ``payer_fd`` its cgroup.procs, open for writing; both stay
    the caller's. What exists already costs nobody anything. Raises ProvisionError,
    ProvisionCancelledError; the regions keep what they have got so far.
    """
    wanted = [region for region in regions if region.plan.prefault]
    if not wanted:
        return
    local = [region for region in wanted if is_local(region) and region.bind is not None]
    with typed_errors(vm):
        for region in wanted:
            region.cgroup, region.own_cgroup = payer, False
        for region in local:
            unbind_region(region)
        try:
            prefault_regions(
                wanted,
                vm=vm,
                host=host,
                reserve=reserve,
                progress=progress,
                cancel=cancel,
                payer_fd=payer_fd,
            )
        finally:
            for region in local:
                bind_region(region, host)
        for region in wanted:
            say_prefaulted(region)


def _take(plan: RegionPlan, fd: int, offset: int, file: MemoryFile) -> Region:
    """The region, with a descriptor of its own."""
    own = duplicate(fd)
    region = Region(plan, own, file.inode, plan.strategy, plan.reason, offset=offset)
    try:
        region.resident_before = allocated_bytes(own, offset, plan.size_bytes, plan.page_size)
    except BaseException:
        region.close()
        raise
    return region


def _payer(spec: VmSpec, payer_fd: int | None) -> Payer:
    if spec.cgroup != PEER:
        return cgroup.payer_for(spec.vm, spec.cgroup)
    if payer_fd is None:
        raise ProvisionError(
            f"{spec.vm}: the spec says `cgroup: peer`, and no cgroup came with the call",
            reason="cgroup",
            hint="pass the cgroup.procs of the cgroup that is to pay, open for writing",
        )
    try:
        return Payer(cgroup_of_procs(payer_fd), "cgroup: peer")
    except NotACgroupError as error:
        raise ProvisionError(
            f"{spec.vm}: {error.message}", reason="cgroup", hint=error.hint
        ) from error
