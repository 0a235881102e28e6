"""Which regions of a VM are prefaulted at the same time."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.host.model import Cpuset, Host, HostNode
from gmemd.memory import prefaulting
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, PrefaultResult
from gmemd.memory.regions import Region
from gmemd.plan.admission import Reserve
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

N_NODES = 8
MIB = 1 << 20
PLAN = RegionPlan(
    vm="db-01",
    guest_node=0,
    index=0,
    size_bytes=4 * MIB,
    backend=Backend.GUEST_MEMFD,
    page_size=4096,
    policy=PolicyMode.BIND,
    host_nodes=frozenset({0}),
    strategy=Strategy.INODE_POLICY,
    reason="",
    prefault=True,
)


def node(number: int) -> HostNode:
    return HostNode(
        id=number,
        cpus=frozenset({number}),
        distances={},
        total_bytes=1024 * MIB,
        free_bytes=1024 * MIB,
        placeable_bytes=1024 * MIB,
        placeable_available_bytes=1024 * MIB,
        placeable_free_bytes=1024 * MIB,
        movable_bytes=0,
        movable_available_bytes=0,
        interleave_weight=1,
    )


HOST = Host(
    nodes=tuple(node(number) for number in range(N_NODES)),
    features={},
    cpuset=Cpuset(frozenset(range(N_NODES)), frozenset(range(N_NODES))),
    possible_nodes=frozenset(range(N_NODES)),
    kernel_release="7.2",
)


def test_guest_nodes_on_different_host_nodes_are_prefaulted_in_parallel_beside_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_at_work = threading.Barrier(N_NODES)
    jobs: list[PrefaultJob] = []

    def prefault(
        job: PrefaultJob, *, progress: Callable[[int], None], **_: object
    ) -> PrefaultResult:
        jobs.append(job)
        all_at_work.wait(10)
        progress(job.length)
        all_at_work.wait(10)
        return PrefaultResult(PrefaultOutcome.COMPLETE, job.length)

    monkeypatch.setattr(prefaulting, "prefault", prefault)
    regions = [
        Region(
            replace(PLAN, guest_node=number, host_nodes=frozenset({number})),
            -1,
            (0, number),
            PLAN.strategy,
            "",
        )
        for number in range(N_NODES)
    ]
    prefaulting.prefault_regions(
        regions,
        vm="db-01",
        host=HOST,
        reserve=Reserve(ratio=0.02, minimum_bytes=MIB),
        progress=lambda _: None,
        cancel=threading.Event(),
    )
    assert sorted(min(job.cpus) for job in jobs) == list(range(N_NODES))
    assert all(len(job.cpus) == 1 for job in jobs)
