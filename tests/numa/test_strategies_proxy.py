"""proxy-allocation: memory that can't have a policy lands on its nodes by the helper's own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gmemd.host.reading import read_host
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.guard import Guard
from gmemd.memory.placement import any_cpus, cpus_beside
from gmemd.memory.prefault import PrefaultJob, PrefaultOutcome, PrefaultResult, prefault
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.provisioning import (
    MIB,
    bytes_by_node,
    difference,
    huge_pages,
    huge_pages_free,
    planned,
    provisioned,
    region,
    spec,
)

MODES = [
    ("bind", {2}, {2: 64}),
    ("bind", {3}, {3: 64}),
    ("preferred", {1}, {1: 64}),
    ("preferred-many", {2}, {2: 64}),
    ("interleave", {0, 3}, {0: 32, 3: 32}),
]


def allocate_by_proxy(fd: int, mode: str, nodes: set[int], page_size: int = 4096) -> PrefaultResult:
    host = read_host(probe=False)
    job = PrefaultJob(
        fd=fd,
        offset=0,
        length=os.fstat(fd).st_size,
        page_size=page_size,
        guard=Guard(dict.fromkeys(nodes, 64 * MIB)) if page_size == 4096 else None,
        task_policy=MemPolicy(mode, frozenset(nodes)),
        cpus=cpus_beside(frozenset(nodes), host),
        any_cpus=any_cpus(host),
    )
    return prefault(job, progress=lambda _: None, cancel=threading.Event())


@pytest.mark.parametrize("flags", [0, 1], ids=["unmappable", "private"])
@pytest.mark.parametrize(("mode", "nodes", "expected"), MODES)
def test_guest_memfds_without_a_policy(
    flags: int, mode: str, nodes: set[int], expected: dict[int, int]
) -> None:
    (fd,) = create_guest_memfds([64 * MIB], flags=flags)
    try:
        before = bytes_by_node()
        result = allocate_by_proxy(fd, mode, nodes)
        found = difference(bytes_by_node(), before)
    finally:
        os.close(fd)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert result.allocated_bytes == 64 * MIB
    assert {node: found.get(node, 0) for node in expected} == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("mode", "nodes", "expected"),
    [("bind", {2}, {2: 64}), ("interleave", {2, 3}, {2: 32, 3: 32}), ("preferred", {3}, {3: 64})],
)
def test_hugetlb(mode: str, nodes: set[int], expected: dict[int, int]) -> None:
    with huge_pages(2, 40), huge_pages(3, 40):
        fd = create_memfd("test", 64 * MIB, page_size=2 * MIB)
        try:
            before = huge_pages_free()
            result = allocate_by_proxy(fd, mode, nodes, 2 * MIB)
            taken = difference(before, huge_pages_free())
        finally:
            os.close(fd)
    assert result.outcome is PrefaultOutcome.COMPLETE
    assert result.allocated_bytes == 64 * MIB
    assert taken == expected


def test_a_vm_of_huge_pages_is_placed_whole() -> None:
    with huge_pages(1, 20), huge_pages(2, 20):
        wanted = spec(
            region(32, {1}, backend=Backend.MEMFD, page_size=2 * MIB),
            region(32, {2}, backend=Backend.MEMFD, page_size=2 * MIB),
        )
        before = huge_pages_free()
        with provisioned(planned(wanted)) as regions:
            assert {one.strategy for one in regions} == {Strategy.PROXY_ALLOCATION}
            assert difference(before, huge_pages_free()) == {1: 32, 2: 32}
        assert huge_pages_free() == before


def test_a_bind_on_a_pool_that_is_too_small_takes_no_other_nodes_pages() -> None:
    with huge_pages(2, 10), huge_pages(3, 40):
        fd = create_memfd("test", 64 * MIB, page_size=2 * MIB)
        try:
            before = huge_pages_free()
            result = allocate_by_proxy(fd, "bind", {2}, 2 * MIB)
            taken = difference(before, huge_pages_free())
        finally:
            os.close(fd)
    assert result.outcome is PrefaultOutcome.POOL_EMPTY
    assert taken == {2: 20}
    assert result.allocated_bytes == 20 * MIB


def test_default_and_local_bring_pages_to_a_node_without_cpus() -> None:
    for mode in (PolicyMode.DEFAULT, PolicyMode.LOCAL):
        before = bytes_by_node()
        with provisioned(planned(spec(region(64, {2}, mode)))):
            found = difference(bytes_by_node(), before)
        assert found.get(2, 0) == pytest.approx(64, abs=1)


def test_the_helper_runs_beside_the_memory() -> None:
    """Node 2 has no CPU; node 0 is nearer to it than node 1."""
    host = read_host(probe=False)
    assert cpus_beside(frozenset({2}), host) == host.nodes[0].cpus
    assert cpus_beside(frozenset({3}), host) == host.nodes[1].cpus
    assert cpus_beside(frozenset({1}), host) == host.nodes[1].cpus
    seen: list[str] = []

    def look(_: object) -> None:
        for thread in Path("/proc/self/task").iterdir():
            children = (thread / "children").read_text().split()
            seen.extend(Path(f"/proc/{child}/status").read_text() for child in children)

    with provisioned(planned(spec(region(64, {3}))), progress=look):
        assert any("Cpus_allowed_list:\t2-3\n" in status for status in seen)
