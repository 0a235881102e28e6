"""A guest_memfd of a real VM, and the ways in which its pages come to be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gmemd.audit.scan import scan_region
from gmemd.kernel.errors import KernelError
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm, KvmVm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.pages import cachestat
from tests.numa.vcpu import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.audit.model import RegionAudit

PAGE = 4096
MIB = 1 << 20


class Memory:
    """A mappable guest_memfd that is bound to a real guest's memory, page by page at hand."""

    def __init__(self, guest: Guest, size_bytes: int) -> None:
        flags = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
        self.size_bytes = size_bytes
        self.fd = KvmVm(guest.vm_fd).create_guest_memfd(size_bytes, flags)
        self._guest = guest
        guest.add_memory(self.fd, size_bytes, bound=True)
        self._window = Mapping(self.fd, 0, size_bytes, protection="read-write")

    def touch(self, first: int, count: int) -> None:
        self._window.populate_write(first * PAGE, count * PAGE)

    def allocate(self, first: int, count: int) -> None:
        allocate(self.fd, first * PAGE, count * PAGE)

    def guest_write(self, first: int, count: int) -> None:
        self._guest.write(first, count)

    def punch(self, first: int, count: int) -> None:
        punch_hole(self.fd, first * PAGE, count * PAGE)

    def cached(self, first: int = 0, count: int = -1) -> int:
        length = self.size_bytes if count < 0 else count * PAGE
        return cachestat(self.fd, first * PAGE, length).pages

    def scan(self, **options: object) -> RegionAudit:
        found = scan_region(
            self.fd,
            guest_node=0,
            index=0,
            size_bytes=self.size_bytes,
            page_size=PAGE,
            **options,
        )
        assert sum(found.by_node.values()) + found.unknown_bytes == found.resident_bytes
        return found

    def close(self) -> None:
        self._window.close()
        os.close(self.fd)


@pytest.fixture
def vm() -> Iterator[KvmVm]:
    try:
        kvm = Kvm()
    except KernelError as error:
        pytest.skip(f"no KVM here: {error}")
    with kvm, kvm.create_vm() as made:
        if not made.guest_memfd_flags() & GUEST_MEMFD_MMAP:
            pytest.skip("this kernel's guest_memfd can't be mapped")
        yield made


@pytest.fixture
def make_memory(vm: KvmVm) -> Iterator[Callable[[int], Memory]]:
    """A maker of guest_memfds of so many bytes."""
    assert vm.has_guest_memfd()
    made: list[Memory] = []
    guests: list[Guest] = []

    def make(size_bytes: int) -> Memory:
        guests.append(Guest())
        made.append(Memory(guests[-1], size_bytes))
        return made[-1]

    yield make
    for memory in made:
        memory.close()
    for guest in guests:
        guest.close()
