"""Audits on four nodes: sums that the kernel's own counters confirm, and memory out of sight."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gmemd.audit.counters import read_counters
from gmemd.audit.scan import scan_region
from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_MMAP
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.mempolicy import MemPolicy, get_task_policy, set_task_policy
from gmemd.kernel.pages import cachestat
from gmemd.memory.creator import create_guest_memfds
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.placing import MIB, PAGE, PlacedVm, counted, plain_vcpu, region_spec

BIG = 512 * MIB
CGROUPS = Path("/sys/fs/cgroup")


def test_half_a_gigabyte_over_four_nodes_is_exact() -> None:
    region = region_spec(PolicyMode.INTERLEAVE, 0, 1, 2, 3, size=BIG)
    with PlacedVm(region) as vm:
        for offset in range(0, BIG, 64 * MIB):
            allocate(vm.fd, offset, 16 * MIB)
            punch_hole(vm.fd, offset + MIB, MIB)
            allocate(vm.fd, offset + 32 * MIB, 1 * PAGE)
        before = cachestat(vm.fd, 0, BIG).pages
        (seen,) = vm.audit().regions
        assert cachestat(vm.fd, 0, BIG).pages == before == 8 * (15 * 256 + 1)
        assert seen.resident_bytes == sum(seen.by_node.values()) == before * PAGE
        assert set(seen.by_node) == {0, 1, 2, 3}
        assert seen.errors == {}


def test_a_policy_of_a_part_is_found() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 1, size=64 * MIB)) as vm:
        bind_range(vm.fd, 32 * MIB, 32 * MIB, MemPolicy("bind", frozenset({2})))
        allocate(vm.fd, 0, 64 * MIB)
        (seen,) = vm.audit().regions
        assert seen.by_node == {1: 32 * MIB, 2: 32 * MIB}
        assert seen.policy is not None
        assert seen.policy.nodes == {1}
        assert [policy.nodes for policy in seen.other_policies] == [{2}]
        drift = vm.drift()
        assert drift.policy_match is False
        assert drift.misplaced_bytes == 32 * MIB


@pytest.mark.parametrize("flags", [0, GUEST_MEMFD_MMAP])
def test_what_is_out_of_sight_is_counted_beside(flags: int) -> None:
    """The cgroup's counters say where unmappable and private pages are, all of them together."""
    size = 32 * MIB
    (fd,) = create_guest_memfds([size], flags=flags)
    group = CGROUPS / "gmemd-audit"
    (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    task = get_task_policy()
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        set_task_policy(MemPolicy("bind", frozenset({2})))
        allocate(fd, 0, size)
        seen = scan_region(fd, guest_node=0, index=0, size_bytes=size, page_size=PAGE)
        counters = read_counters(group)
    finally:
        set_task_policy(task)
        (CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
        os.close(fd)
        group.rmdir()
    assert seen.resident_bytes == seen.unknown_bytes == size
    assert seen.by_node == {}
    assert seen.unknown_reason
    assert counters is not None
    # The counter is the whole cgroup's and lags by a batch of pages per CPU.
    assert counters[2] == pytest.approx(size, abs=MIB)


def test_huge_pages_are_exact() -> None:
    pools = [
        Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
        for node in (2, 3)
    ]
    for pool in pools:
        pool.write_text("8")
    try:
        region = region_spec(
            PolicyMode.BIND,
            3,
            size=8 * MIB,
            backend=Backend.MEMFD,
            page_size=2 * MIB,
            prefault=True,
        )
        with PlacedVm(region) as vm:
            assert os.fstat(vm.fd).st_blocks * 512 == 8 * MIB
            (seen,) = vm.audit().regions
            assert seen.by_node == {3: 8 * MIB}
            assert counted(vm.fd, 8 * MIB) == {3: 8 * MIB}
            punch_hole(vm.fd, 2 * MIB, 2 * MIB)
            (seen,) = vm.audit().regions
            assert seen.by_node == {3: 6 * MIB}
            assert (seen.unknown_bytes, seen.errors) == (0, {})
            assert os.fstat(vm.fd).st_blocks * 512 == 6 * MIB
    finally:
        for pool in pools:
            pool.write_text("0")


def test_a_poisoned_page_is_unknown_and_its_neighbours_are_seen() -> None:
    """The kernel takes a page for broken hardware; the audit goes around it."""
    madv_hwpoison = 100
    libc = ctypes.CDLL(None, use_errno=True)
    with PlacedVm(region_spec(PolicyMode.BIND, 2, size=8 * MIB)) as vm:
        allocate(vm.fd, 0, 8 * MIB)
        with Mapping(vm.fd, 0, 8 * MIB, protection="read") as window:
            window.populate_read(0, 8 * MIB)
            address = ctypes.c_void_p(window.address + 700 * PAGE)
            # The kernel marks the page and says EBUSY, as guest_memfd doesn't let go of it.
            if libc.madvise(address, ctypes.c_size_t(PAGE), madv_hwpoison):
                assert ctypes.get_errno() == errno.EBUSY
        (seen,) = vm.audit().regions
        assert seen.by_node == {2: 8 * MIB - PAGE}
        assert seen.unknown_bytes == PAGE
        assert seen.errors == {"poisoned": 1}
        assert "poisoned" in seen.unknown_reason
        assert mmap.PAGESIZE == PAGE
        drift = vm.drift()
        assert drift.unknown_bytes == PAGE
        assert not drift.drifting
        assert drift.drift_upper_ratio is not None
        assert drift.drift_upper_ratio > 0


def test_a_guest_that_runs_elsewhere_changes_nothing_of_what_was_placed() -> None:
    with PlacedVm(region_spec(PolicyMode.BIND, 3, prefault=True)) as vm:
        (first,) = vm.audit().regions
        plain_vcpu(vm)
        (again,) = vm.audit().regions
        assert first.by_node == {3: first.size_bytes}
        assert replace(again, verified_timestamp=first.verified_timestamp) == first
