"""Drift that the kernel really makes, and what gmemd says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.drift.model import Cause
from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import STATIC_NODES, MemPolicy, mbind
from gmemd.kernel.pages import cachestat, move_pages_query
from gmemd.memory.regions import rebind
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, VmSpec
from tests.numa.placing import (
    MIB,
    PAGE,
    PAGES,
    SIZE,
    PlacedVm,
    counted,
    fallocate,
    plain_vcpu,
    region_spec,
    running_on,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def full(node: int, *, but_bytes: int) -> Iterator[None]:
    """A node with no more than so much left to give."""
    from gmemd.host.zones import placeable  # noqa: PLC0415

    fd = create_memfd("filler", 2 << 30)
    try:
        filled = 0
        while (left := placeable()[node].placeable_available_bytes - but_bytes) > MIB:
            length = min(left, 64 * MIB) // PAGE * PAGE
            bind_range(fd, filled, length, MemPolicy("preferred", frozenset({node})))
            allocate(fd, filled, length)
            filled += length
            if filled > (1 << 30):
                break
        yield
    finally:
        os.close(fd)


def respecify(vm: PlacedVm, region: RegionSpec) -> None:
    """The spec asks for something else than what the memory was made for."""
    spec = VmSpec(vm="placed", guest_nodes=(GuestNode(id=0, regions=(region,)),))
    vm.plan = plan_vm(spec, vm.host)


def test_preferred_overflow_is_counted_to_the_byte() -> None:
    size = 256 * MIB
    with (
        full(2, but_bytes=64 * MIB),
        PlacedVm(region_spec(PolicyMode.PREFERRED, 2, size=size)) as vm,
    ):
        allocate(vm.fd, 0, size)
        counts = counted(vm.fd, size)
        drift = vm.drift()
    spilled = size - counts.get(2, 0)
    assert spilled > 0
    assert drift.misplaced_bytes == spilled
    assert drift.placed_bytes == size - spilled
    assert drift.by_node == counts
    assert drift.policy_match is True
    assert drift.cause is Cause.SPILLED
    assert "node 2 has" in drift.detail
    assert "can't be moved" in drift.remedy


@pytest.mark.lab(variant="movable")
@pytest.mark.parametrize("mode", [PolicyMode.BIND, PolicyMode.PREFERRED, PolicyMode.INTERLEAVE])
def test_a_movable_only_node_is_the_cause(mode: PolicyMode) -> None:
    """Nothing else than a VMM's own mbind gets there: gmemd refuses to provision it."""
    with PlacedVm(region_spec(PolicyMode.BIND, 2)) as vm:
        respecify(vm, region_spec(mode, 4))
        vm.regions[0].bind = bind_range(vm.fd, 0, SIZE, MemPolicy(str(mode), frozenset({4})))
        assert vm.drift().policy_match is True
        fallocate(vm)
        counts = counted(vm.fd)
        drift = vm.drift()
    assert 4 not in counts
    assert (drift.placed_bytes, drift.misplaced_bytes) == (0, SIZE)
    assert drift.by_node == counts
    assert drift.cause is Cause.MOVABLE_ONLY
    assert "ZONE_MOVABLE" in drift.detail
    assert "online_kernel" in drift.remedy


@pytest.mark.lab(variant="movable")
def test_interleave_with_a_movable_only_node_misses_its_shares() -> None:
    nodes = frozenset({2, 4})
    with PlacedVm(region_spec(PolicyMode.INTERLEAVE, 2)) as vm:
        respecify(vm, region_spec(PolicyMode.INTERLEAVE, *nodes))
        vm.regions[0].bind = bind_range(vm.fd, 0, SIZE, MemPolicy("interleave", nodes))
        fallocate(vm)
        counts = counted(vm.fd)
        drift = vm.drift()
    assert 4 not in counts
    assert drift.by_node == counts
    assert drift.share_error_ratio is not None
    assert drift.share_error_ratio >= 0.5 - PAGE / SIZE
    assert drift.cause is Cause.MOVABLE_ONLY


@pytest.mark.lab(variant="movable")
def test_a_memfd_lives_on_a_movable_only_node() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 4, backend=Backend.MEMFD)) as vm:
        fallocate(vm)
        assert counted(vm.fd) == {4: SIZE}
        assert not vm.drift().drifting


@pytest.fixture
def cpuset_of() -> Iterator[Callable[[str], Path]]:
    """Makes a cgroup whose cpuset is these host nodes."""
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    group = CGROUPS / "gmemd-drift"
    group.mkdir()

    def make(mems: str) -> Path:
        (group / "cpuset.mems").write_text(mems)
        return group

    yield make
    group.rmdir()


