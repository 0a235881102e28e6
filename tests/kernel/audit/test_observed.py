"""A running VM's guest_memfd, taken for the time of a look from a process of another's."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.observed import Effort
from gmemd.daemon.observing import Finder
from gmemd.host.reading import read_host
from gmemd.spec.model import GuestNode, PolicyMode, RegionSpec, Source, VmSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.export.snapshot import VmStatus

REPOSITORY = Path(__file__).parents[3]
MIB = 1 << 20
SIZE = 64 * MIB
TOUCHED = 40 * MIB
ELSEWHERE = 500

VMM = f"""
import sys
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping

flags = int(sys.argv[1])
with Kvm("/dev/kvm") as kvm, kvm.create_vm() as vm:
    fd = vm.create_guest_memfd({SIZE}, flags)
    if flags:
        with Mapping(fd, 0, {SIZE}, protection="read-write") as window:
            window.populate_write(0, {TOUCHED})
    else:
        allocate(fd, 0, {TOUCHED})
    print("ready", flush=True)
    sys.stdin.read()
"""
"""A VMM of one guest node, as its command line says; its guest touched what is touched here."""

pytestmark = pytest.mark.needs("kvm", "guest_memfd_mmap")


@contextmanager
def vmm(flags: int) -> Iterator[int]:
    """The pid of a process that holds a KVM VM and a guest_memfd."""
    with subprocess.Popen(
        ["firecracker", "-c", VMM, str(flags), "--id", "vm"],
        executable=sys.executable,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def own_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def look(pid: int, sample_pages: int | None) -> VmStatus:
    finder = Finder()
    found = finder.find_pid(pid)
    assert found is not None
    assert found.vmm.kvm
    return finder.observe(found, read_host(probe=False), Effort(sample_pages, Random(1)))


@pytest.mark.parametrize("sample_pages", [None, 4096])
def test_a_guest_memfd_is_looked_at_through_a_mapping_of_ones_own(
    sample_pages: int | None,
) -> None:
    """Its VMM has it unmapped by now: only the guest, if at all, maps its pages."""
    fds = own_fds()
    with vmm(3) as pid:
        for _ in range(2):
            seen = look(pid, sample_pages)
            assert seen.drift is not None
            (node,) = seen.drift.guest_nodes
            assert [str(region.plan.backend) for region in seen.regions] == ["guest_memfd"]
            assert node.size_bytes == SIZE
            if sample_pages is None:
                assert (node.resident_bytes, node.unknown_bytes) == (TOUCHED, 0)
            else:
                assert sum(node.by_node_lower.values()) <= TOUCHED
                assert sum(node.by_node_upper.values()) >= TOUCHED
    assert own_fds() == fds


def test_a_guest_memfd_that_cant_be_mapped_is_counted_and_unknown() -> None:
    with vmm(0) as pid:
        seen = look(pid, 4096)
    assert seen.drift is not None
    (node,) = seen.drift.guest_nodes
    assert (node.resident_bytes, node.unknown_bytes) == (TOUCHED, TOUCHED)
    assert "made without the MMAP flag" in node.unknown_reason


def test_where_its_pages_are_is_told_if_asked() -> None:
    fds = own_fds()
    with vmm(3) as pid:
        finder = Finder()
        found = finder.find_pid(pid)
        assert found is not None
        effort = Effort(None, Random(1), where=True)
        seen = finder.observe(found, read_host(probe=False), effort)
        assert look(pid, None).audit.regions[0].where is None
    (region,) = seen.audit.regions
    assert region.where is not None
    (stretch,) = region.where.stretches
    touched = [sum(cell.by_node.values()) for cell in stretch.cells]
    assert (sum(touched), stretch.size_bytes) == (TOUCHED, SIZE)
    assert set(touched[: TOUCHED // stretch.cell_bytes]) == {stretch.cell_bytes}
    assert own_fds() == fds


def test_what_lies_wrong_by_its_spec_is_a_range() -> None:
    """No page of it can be on the host node that the spec names."""
    region = RegionSpec(
        size_bytes=SIZE, host_nodes=frozenset({ELSEWHERE}), policy=PolicyMode.DEFAULT
    )
    spec = VmSpec(vm="vm", source=Source.OBSERVE, guest_nodes=(GuestNode(id=0, regions=(region,)),))
    with vmm(3) as pid:
        finder = Finder()
        found = finder.find_pid(pid)
        assert found is not None
        effort = Effort(None, Random(1), where=True)
        seen = finder.observe(replace(found, spec=spec), read_host(probe=False), effort)
    assert seen.drift is not None
    assert seen.drift.guest_nodes[0].misplaced_bytes == TOUCHED
    assert seen.audit is not None
    where = seen.audit.regions[0].where
    assert where is not None
    (lying_wrong,) = where.misplaced
    assert (lying_wrong.offset, lying_wrong.size_bytes) == (0, TOUCHED)
    assert lying_wrong.gpa is None
