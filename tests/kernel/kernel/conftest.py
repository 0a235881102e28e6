"""Files to try the kernel with: a guest_memfd where there is KVM, and a memfd everywhere."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm, KvmVm
from gmemd.kernel.memfd import create_memfd

MIB = 1 << 20
SIZE = 16 * MIB
HUGE = 2 * MIB


@pytest.fixture
def vm() -> Iterator[KvmVm]:
    with Kvm() as kvm, kvm.create_vm() as made:
        yield made


@pytest.fixture
def guest_memfd(vm: KvmVm) -> Iterator[int]:
    fd = vm.create_guest_memfd(SIZE, GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
    yield fd
    os.close(fd)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("test", SIZE)
    yield fd
    os.close(fd)


@pytest.fixture(
    params=[
        pytest.param(
            "guest_memfd", marks=pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
        ),
        "memfd",
    ]
)
def fd(request: pytest.FixtureRequest) -> int:
    return int(request.getfixturevalue(request.param))


@pytest.fixture
def huge_fd() -> Iterator[int]:
    """A hugetlb memfd of eight pages of 2 MiB, from a pool that is made and given back."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = int(pool.read_text()) if pool.exists() else 0
    try:
        pool.write_text(f"{before + 8}\n")
    except OSError as error:
        pytest.skip(f"no pool of huge pages can be made: {error}")
    if int(pool.read_text()) < before + 8:
        pool.write_text(f"{before}\n")
        pytest.skip("too little memory in one piece for eight huge pages")
    fd = create_memfd("huge", 8 * HUGE, page_size=HUGE)
    yield fd
    os.close(fd)
    pool.write_text(f"{before}\n")


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """The test runs without privileges and owns nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def stranger() -> Callable[[Callable[[], object]], str]:
    """Calls something in a process of another user; gives the KernelError it met, as text."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")

    def run(call: Callable[[], object]) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                call()
            except KernelError as error:
                os.write(writing, f"{error}; hint: {error.hint}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said

    return run