def test_the_cpuset_of_the_task_that_touches_wins_and_is_the_cause(
    cpuset_of: Callable[[str], Path],
) -> None:
    group = cpuset_of("1")
    with PlacedVm(region_spec(PolicyMode.BIND, 3)) as vm:
        toucher = (
            "import os, sys\n"
            "open(sys.argv[2], 'w').write(str(os.getpid()))\n"
            "from gmemd.kernel.fallocate import allocate\n"
            f"allocate(int(sys.argv[1]), 0, {SIZE})\n"
        )
        subprocess.run(
            [sys.executable, "-c", toucher, str(vm.fd), str(group / "cgroup.procs")],
            pass_fds=[vm.fd],
            check=True,
        )
        counts = counted(vm.fd)
        drift = vm.drift()
    assert counts == {1: SIZE}
    assert drift.policy_match is True
    assert (drift.placed_bytes, drift.misplaced_bytes) == (0, SIZE)
    assert drift.cause is Cause.CPUSET
    assert "a task whose cpuset leaves out node 3" in drift.detail


def test_somebody_elses_mbind_is_seen_before_a_page_is_made() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 3)) as vm:
        assert not vm.drift().drifting
        with Mapping(vm.fd, 0, SIZE) as vmm:
            mbind(vmm.address, SIZE, MemPolicy("preferred", frozenset({0})))
        drift = vm.drift()
        assert drift.resident_bytes == 0
        assert drift.policy_match is False
        assert drift.cause is Cause.POLICY_CHANGED
        assert "the kernel holds preferred 0, the spec asks bind 3" in drift.detail
        fallocate(vm)
        assert vm.drift().misplaced_bytes == SIZE


def test_a_node_that_is_offline_is_the_cause() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 0)) as vm:
        (region,) = vm.regions
        respecify(vm, region_spec(PolicyMode.BIND, 0, 5))
        nodes = frozenset({0, 5})
        for flags in (0, STATIC_NODES):
            region.bind = bind_range(region.fd, 0, SIZE, MemPolicy("bind", nodes, flags))
            drift = vm.drift()
            assert drift.policy_match is False
            assert drift.cause is Cause.NODE_OFFLINE
            assert "node 5" in drift.detail
            assert "bring the memory of node 5 online" in drift.remedy


def test_a_changed_spec_finds_pages_of_before() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 1)) as vm:
        allocate(vm.fd, 0, SIZE // 2)
        respecify(vm, region_spec(PolicyMode.BIND, 2))
        rebind(vm.regions[0], vm.plan.regions[0])
        fallocate(vm)
        counts = counted(vm.fd)
        drift = vm.drift(rebound=True)
    assert counts == {1: SIZE // 2, 2: SIZE // 2}
    assert drift.policy_match is True
    assert drift.misplaced_bytes == SIZE // 2
    assert drift.cause is Cause.POLICY_CHANGED
    assert "the spec was changed to bind 2" in drift.detail


def test_no_policy_but_an_expectation() -> None:
    with PlacedVm(region_spec(PolicyMode.DEFAULT, 3)) as vm:
        with running_on(0):
            plain_vcpu(vm)
        drift = vm.drift()
    assert drift.by_node == {0: SIZE}
    assert drift.policy_match is True
    assert drift.cause is Cause.NO_POLICY


def test_memfd_pages_that_were_moved() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 3, backend=Backend.MEMFD)) as vm:
        fallocate(vm)
        assert not vm.drift().drifting
        with Mapping(vm.fd, 0, SIZE, protection="read") as window:
            window.populate_read(0, SIZE)
            subprocess.run(["migratepages", str(os.getpid()), "3", "1"], check=True)
            (node,) = set(move_pages_query(0, [window.address]))
        counts = counted(vm.fd)
        drift = vm.drift()
    assert node == 1
    assert counts == {1: SIZE}
    assert drift.cause is Cause.MOVED
    assert "migratepages" in drift.remedy


def test_guest_memfd_pages_stay_whatever_asks_them_to_move() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 3)) as vm:
        fallocate(vm)
        with Mapping(vm.fd, 0, SIZE, protection="read") as window:
            window.populate_read(0, SIZE)
            subprocess.run(["migratepages", str(os.getpid()), "3", "1"], check=False)
        assert counted(vm.fd) == {3: SIZE}
        assert not vm.drift().drifting
        assert cachestat(vm.fd, 0, SIZE).pages == PAGES


def test_two_regions_filled_by_one_task_in_turn_miss_their_shares() -> None:
    """Round-robin goes by task: one that alternates puts each region on a node of its own."""
    regions = [region_spec(PolicyMode.INTERLEAVE, 0, 1) for _ in range(2)]
    with PlacedVm(*regions) as vm:
        for page in range(PAGES):
            for region in vm.regions:
                allocate(region.fd, page * PAGE, PAGE)
        drift = vm.drift()
    assert drift.by_node == {0: SIZE, 1: SIZE}
    assert drift.share_error_ratio == 0.5
    assert drift.policy_match is True
    assert drift.cause is Cause.SHARES
