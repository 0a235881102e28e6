"""Memory that a VMM made, and memory that is prefaulted when a VMM takes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel import pages
from gmemd.kernel.bind import read_policy
from gmemd.kernel.fallocate import allocate
from gmemd.kernel.identity import guest_memfd_device, identify_memory
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.memory.received import place_received, prefault_acquired
from gmemd.memory.regions import provision_vm, rebind, release
from gmemd.memory.residency import allocated_bytes
from gmemd.plan.admission import Reserve
from gmemd.plan.model import Strategy, VmPlan
from gmemd.spec.model import Backend, PolicyMode

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress
    from gmemd.memory.regions import Region

MIB = 1 << 20
HUGE = 2 << 20
SIZE = 32 * MIB
RESERVE = Reserve(ratio=0.02, minimum_bytes=256 * MIB)
BOUND = MemPolicy("bind", frozenset({0}))
DEFAULT = MemPolicy("default")
Plan = Callable[..., VmPlan]
Place = Callable[..., list["Region"]]

unmapped = pytest.mark.needs("guest_memfd")


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("theirs", SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def place(host: Host) -> Iterator[Place]:
    """Takes regions of one plan that lie at these offsets of a file; released at the end."""
    placed: list[Region] = []

    def do(
        plan: VmPlan,
        fd: int,
        *offsets: int,
        reserve: Reserve = RESERVE,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        payer_fd: int | None = None,
    ) -> list[Region]:
        file = identify_memory(fd, guest_memfd_device=guest_memfd_device(fd))
        received = [
            (region, fd, offset, file) for region, offset in zip(plan.regions, offsets, strict=True)
        ]
        regions = place_received(
            received,
            spec=plan.spec,
            host=host,
            reserve=reserve,
            progress=progress,
            cancel=cancel or threading.Event(),
            payer_fd=payer_fd,
        )
        placed.extend(regions)
        return regions

    yield do
    release(placed)


def cached(fd: int, offset: int, length: int) -> int:
    return pages.cachestat(fd, offset, length).pages * 4096


def test_a_piece_of_a_file_gets_its_policy_and_nothing_else_does(
    vm_plan: Plan, place: Place, memfd: int
) -> None:
    allocate(memfd, 0, 3 * MIB)
    plan = vm_plan(8 * MIB, backend=Backend.MEMFD, prefault=False)
    (region,) = place(plan, memfd, 2 * MIB)
    assert read_policy(memfd, 2 * MIB) == read_policy(memfd, 10 * MIB - 4096) == BOUND
    assert read_policy(memfd, 2 * MIB - 4096) == read_policy(memfd, 10 * MIB) == DEFAULT
    assert (region.strategy, region.offset, region.resident_before) == (
        Strategy.INODE_POLICY,
        2 * MIB,
        MIB,
    )
    assert cached(memfd, 0, SIZE) == 3 * MIB


def test_the_region_holds_the_file_and_the_caller_keeps_its_own(
    vm_plan: Plan, place: Place, memfd: int
) -> None:
    plan = vm_plan(SIZE, backend=Backend.MEMFD, prefault=False)
    (region,) = place(plan, memfd, 0)
    status = os.fstat(memfd)
    assert region.fd != memfd
    assert region.inode == (status.st_dev, status.st_ino)
    assert not os.get_inheritable(region.fd)
    release([region])
    assert os.fstat(memfd).st_size == SIZE


def test_what_is_to_be_prefaulted_is_and_the_rest_of_the_file_is_not(
    vm_plan: Plan, place: Place, memfd: int
) -> None:
    told: list[Progress] = []
    allocate(memfd, 5 * MIB, MIB)
    plan = vm_plan(8 * MIB, 4 * MIB, backend=Backend.MEMFD)
    regions = place(plan, memfd, 4 * MIB, 20 * MIB, progress=told.append)
    assert cached(memfd, 4 * MIB, 8 * MIB) == 8 * MIB
    assert cached(memfd, 20 * MIB, 4 * MIB) == 4 * MIB
    assert cached(memfd, 0, SIZE) == 12 * MIB
    assert [region.resident_before for region in regions] == [MIB, 0]
    assert (told[-1].allocated_bytes, told[-1].total_bytes) == (12 * MIB, 12 * MIB)


def test_what_was_written_before_is_left_alone(vm_plan: Plan, place: Place, memfd: int) -> None:
    content = os.urandom(MIB)
    os.pwrite(memfd, content, 7 * MIB)
    place(vm_plan(SIZE, backend=Backend.MEMFD), memfd, 0)
    assert os.pread(memfd, MIB, 7 * MIB) == content


@pytest.mark.parametrize("mode", [PolicyMode.LOCAL, PolicyMode.DEFAULT, PolicyMode.INTERLEAVE])
@pytest.mark.parametrize("prefault", [True, False])
def test_the_policy_holds_after_the_prefault(
    vm_plan: Plan,
    place: Place,
    memfd: int,
    mode: PolicyMode,
    prefault: bool,  # noqa: FBT001
) -> None:
    plan = vm_plan(8 * MIB, backend=Backend.MEMFD, policy=mode, prefault=prefault)
    (region,) = place(plan, memfd, 8 * MIB)
    policy = read_policy(memfd, 8 * MIB)
    assert policy is not None
    assert policy.mode == mode
    assert cached(memfd, 0, SIZE) == (8 * MIB if prefault else 0)
    assert region.strategy is Strategy.INODE_POLICY


@unmapped
def test_a_guest_memfd_that_cannot_be_mapped_is_placed_by_a_helper_or_not_at_all(
    vm_plan: Plan, place: Place, guest_memfd: Callable[..., int]
) -> None:
    fd = guest_memfd(SIZE, flags=0)
    (helped,) = place(vm_plan(8 * MIB), fd, 0)
    assert helped.strategy is Strategy.PROXY_ALLOCATION
    assert "can't be mapped" in helped.reason
    (left,) = place(vm_plan(8 * MIB, prefault=False), fd, 8 * MIB)
    assert left.strategy is Strategy.UNMANAGED
    assert "prefault: true" in left.reason
    assert cached(fd, 0, SIZE) == 8 * MIB


@pytest.mark.needs("guest_memfd_mmap")
def test_private_memory_is_tried_and_never_read(
    vm_plan: Plan, place: Place, guest_memfd: Callable[..., int]
) -> None:
    fd = guest_memfd(SIZE, flags=1)
    (region,) = place(vm_plan(8 * MIB, prefault=False), fd, 8 * MIB)
    assert region.bind is not None
    kept = read_policy(fd, 8 * MIB) == BOUND
    assert region.strategy is (Strategy.INODE_POLICY if kept else Strategy.UNMANAGED)
    assert region.bind.ok is kept
    assert cached(fd, 0, SIZE) == 0


def test_huge_pages_of_a_piece_of_a_file(
    vm_plan: Plan,
    place: Place,
    host: Host,
    huge_pool: None,  # noqa: ARG001
) -> None:
    fd = create_memfd("theirs", 8 * HUGE, page_size=HUGE)
    try:
        allocate(fd, 0, 3 * HUGE)
        plan = vm_plan(
            4 * HUGE,
            backend=Backend.MEMFD,
            page_size=HUGE,
            strategy=Strategy.PROXY_ALLOCATION,
            nodes=frozenset(node.id for node in host.nodes if node.has_memory),
        )
        (region,) = place(plan, fd, 2 * HUGE)
        assert region.resident_before == HUGE
        assert allocated_bytes(fd, 2 * HUGE, 4 * HUGE, HUGE) == 4 * HUGE
        assert allocated_bytes(fd, 6 * HUGE, 2 * HUGE, HUGE) == 0
        assert os.fstat(fd).st_blocks * 512 == 6 * HUGE
        release([region])
    finally:
        os.close(fd)


def test_a_node_without_room_leaves_nothing_held(
    vm_plan: Plan, place: Place, memfd: int, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    with pytest.raises(ProvisionError) as caught:
        place(
            vm_plan(4 * MIB, 8 * MIB, backend=Backend.MEMFD),
            memfd,
            0,
            8 * MIB,
            reserve=Reserve(minimum_bytes=1 << 60),
        )
    assert caught.value.reason == "node-full"
    assert open_fds() == before


def test_nodes_that_are_not_there_leave_nothing_held(
    vm_plan: Plan, place: Place, memfd: int, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    plan = vm_plan(4 * MIB, backend=Backend.MEMFD, nodes=frozenset({900}))
    with pytest.raises(ProvisionError, match="node 900 is offline") as caught:
        place(plan, memfd, 0)
    assert (caught.value.reason, caught.value.host_node) == ("policy", 900)
    assert open_fds() == before


def test_cancelled_it_holds_nothing(
    vm_plan: Plan, place: Place, memfd: int, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ProvisionCancelledError):
        place(vm_plan(4 * MIB, backend=Backend.MEMFD), memfd, 0, cancel=cancel)
    assert open_fds() == before


def test_a_changed_policy_rules_the_same_piece(vm_plan: Plan, place: Place, memfd: int) -> None:
    before = vm_plan(8 * MIB, backend=Backend.MEMFD, prefault=False)
    (region,) = place(before, memfd, 8 * MIB)
    after = vm_plan(8 * MIB, backend=Backend.MEMFD, prefault=False, policy=PolicyMode.INTERLEAVE)
    rebind(region, after.regions[0])
    policies = [read_policy(memfd, offset) for offset in (0, 8 * MIB, 16 * MIB)]
    assert policies == [DEFAULT, MemPolicy("interleave", frozenset({0})), DEFAULT]


def test_a_peer_that_should_pay_must_say_how(
    vm_plan: Plan, place: Place, memfd: int, open_fds: Callable[[], set[str]]
) -> None:
    before = open_fds()
    plan = vm_plan(4 * MIB, backend=Backend.MEMFD, cgroup="peer")
    for payer_fd, said in ((None, "no cgroup came"), (memfd, "is no cgroup's cgroup.procs")):
        with pytest.raises(ProvisionError, match=said) as caught:
            place(plan, memfd, 0, payer_fd=payer_fd)
        assert caught.value.reason == "cgroup"
    assert cached(memfd, 0, SIZE) == 0
    assert open_fds() == before


@pytest.fixture
def payer() -> Iterator[tuple[Path, int]]:
    """A cgroup, and its cgroup.procs open for writing."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    unified = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    if not unified:
        pytest.skip("no cgroup v2 here")
    directory = Path(unified[0], "gmemd-test-received")
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    fd = os.open(directory / "cgroup.procs", os.O_WRONLY)
    yield directory, fd
    os.close(fd)
    directory.rmdir()


