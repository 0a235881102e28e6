"""VMs made by gmemd for tests, pages made by different hands, and a count that isn't gmemd's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gmemd.audit.vm import AuditedRegion, audit_vm
from gmemd.drift.compute import compute_drift
from gmemd.host.reading import read_host
from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, KvmVm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.regions import Region, provision_vm, release
from gmemd.plan.admission import Reserve
from gmemd.plan.planning import plan_vm
from gmemd.spec.model import GuestNode, PolicyMode, RegionSpec, Source, VmSpec
from tests.numa import vcpu
from tests.numa.counting import PAGE, counted_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.audit.model import VmAudit
    from gmemd.drift.model import GuestNodeDrift

MIB = 1 << 20
SIZE = 8 * MIB
PAGES = SIZE // PAGE


def region_spec(
    policy: PolicyMode, *host_nodes: int, size: int = SIZE, prefault: bool = False, **more: object
) -> RegionSpec:
    return RegionSpec(
        size_bytes=size,
        host_nodes=frozenset(host_nodes),
        policy=policy,
        prefault=prefault,
        **more,
    )


class PlacedVm(AbstractContextManager["PlacedVm"]):
    """A VM of one guest node, provisioned by gmemd as the daemon does it."""

    def __init__(self, *regions: RegionSpec, source: Source = Source.CREATE) -> None:
        self.host = read_host()
        spec = VmSpec(vm="placed", source=source, guest_nodes=(GuestNode(id=0, regions=regions),))
        reserve = Reserve(minimum_bytes=64 * MIB)
        self.plan = plan_vm(spec, self.host, reserve=reserve)
        assert self.plan.admitted, self.plan.refusals
        self.regions: list[Region] = provision_vm(
            self.plan,
            host=self.host,
            reserve=reserve,
            progress=lambda _progress: None,
            cancel=threading.Event(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        release(self.regions)

    @property
    def fd(self) -> int:
        return self.regions[0].fd

    def bound_to(self, guest: vcpu.Guest) -> None:
        """Replaces the memory by a guest_memfd of the guest's own VM, bound to its memslot.

        A guest_memfd can be bound to its maker's VM only; what ``register`` will do, by hand.
        """
        (region,) = self.regions
        flags = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
        size = region.plan.size_bytes
        region.close()
        region.fd = KvmVm(guest.vm_fd).create_guest_memfd(size, flags)
        told = region.plan.policy not in {PolicyMode.DEFAULT, PolicyMode.LOCAL}
        if region.plan.policy is not PolicyMode.DEFAULT:
            nodes = region.plan.host_nodes if told else frozenset()
            region.bind = bind_range(region.fd, 0, size, MemPolicy(str(region.plan.policy), nodes))
        guest.add_memory(region.fd, size, bound=True)

    def audit(self) -> VmAudit:
        regions = [AuditedRegion(region.fd, region.plan) for region in self.regions]
        return audit_vm("placed", regions)

    def drift(self, *, rebound: bool = False) -> GuestNodeDrift:
        """One audit, and the drift of the one guest node."""
        self.host = read_host()
        outcomes = {
            (0, index): str(region.bind.outcome)
            for index, region in enumerate(self.regions)
            if region.bind
        }
        late = {(0, index) for index in range(len(self.regions))} if rebound else ()
        found = compute_drift(self.plan, self.audit(), self.host, achieved=outcomes, rebound=late)
        return found.guest_nodes[0]


@contextmanager
def running_on(node: int) -> Iterator[None]:
    """This thread runs on a node's CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus_of(node))
    yield
    os.sched_setaffinity(0, before)


def cpus_of(node: int) -> set[int]:
    found = read_host(probe=False).node(node)
    assert found is not None
    return set(found.cpus)


def touch(vm: PlacedVm) -> None:
    """The host writes to all of it through a mapping."""
    with Mapping(vm.fd, 0, SIZE, protection="read-write") as window:
        window.populate_write(0, SIZE)


def fallocate(vm: PlacedVm) -> None:
    allocate(vm.fd, 0, SIZE)


def bound_vcpu(vm: PlacedVm) -> None:
    """A guest writes to all of it; the memory is bound to the guest's memslot."""
    with vcpu.Guest() as guest:
        vm.bound_to(guest)
        guest.write(0, PAGES)


def plain_vcpu(vm: PlacedVm) -> None:
    """A guest of a process that isn't gmemd writes to all of it; a plain memslot."""
    program = [sys.executable, str(Path(vcpu.__file__)), str(vm.fd), str(SIZE), f"0:{PAGES}"]
    subprocess.run(program, pass_fds=[vm.fd], check=True)


HANDS = {
    "host touch": touch,
    "fallocate": fallocate,
    "bound vcpu": bound_vcpu,
    "plain vcpu": plain_vcpu,
}


def counted(fd: int, size: int = SIZE, first: int = 0) -> dict[int, int]:
    """Bytes per node of a fully resident range from ``first`` to ``size``."""
    return counted_bytes(fd, first, size - first)
