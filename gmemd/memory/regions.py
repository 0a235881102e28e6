"""A VM's regions: made, bound, prefaulted, given back. All sizes in bytes.

Everything here blocks and belongs in a thread: closing the last descriptor of 8 GiB takes a second.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from gmemd.kernel.bind import BindResult, bind_range
from gmemd.kernel.descriptor import inode_of
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory import cgroup
from gmemd.memory.binding import (
    PEER,
    bind_region,
    is_local,
    note_changed_later,
    settle_strategy,
    stop_if,
    typed_errors,
)
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.prefaulting import prefault_regions
from gmemd.memory.progress import Progress, Stage
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from gmemd.host.model import Host
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import RegionPlan, VmPlan

_SHARED = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED


@dataclass(slots=True)
class Region:
    """One region's memory, held by its descriptor. ``inode`` is its identity: (st_dev, st_ino).

    It starts at ``offset`` of its file, and has ``id`` among its VM's, where that was given one.
    ``resident_before`` were allocated before its policy was set, and stay where they are.
    ``strategy`` is what was achieved, ``reason`` why it is that one; ``bind`` what became of the
    kernel policy. ``cgroup`` paid for the prefault (None: gmemd's own did, or nobody yet);
    ``own_cgroup``: gmemd made that one for the VM. ``rebound``: its policy was set again.
    """

    plan: RegionPlan
    fd: int
    inode: tuple[int, int]
    strategy: Strategy
    reason: str
    bind: BindResult | None = None
    cgroup: Path | None = None
    own_cgroup: bool = False
    notes: list[str] = field(default_factory=list)
    rebound: bool = False
    offset: int = 0
    resident_before: int = 0
    id: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back, unless somebody else holds it too. Harmless when repeated."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def provision_vm(
    vm_plan: VmPlan,
    *,
    host: Host,
    reserve: Reserve,
    progress: Callable[[Progress], None],
    cancel: threading.Event,
) -> list[Region]:
    """Make, bind and prefault all of a VM's regions, in the plan's order. Blocks.

    ``progress`` may be called from other threads. On any failure all is given back first; raises
    ProvisionError with figures and a hint, ProvisionCancelledError once ``cancel`` is set.
    """
    spec = vm_plan.spec
    with ExitStack() as undo, typed_errors(spec.vm):
        progress(Progress(spec.vm, Stage.CREATING, 0, _prefault_total(vm_plan)))
        regions = _create(vm_plan)
        undo.callback(release, regions)
        for region in regions:
            stop_if(cancel, spec.vm)
            if not (is_local(region) and _is_prefaulted(region, spec.cgroup)):
                bind_region(region, host)
            settle_strategy(region, prefaulted_later=spec.cgroup == PEER)
        wanted = [region for region in regions if _is_prefaulted(region, spec.cgroup)]
        if wanted:
            payer = cgroup.payer_for(spec.vm, spec.cgroup)
            for region in wanted:
                region.cgroup, region.own_cgroup = payer.directory, payer.own
            prefault_regions(
                wanted, vm=spec.vm, host=host, reserve=reserve, progress=progress, cancel=cancel
            )
        for region in wanted:
            if is_local(region):
                bind_region(region, host)
        stop_if(cancel, spec.vm)
        undo.pop_all()
    return regions


def rebind(region: Region, plan: RegionPlan) -> None:
    """Give a region that exists a changed plan: its policy rules the pages still to come. Blocks.

    Where the inode holds no policy the pages stay as they are, and a note says so. Raises
    ProvisionError, with the region as it was.
    """
    if region.strategy is Strategy.INODE_POLICY:
        untold = plan.policy in {PolicyMode.DEFAULT, PolicyMode.LOCAL}
        nodes = frozenset[int]() if untold else plan.host_nodes
        with typed_errors(plan.vm):
            region.bind = bind_range(
                region.fd, region.offset, plan.size_bytes, MemPolicy(plan.policy.value, nodes)
            )
    else:
        note_changed_later(region)
    region.rebound = True
    region.plan = plan


def release(regions: Iterable[Region]) -> None:
    """Close regions, and remove the cgroups made for them. Blocks while memory is freed."""
    directories: set[Path] = set()
    for region in regions:
        region.close()
        if region.cgroup is not None and region.own_cgroup:
            directories.add(region.cgroup)
    for directory in directories:
        cgroup.remove(directory)


def _create(vm_plan: VmPlan) -> list[Region]:
    """The descriptors, nothing allocated yet."""
    plans = vm_plan.regions
    private = [plan for plan in plans if plan.backend is Backend.GUEST_MEMFD]
    with ExitStack() as undo:
        guest_memfds = iter(
            _held(undo, create_guest_memfds([p.size_bytes for p in private], flags=_SHARED))
            if private
            else ()
        )
        fds = [
            next(guest_memfds)
            if plan.backend is Backend.GUEST_MEMFD
            else _held(undo, [_create_memfd(plan)])[0]
            for plan in plans
        ]
        regions = [_region(plan, fd) for plan, fd in zip(plans, fds, strict=True)]
        undo.pop_all()
    return regions


def _held(undo: ExitStack, fds: Sequence[int]) -> Sequence[int]:
    for fd in fds:
        undo.callback(os.close, fd)
    return fds


def _create_memfd(plan: RegionPlan) -> int:
    name = f"gmemd-{plan.vm}-{plan.guest_node}-{plan.index}"
    return create_memfd(name, plan.size_bytes, page_size=plan.page_size)


def _region(plan: RegionPlan, fd: int) -> Region:
    return Region(plan, fd, inode_of(fd), plan.strategy, plan.reason)


def _is_prefaulted(region: Region, payer: str) -> bool:
    return region.plan.prefault and payer != PEER


def _prefault_total(vm_plan: VmPlan) -> int:
    if vm_plan.spec.cgroup == PEER:
        return 0
    return sum(plan.size_bytes for plan in vm_plan.regions if plan.prefault)
