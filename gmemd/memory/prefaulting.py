"""Prefaulting a VM's regions: which at the same time, and what a failure means for people."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING

from gmemd.kernel.errors import KernelError
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.memory.placement import (
    any_cpus,
    cpus_beside,
    guard_of,
    task_policy,
    threads_for,
)
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, PrefaultResult, prefault
from gmemd.memory.progress import Progress, Stage
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gmemd.host.model import Host
    from gmemd.memory.regions import Region
    from gmemd.plan.admission import Reserve

_CANCEL_POLL_SECONDS = 0.1
_MORE_TASKS = "raise pids.max of gmemd's cgroup (TasksMax= of the unit), or RLIMIT_NPROC"


def prefault_regions(
    regions: Sequence[Region],
    *,
    vm: str,
    host: Host,
    reserve: Reserve,
    progress: Callable[[Progress], None],
    cancel: threading.Event,
    payer_fd: int | None = None,
) -> None:
    """Prefault all of these regions, whole. Blocks.

    Those that share no node are prefaulted at the same time, each by the CPUs beside its own
    memory; those that do follow each other. VMs don't wait for each other: the kernel shares the
    CPUs out among their helpers, and each sees the others' chunks (guard.Claims).

    ``payer_fd`` is open for writing on the cgroup.procs of the cgroup that pays; without it the
    regions' own ``cgroup`` does.

    Raises ProvisionError for the first that can't be, and ProvisionCancelledError; the regions
    keep what they have got so far, and are the caller's to give back.
    """
    tally = _Tally(vm, sum(region.plan.size_bytes for region in regions), progress)
    stop = threading.Event()

    def run(group: Sequence[Region]) -> None:
        for region in group:
            _prefault_one(region, host, reserve, tally, stop, payer_fd=payer_fd)

    groups = disjoint(regions)
    with ThreadPoolExecutor(max(1, len(groups)), thread_name_prefix="prefault") as pool:
        try:
            pending = _begun(pool, [partial(run, group) for group in groups])
            while pending:
                done, pending = wait(pending, _CANCEL_POLL_SECONDS, FIRST_COMPLETED)
                if cancel.is_set():
                    raise ProvisionCancelledError(vm)
                for future in done:
                    future.result()
        finally:
            stop.set()


def _begun(pool: ThreadPoolExecutor, work: Sequence[Callable[[], None]]) -> set[Future[None]]:
    """All of the work, each on a thread of its own; raises KernelError where one can't be had."""
    try:
        return {pool.submit(each) for each in work}
    except RuntimeError as error:  # that is how Python tells it, whatever the errno was
        what = f"starting {len(work)} threads for prefaulting"
        raise KernelError("clone", errno.EAGAIN, what, hint=_MORE_TASKS) from error


class _Tally:
    """The bytes done, by region, told as one sum."""

    def __init__(self, vm: str, total: int, progress: Callable[[Progress], None]) -> None:
        self._vm, self._total, self._progress = vm, total, progress
        self._done: dict[int, int] = {}
        self._lock = threading.Lock()

    def of(self, region: Region) -> Callable[[int], None]:
        def tell(done: int) -> None:
            with self._lock:
                self._done[id(region)] = done
                total_done = sum(self._done.values())
                self._progress(Progress(self._vm, Stage.PREFAULTING, total_done, self._total))

        return tell


def disjoint(regions: Sequence[Region]) -> list[list[Region]]:
    """Groups of regions that have no host node in common; in the given order within each.

    A region that names no node may take from any, and so belongs with all others.
    """
    groups: list[tuple[set[int], list[Region]]] = []
    if any(not region.plan.host_nodes for region in regions):
        return [list(regions)]
    for region in regions:
        touching = [group for group in groups if group[0] & region.plan.host_nodes]
        nodes = set(region.plan.host_nodes).union(*(group[0] for group in touching))
        members = [member for group in touching for member in group[1]]
        groups = [group for group in groups if group not in touching]
        groups.append((nodes, [*members, region]))
    return [members for _, members in groups]


