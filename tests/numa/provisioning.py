"""VMs provisioned on the lab's nodes, and counts of where pages are that owe gmemd nothing."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.host.reading import read_host
from gmemd.host.zones import placeable
from gmemd.kernel.mempolicy import MemPolicy, set_task_policy
from gmemd.memory.regions import Region, provision_vm, release
from gmemd.plan.admission import Reserve
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, VmSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gmemd.memory.progress import Progress
    from gmemd.plan.model import VmPlan

MIB = 1 << 20
NODES = Path("/sys/devices/system/node")
MADV_POPULATE_WRITE = 23
SMALL_RESERVE = Reserve(ratio=0.0, minimum_bytes=64 * MIB)
# Far below zero: nothing is ever too full, neither for admission nor for the guard.
NO_GUARD = Reserve(ratio=-1e9, minimum_bytes=-(1 << 60))


def bytes_by_node(counter: str = "FilePages") -> dict[int, int]:
    """A line of every node's meminfo, in bytes, with the per-CPU counts folded in first."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    found = {}
    for node in sorted(NODES.glob("node[0-9]*")):
        lines = (node / "meminfo").read_text().splitlines()
        (line,) = [line for line in lines if line.split()[2] == f"{counter}:"]
        found[int(node.name.removeprefix("node"))] = int(line.split()[3]) << 10
    return found


def huge_pages_free(page_size: int = 2 * MIB) -> dict[int, int]:
    """Free huge pages of each node's pool, in bytes."""
    pools = NODES.glob(f"node[0-9]*/hugepages/hugepages-{page_size >> 10}kB/free_hugepages")
    return {
        int(pool.parts[-4].removeprefix("node")): int(pool.read_text()) * page_size
        for pool in pools
    }


def difference(after: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """What each node has more than before, in MiB, rounded; nodes without a change left out."""
    changes = {node: round((after[node] - before[node]) / MIB) for node in after}
    return {node: change for node, change in changes.items() if change}


@contextlib.contextmanager
def huge_pages(node: int, pages: int, page_size: int = 2 * MIB) -> Iterator[None]:
    """A node's pool of that many huge pages."""
    pool = NODES / f"node{node}/hugepages/hugepages-{page_size >> 10}kB/nr_hugepages"
    pool.write_text(str(pages))
    if int(pool.read_text()) != pages:
        pytest.fail(f"node {node} can't give {pages} huge pages")
    try:
        yield
    finally:
        pool.write_text("0")


def spec(*regions: RegionSpec, cgroup: str = "none", vm: str = "test") -> VmSpec:
    nodes = [GuestNode(id=number, regions=(region,)) for number, region in enumerate(regions)]
    return VmSpec(vm=vm, cgroup=cgroup, guest_nodes=tuple(nodes))


def region(
    mebibytes: int,
    nodes: set[int],
    policy: PolicyMode = PolicyMode.BIND,
    backend: Backend = Backend.GUEST_MEMFD,
    page_size: int = 4096,
) -> RegionSpec:
    return RegionSpec(
        size_bytes=mebibytes * MIB,
        host_nodes=frozenset(nodes),
        policy=policy,
        backend=backend,
        page_size=page_size,
        prefault=True,
    )


def planned(wanted: VmSpec, reserve: Reserve = SMALL_RESERVE) -> VmPlan:
    return plan_vm(wanted, read_host(), reserve=reserve)


@contextlib.contextmanager
def provisioned(
    plan: VmPlan,
    *,
    reserve: Reserve = SMALL_RESERVE,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[list[Region]]:
    """The plan's regions, given back at the end. Admission isn't asked again."""
    regions = provision_vm(
        plan, host=read_host(), reserve=reserve, progress=progress, cancel=threading.Event()
    )
    try:
        yield regions
    finally:
        release(regions)


def available(node: int) -> int:
    """What the node can still give to unmovable pages, in bytes."""
    return placeable()[node].placeable_available_bytes


@contextlib.contextmanager
def filled(node: int, leaving: int) -> Iterator[None]:
    """Take a node's memory, as another program would, until it has this much available.

    In small steps, since somebody else may take some at the same time.
    """
    step = 8 * MIB
    taken: list[mmap.mmap] = []

    def fill() -> None:
        while available(node) > leaving + step:
            memory = mmap.mmap(-1, step, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            taken.append(memory)
            memory.madvise(MADV_POPULATE_WRITE)

    try:
        run_on(node, fill)
        yield
    finally:
        for memory in taken:
            memory.close()


def fill_with_clean_cache(node: int, size_bytes: int, file: Path) -> None:
    """Page cache on one node that the kernel drops on demand: a sparse file, read."""

    def read() -> None:
        fd = os.open(file, os.O_RDONLY)
        try:
            while os.read(fd, MIB):
                continue
        finally:
            os.close(fd)

    with file.open("wb") as sparse:
        sparse.truncate(size_bytes)
    run_on(node, read)


def run_on(node: int, function: Callable[[], None]) -> None:
    """Run with a task policy that binds to a node: in a thread, which has one of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            set_task_policy(MemPolicy("bind", frozenset({node})))
            function()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
