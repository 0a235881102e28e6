"""A VM's regions: made, bound, prefaulted, given back. All sizes in bytes.

Everything here blocks and belongs in a thread: closing the last descriptor of 8 GiB takes a second.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from gmemd.kernel.bind import BindOutcome, BindResult, bind_range
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory import cgroup
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.memory.prefaulting import prefault_regions
from gmemd.memory.progress import Progress, Stage
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from gmemd.host.model import Host
    from gmemd.plan.admission import Reserve
    from gmemd.plan.model import RegionPlan, VmPlan

_SHARED = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
_PEER = "peer"
_CHANGED_LATER = "the policy changed after allocation: pages stay where they are"
_NOT_KEPT = frozenset({BindOutcome.NOT_KEPT, BindOutcome.HUGETLB, BindOutcome.UNMAPPABLE})
_NO_NODE_LEFT = frozenset(
    {BindOutcome.NARROWED_OFFLINE, BindOutcome.NARROWED_CPUSET, BindOutcome.MOVABLE_ONLY}
)


@dataclass(slots=True)
class Region:
    """One region's memory, held by its descriptor. ``inode`` is its identity: (st_dev, st_ino).

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
    with ExitStack() as undo, _typed_errors(spec.vm):
        progress(Progress(spec.vm, Stage.CREATING, 0, _prefault_total(vm_plan)))
        regions = _create(vm_plan)
        undo.callback(release, regions)
        for region in regions:
            _stop_if(cancel, spec.vm)
            if region.plan.policy is not PolicyMode.LOCAL or not _is_prefaulted(
                region, spec.cgroup
            ):
                _bind(region, host)
            _settle_strategy(region, spec.cgroup)
        wanted = [region for region in regions if _is_prefaulted(region, spec.cgroup)]
        if wanted:
            payer = cgroup.payer_for(spec.vm, spec.cgroup)
            for region in wanted:
                region.cgroup, region.own_cgroup = payer.directory, payer.own
            prefault_regions(
                wanted, vm=spec.vm, host=host, reserve=reserve, progress=progress, cancel=cancel
            )
        for region in wanted:
            if region.plan.policy is PolicyMode.LOCAL:
                _bind(region, host)
        _stop_if(cancel, spec.vm)
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
        with _typed_errors(plan.vm):
            region.bind = bind_range(
                region.fd, 0, plan.size_bytes, MemPolicy(plan.policy.value, nodes)
            )
        region.rebound = True
    elif _CHANGED_LATER not in region.notes:
        region.notes.append(_CHANGED_LATER)
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
    status = os.fstat(fd)
    return Region(plan, fd, (status.st_dev, status.st_ino), plan.strategy, plan.reason)


def _bind(region: Region, host: Host) -> None:
    """Give the inode its policy, where the plan has one to give and the kernel would keep it."""
    plan = region.plan
    if plan.strategy is not Strategy.INODE_POLICY or plan.policy is PolicyMode.DEFAULT:
        return
    nodes = frozenset() if plan.policy is PolicyMode.LOCAL else plan.host_nodes
    region.bind = bind_range(
        region.fd,
        0,
        plan.size_bytes,
        MemPolicy(plan.policy.value, nodes),
        with_memory=frozenset(node.id for node in host.nodes if node.has_memory),
        movable_only=frozenset(node.id for node in host.nodes if node.movable_only),
    )
    if region.bind.outcome in _NO_NODE_LEFT and not region.bind.effective_nodes:
        raise ProvisionError(
            f"{plan.vm}: guest node {plan.guest_node}: {region.bind.detail}",
            reason="policy",
            host_node=min(plan.host_nodes, default=None),
            needed_bytes=plan.size_bytes,
            hint=region.bind.remedy or None,
        )


def _settle_strategy(region: Region, payer: str) -> None:
    """Say what places the pages where the kernel didn't keep the policy: the helper, or nothing."""
    plan = region.plan
    if region.bind is not None and region.bind.outcome in _NOT_KEPT:
        region.strategy = Strategy.PROXY_ALLOCATION
        region.reason = region.bind.detail
    if payer == _PEER and plan.prefault:
        region.reason = f"{region.reason}; prefaulted when its VMM acquires it (cgroup: peer)"
    elif region.strategy is Strategy.PROXY_ALLOCATION and not plan.prefault:
        region.strategy = Strategy.UNMANAGED
        region.reason = f"{region.reason}; without `prefault: true` nothing places its pages"


def _is_prefaulted(region: Region, payer: str) -> bool:
    return region.plan.prefault and payer != _PEER


def _prefault_total(vm_plan: VmPlan) -> int:
    if vm_plan.spec.cgroup == _PEER:
        return 0
    return sum(plan.size_bytes for plan in vm_plan.regions if plan.prefault)


def _stop_if(cancel: threading.Event, vm: str) -> None:
    if cancel.is_set():
        raise ProvisionCancelledError(vm)


@contextmanager
def _typed_errors(vm: str) -> Iterator[None]:
    """Kernel errors as ProvisionErrors of the VM."""
    try:
        yield
    except KernelError as error:
        raise ProvisionError(
            f"{vm}: {error.message}", reason="system-call", hint=error.hint
        ) from error
