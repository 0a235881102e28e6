"""Real guest_memfds and memfds on this host, and what a helper process is asked to do with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.host.reading import read_host
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.guard import Guard
from gmemd.memory.prefault import PrefaultJob
from gmemd.plan.model import RegionPlan, Strategy, VmPlan
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, VmSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.host.model import Host

MIB = 1 << 20


@pytest.fixture
def guest_memfd() -> Iterator[Callable[..., int]]:
    fds: list[int] = []

    def make(size_bytes: int, *, flags: int = 3) -> int:
        (fd,) = create_guest_memfds([size_bytes], flags=flags)
        fds.append(fd)
        return fd

    yield make
    for fd in fds:
        os.close(fd)


@pytest.fixture(scope="session")
def host() -> Host:
    return read_host(probe=False)


@pytest.fixture
def job() -> Callable[..., PrefaultJob]:
    """A job for a whole file on this host's first node, guarded by a reserve of 256 MiB."""
    cpus = frozenset(os.sched_getaffinity(0))

    def make(fd: int, **changes: object) -> PrefaultJob:
        fields: dict[str, object] = {
            "fd": fd,
            "offset": 0,
            "length": os.fstat(fd).st_size,
            "page_size": 4096,
            "guard": Guard({0: 256 * MIB}),
            "task_policy": MemPolicy("bind", frozenset({0})),
            "cpus": cpus,
            "any_cpus": cpus,
        }
        return PrefaultJob(**(fields | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def vm_plan() -> Callable[..., VmPlan]:
    """A plan of one guest node per size, all alike."""

    def make(
        *sizes: int,
        policy: PolicyMode = PolicyMode.BIND,
        backend: Backend = Backend.GUEST_MEMFD,
        strategy: Strategy = Strategy.INODE_POLICY,
        prefault: bool = True,
        cgroup: str = "none",
        page_size: int = 4096,
        nodes: frozenset[int] = frozenset({0}),
    ) -> VmPlan:
        regions = [
            RegionSpec(
                size_bytes=size,
                host_nodes=nodes,
                policy=policy,
                backend=backend,
                prefault=prefault,
                page_size=page_size,
            )
            for size in sizes
        ]
        spec = VmSpec(
            vm="test",
            cgroup=cgroup,
            guest_nodes=tuple(
                GuestNode(id=number, regions=(region,)) for number, region in enumerate(regions)
            ),
        )
        plans = tuple(
            RegionPlan(
                vm="test",
                guest_node=number,
                index=0,
                size_bytes=region.size_bytes,
                backend=backend,
                page_size=page_size,
                policy=policy,
                host_nodes=nodes,
                strategy=strategy,
                reason="as planned",
                prefault=prefault,
                demand={node: region.size_bytes // len(nodes) for node in nodes},
            )
            for number, region in enumerate(regions)
        )
        return VmPlan(spec=spec, regions=plans)

    return make


@pytest.fixture
def open_fds() -> Callable[[], set[str]]:
    """What this process holds open, by descriptor and file."""

    def listing() -> set[str]:
        found = set()
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found.add(f"{entry.name} {entry.readlink()}")
            except FileNotFoundError:
                continue
        return found

    return listing
