from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel import pages
from gmemd.kernel.bind import BindOutcome, read_policy
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.memory.regions import provision_vm, release
from gmemd.plan.admission import Reserve
from gmemd.plan.model import Strategy, VmPlan
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress

pytestmark = pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")

MIB = 1 << 20
RESERVE = Reserve(ratio=0.02, minimum_bytes=256 * MIB)
Plan = Callable[..., VmPlan]


def provision(
    plan: VmPlan,
    host: Host,
    *,
    reserve: Reserve = RESERVE,
    progress: Callable[[Progress], None] = lambda _: None,
    cancel: threading.Event | None = None,
) -> list:  # type: ignore[type-arg]
    return provision_vm(
        plan, host=host, reserve=reserve, progress=progress, cancel=cancel or threading.Event()
    )


def test_a_vm_of_two_guest_nodes_is_whole(vm_plan: Plan, host: Host) -> None:
    told: list[Progress] = []
    regions = provision(vm_plan(64 * MIB, 32 * MIB), host, progress=told.append)
    try:
        assert [region.plan.guest_node for region in regions] == [0, 1]
        assert len({region.inode for region in regions}) == 2
        for region in regions:
            size = region.plan.size_bytes
            assert pages.cachestat(region.fd, 0, size).pages * 4096 == size
        assert told[0].allocated_bytes == 0
        assert told[-1].ratio == 1.0
    finally:
        release(regions)
    assert all(region.fd == -1 for region in regions)


def test_what_was_achieved_is_what_the_kernel_kept(vm_plan: Plan, host: Host) -> None:
    """With inode policies the plan's strategy stands; before 6.19 the helper does the placing."""
    regions = provision(vm_plan(4 * MIB), host)
    try:
        (region,) = regions
        assert region.bind is not None
        if region.bind.outcome is BindOutcome.NOT_KEPT:
            assert region.strategy is Strategy.PROXY_ALLOCATION
            assert "another mapping" in region.reason
        else:
            assert region.strategy is Strategy.INODE_POLICY
            assert read_policy(region.fd, 0) == region.bind.requested
    finally:
        release(regions)


def test_neither_policy_nor_prefault_is_unmanaged(vm_plan: Plan, host: Host) -> None:
    plan = vm_plan(4 * MIB, strategy=Strategy.PROXY_ALLOCATION, prefault=False)
    regions = provision(plan, host)
    try:
        assert regions[0].strategy is Strategy.UNMANAGED
        assert "prefault" in regions[0].reason
        assert pages.cachestat(regions[0].fd, 0, 4 * MIB).pages == 0
    finally:
        release(regions)


def test_with_a_peer_that_pays_nothing_is_prefaulted_yet(vm_plan: Plan, host: Host) -> None:
    regions = provision(vm_plan(4 * MIB, backend=Backend.MEMFD, cgroup="peer"), host)
    try:
        assert pages.cachestat(regions[0].fd, 0, 4 * MIB).pages == 0
        assert "cgroup: peer" in regions[0].reason
    finally:
        release(regions)


@pytest.mark.parametrize("mode", list(PolicyMode))
def test_a_memfd_of_every_mode_is_prefaulted(vm_plan: Plan, host: Host, mode: PolicyMode) -> None:
    regions = provision(vm_plan(8 * MIB, backend=Backend.MEMFD, policy=mode), host)
    try:
        assert os.fstat(regions[0].fd).st_blocks * 512 == 8 * MIB
        if mode is not PolicyMode.DEFAULT:
            assert regions[0].bind is not None
            assert regions[0].bind.ok, regions[0].bind
    finally:
        release(regions)


def test_a_node_that_cannot_hold_it_fails_with_figures_and_gives_all_back(
    vm_plan: Plan, host: Host, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    with pytest.raises(ProvisionError) as caught:
        provision(vm_plan(64 * MIB, 256 * MIB), host, reserve=Reserve(minimum_bytes=1 << 60))
    error = caught.value
    assert (error.reason, error.host_node) == ("node-full", 0)
    assert error.message.startswith("node 0 is full: test: guest node 0 has 0")
    assert "reserve" in error.message
    assert error.needed_bytes == 64 * MIB
    assert error.hint
    assert open_fds() == before


def test_cancelled_it_gives_all_back(
    vm_plan: Plan, host: Host, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    cancel = threading.Event()

    def tell(progress: Progress) -> None:
        if progress.allocated_bytes:
            cancel.set()

    with pytest.raises(ProvisionCancelledError):
        provision(vm_plan(256 * MIB, 256 * MIB), host, progress=tell, cancel=cancel)
    assert open_fds() == before


def test_a_cgroup_that_does_not_exist_is_said(
    vm_plan: Plan, host: Host, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    plan = vm_plan(4 * MIB, backend=Backend.MEMFD, cgroup="/no/such/cgroup")
    with pytest.raises(ProvisionError, match="cgroup /no/such/cgroup does not exist") as caught:
        provision(plan, host)
    assert caught.value.reason == "cgroup"
    assert open_fds() == before


def test_huge_pages_that_are_not_there_fail_with_the_pool(
    vm_plan: Plan, host: Host, open_fds: Callable[[], set[str]]
) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not pool.exists() or int(pool.read_text()) != 0:
        pytest.skip("needs an empty pool of 2 MiB pages")
    before = open_fds()
    plan = vm_plan(
        8 * MIB,
        backend=Backend.MEMFD,
        page_size=2 * MIB,
        strategy=Strategy.PROXY_ALLOCATION,
    )
    with pytest.raises(ProvisionError) as caught:
        provision(plan, host)
    assert caught.value.reason == "pool-empty"
    assert "nr_hugepages" in str(caught.value.hint)
    assert open_fds() == before