@pytest.mark.parametrize("mode", [PolicyMode.BIND, PolicyMode.LOCAL])
def test_who_takes_it_pays_by_a_descriptor(
    vm_plan: Plan, host: Host, payer: tuple[Path, int], mode: PolicyMode
) -> None:
    directory, procs = payer
    inside: set[str] = set()
    plan = vm_plan(64 * MIB, backend=Backend.MEMFD, cgroup="peer", policy=mode)
    common = {"host": host, "reserve": RESERVE, "cancel": threading.Event()}
    regions = provision_vm(plan, progress=lambda _: None, **common)
    try:
        (region,) = regions
        assert "cgroup: peer" in region.reason
        prefault_acquired(
            regions,
            vm="test",
            progress=lambda _: inside.update((directory / "cgroup.procs").read_text().split()),
            payer_fd=procs,
            payer=directory,
            **common,
        )
        assert cached(region.fd, 0, 64 * MIB) == 64 * MIB
        assert len(inside) == 1
        assert (region.cgroup, region.own_cgroup) == (directory, False)
        assert "cgroup: peer" not in region.reason
        policy = read_policy(region.fd, 0)
        assert policy is not None
        assert policy.mode == mode
    finally:
        release(regions)
    assert directory.exists(), "it isn't gmemd's to remove"


def test_a_cgroup_that_cannot_be_joined_is_said(vm_plan: Plan, host: Host, memfd: int) -> None:
    """A file that isn't open for writing takes no process, as a cgroup of somebody else's."""
    plan = vm_plan(4 * MIB, backend=Backend.MEMFD, cgroup="peer")
    common = {"host": host, "reserve": RESERVE, "cancel": threading.Event()}
    regions = provision_vm(plan, progress=lambda _: None, **common)
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    try:
        with pytest.raises(ProvisionError, match="joining cgroup /test") as caught:
            prefault_acquired(
                regions,
                vm="test",
                progress=lambda _: None,
                payer_fd=read_only,
                payer=Path("/test"),
                **common,
            )
        assert caught.value.reason == "helper-failed"
        assert "only root" in str(caught.value.hint)
        assert cached(regions[0].fd, 0, 4 * MIB) == 0
    finally:
        os.close(read_only)
        release(regions)
