"""Memory that a VMM made, on the nodes that its policy names, at the cost of whom it should."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.audit.scan import scan_region
from gmemd.host.reading import read_host
from gmemd.kernel.identity import FileKind, guest_memfd_device, identify_memory
from gmemd.kernel.kvm import GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat
from gmemd.memory.received import place_received, prefault_acquired
from gmemd.memory.regions import Region, provision_vm, release
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.provisioning import (
    MIB,
    SMALL_RESERVE,
    bytes_by_node,
    difference,
    planned,
    region,
    run_on,
    spec,
)
from tests.numa.test_prefault_cgroup import charged, payer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["payer"]

SIZE = 64 * MIB
PAGEOUT = 21


def options() -> dict[str, Any]:
    return {
        "host": read_host(),
        "reserve": SMALL_RESERVE,
        "progress": lambda _: None,
        "cancel": threading.Event(),
    }


def place(fd: int, *pieces: tuple[int, int], payer_fd: int | None = None) -> list[Region]:
    """A region per piece (offset, node), of 64 MiB each, prefaulted where somebody pays."""
    file = identify_memory(fd, guest_memfd_device=guest_memfd_device(fd))
    backend = Backend(str(file.kind))
    wanted = spec(
        *(region(64, {node}, backend=backend) for _, node in pieces),
        cgroup="none" if payer_fd is None else "peer",
    )
    plans = planned(wanted).regions
    received = [(plan, fd, at, file) for plan, (at, _) in zip(plans, pieces, strict=True)]
    return place_received(received, spec=wanted, payer_fd=payer_fd, **options())


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("theirs", 4 * SIZE)
    yield fd
    os.close(fd)


def test_each_piece_of_one_file_is_on_its_node(memfd: int) -> None:
    before = bytes_by_node()
    regions = place(memfd, (0, 1), (2 * SIZE, 3))
    assert difference(bytes_by_node(), before) == {1: 64, 3: 64}
    seen = scan_region(
        memfd, guest_node=0, index=0, size_bytes=SIZE, page_size=4096, offset=2 * SIZE, idle=False
    )
    assert seen.by_node == {3: SIZE}
    release(regions)


def test_private_memory_is_placed_by_its_policy() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        fd = vm.create_guest_memfd(SIZE, GUEST_MEMFD_MMAP)
    try:
        before = bytes_by_node()
        (placed,) = place(fd, (0, 2))
        assert identify_memory(fd, guest_memfd_device=guest_memfd_device(fd)).kind is (
            FileKind.GUEST_MEMFD
        )
        assert placed.strategy is Strategy.INODE_POLICY
        assert placed.bind is not None
        assert placed.bind.ok
        assert difference(bytes_by_node(), before) == {2: 64}
        release([placed])
    finally:
        os.close(fd)


def test_whoever_touches_it_afterwards_gets_pages_of_its_node(memfd: int) -> None:
    lazily = region(64, {3}, backend=Backend.MEMFD).model_copy(update={"prefault": False})
    wanted = spec(lazily)
    (plan,) = planned(wanted).regions
    file = identify_memory(memfd, guest_memfd_device=None)
    (placed,) = place_received([(plan, memfd, SIZE, file)], spec=wanted, **options())
    before = bytes_by_node()
    run_on(1, lambda: write(memfd, SIZE, SIZE))
    run_on(1, lambda: write(memfd, 3 * SIZE, SIZE))
    assert difference(bytes_by_node(), before) == {1: 64, 3: 64}
    assert placed.resident_before == 0
    release([placed])


def write(fd: int, offset: int, length: int) -> None:
    with mmap.mmap(fd, length, offset=offset) as window:
        window[:] = b"x" * length


def test_who_registers_pays(payer: Path, memfd: int) -> None:
    procs = os.open(payer / "cgroup.procs", os.O_WRONLY)
    try:
        regions = place(memfd, (0, 1), (SIZE, 2), payer_fd=procs)
    finally:
        os.close(procs)
    assert charged(payer) == {1: 64, 2: 64}
    assert {one.cgroup for one in regions} == {payer}
    release(regions)


@pytest.mark.parametrize("policy", [PolicyMode.BIND, PolicyMode.LOCAL])
def test_who_acquires_pays(payer: Path, policy: PolicyMode) -> None:
    """Node 3 has no CPUs, so that a helper under `local` would put its pages elsewhere."""
    plan = planned(spec(region(64, {3}, policy), cgroup="peer"))
    regions = provision_vm(plan, **options())
    procs = os.open(payer / "cgroup.procs", os.O_WRONLY)
    try:
        assert charged(payer) == {}
        prefault_acquired(regions, vm="test", payer_fd=procs, payer=payer, **options())
        assert charged(payer) == {3: 64}
        bind = regions[0].bind
        assert bind is not None
        assert bind.requested.mode == policy
        assert bind.ok
    finally:
        os.close(procs)
        release(regions)


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    file = tmp_path / "swap"
    subprocess.run(["fallocate", "-l", "128M", str(file)], check=True)
    file.chmod(0o600)
    subprocess.run(["mkswap", str(file)], check=True, capture_output=True)
    done = subprocess.run(["swapon", str(file)], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no swap on this file system: {done.stderr.strip()}")
    yield
    subprocess.run(["swapoff", str(file)], check=True)


def test_what_is_swapped_out_stays_so(memfd: int, swap: None) -> None:  # noqa: ARG001
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(memfd, SIZE) as window:
        window[:] = os.urandom(SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(window))
        half = ctypes.c_size_t(SIZE // 2)
        assert libc.madvise(ctypes.c_void_p(address), half, PAGEOUT) == 0
        before = cachestat(memfd, 0, SIZE).pages
        assert before < SIZE // 4096, "nothing was swapped out: this shows nothing"
        seen = scan_region(
            memfd, guest_node=0, index=0, size_bytes=SIZE, page_size=4096, idle=False
        )
        after = cachestat(memfd, 0, SIZE).pages
    assert seen.resident_bytes == before * 4096
    assert after == before