def _prefault_one(
    region: Region,
    host: Host,
    reserve: Reserve,
    tally: _Tally,
    stop: threading.Event,
    *,
    payer_fd: int | None,
) -> None:
    plan = region.plan
    nodes = plan.host_nodes or host.cpuset.mems
    cpus = cpus_beside(nodes, host)
    job = PrefaultJob(
        fd=region.fd,
        offset=region.offset,
        length=plan.size_bytes,
        page_size=plan.page_size,
        guard=guard_of(plan, host, reserve),
        task_policy=task_policy(plan, region.strategy),
        cpus=cpus,
        any_cpus=any_cpus(host),
        cgroup=region.cgroup,
        cgroup_fd=payer_fd,
        n_threads=threads_for(plan, cpus),
    )
    result = prefault(job, progress=tally.of(region), cancel=stop)
    region.notes.extend(result.notes)
    failure = explain(region, result)
    if failure is not None:
        raise failure


def explain(region: Region, result: PrefaultResult) -> ProvisionError | None:
    """A prefault that wasn't complete, for people. None where all of the region is there."""
    plan = region.plan
    if result.outcome is PrefaultOutcome.COMPLETE and result.allocated_bytes >= plan.size_bytes:
        return None
    who = f"{plan.vm}: guest node {plan.guest_node}"
    had = f"{format_size(result.allocated_bytes)} of {format_size(plan.size_bytes)}"
    nodes = format_nodeset(plan.host_nodes)
    full = result.full_node if result.full_node is not None else min(plan.host_nodes, default=None)
    where = f"node {full}" if full is not None else "the host"
    reason, hint = str(result.outcome), result.hint
    match result.outcome:
        case PrefaultOutcome.CANCELLED:
            return ProvisionCancelledError(plan.vm)
        case PrefaultOutcome.COMPLETE:
            reason = "not-resident"
            text = (
                f"{who}: the kernel reported success and allocated {had}: "
                f"{result.needed_bytes} bytes are missing"
            )
        case PrefaultOutcome.STOPPED_AT_RESERVE:
            reason = "node-full"
            text = (
                f"{where} is full: {who} has {had}, needs {format_size(result.needed_bytes)} more, "
                f"and {format_size(result.available_bytes)} are left of which "
                f"{format_size(result.reserve_bytes)} are the reserve"
            )
            hint = _FULL_HINT
        case PrefaultOutcome.OOM_KILLED:
            reason = "node-full"
            text = (
                f"{where} is full: the kernel's OOM killer ended the prefault of {who} at {had}, "
                f"with {format_size(result.available_bytes)} left on the node"
            )
            hint = _FULL_HINT
        case PrefaultOutcome.POOL_EMPTY:
            page = format_size(plan.page_size)
            text = f"no {page} pages are left on nodes {nodes}: {who} has {had}"
            hint = f"raise nr_hugepages of {page} on nodes {nodes}"
        case PrefaultOutcome.CGROUP_FULL:
            text = (
                f"cgroup {result.detail} is full: {who} has {had}, needs "
                f"{format_size(result.needed_bytes)} more, and "
                f"{format_size(result.available_bytes)} are left below memory.max"
            )
            hint = "raise memory.max of the cgroup that pays, or name another by `cgroup:`"
        case PrefaultOutcome.KILLED:
            reason = "helper-killed"
            text = f"the prefault helper of {who} was killed by {result.detail} at {had}"
        case PrefaultOutcome.STUCK:
            reason = "helper-stuck"
            text = (
                f"the prefault helper of {who} was stuck at {had}: it allocated nothing for "
                f"{result.detail}, and was killed"
            )
            hint = _STUCK_HINT
        case _:
            reason = "helper-failed"
            text = f"the prefault helper of {who} failed at {had}: {result.detail}"
    return ProvisionError(
        text,
        reason=reason,
        host_node=full if reason == "node-full" else None,
        needed_bytes=result.needed_bytes,
        available_bytes=result.available_bytes,
        hint=hint,
    )


_STUCK_HINT = (
    "it was stopped (SIGSTOP, a debugger), the cgroup that pays is frozen (cgroup.freeze), or the "
    "kernel is out of breath: dmesg tells of hung tasks"
)
_FULL_HINT = "free memory on the node, give the guest node another host node, or a smaller size"
