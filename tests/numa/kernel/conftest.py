"""Files on a host of four nodes, cpusets, and a count of pages that doesn't use gmemd's scan."""

import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.pages import scan_window

SIZE = 4 << 20
CGROUPS = Path("/sys/fs/cgroup")

Place = Callable[..., dict[int, int]]
Run = Callable[[str, Callable[[], Any]], Any]


@pytest.fixture
def make_guest_memfd() -> Iterator[Callable[[int], int]]:
    """Makes mappable guest_memfds of a size in bytes; their VM is gone at once."""
    fds: list[int] = []

    def make(size_bytes: int) -> int:
        with Kvm() as kvm, kvm.create_vm() as vm:
            flags = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
            fds.append(vm.create_guest_memfd(size_bytes, flags))
        return fds[-1]

    yield make
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


@pytest.fixture
def guest_memfd(make_guest_memfd: Callable[[int], int]) -> int:
    return make_guest_memfd(SIZE)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = create_memfd("test", SIZE)
    yield fd
    os.close(fd)


@pytest.fixture(params=["guest_memfd", "memfd"])
def fd(request: pytest.FixtureRequest) -> int:
    return int(request.getfixturevalue(request.param))


def by_numa_maps(fd: int, offset: int, length: int) -> dict[int, int]:
    """Pages per node of a range that is resident throughout, as numa_maps counts them."""
    with Mapping(fd, offset, length, protection="read") as window:
        window.populate_read(0, length)
        line = next(
            line
            for line in Path("/proc/self/numa_maps").read_text().splitlines()
            if line.startswith(f"{window.address:x} ")
        )
    return {int(node): int(pages) for node, pages in re.findall(r" N(\d+)=(\d+)", line)}


def seen(fd: int, offset: int, length: int) -> dict[int, int]:
    """Pages per node of a range that is resident throughout; both ways of counting agree."""
    with Mapping(fd, offset, length, protection="read") as window:
        scan = scan_window(window, 0, length, per_page=True)
    assert scan.errors == {}
    assert scan.resident_pages == length // PAGE_SIZE
    assert Counter(scan.nodes) == scan.by_node
    assert by_numa_maps(fd, offset, length) == scan.by_node
    return dict(scan.by_node)


@pytest.fixture
def place() -> Place:
    """Refills a range, by fallocate or by touch, and tells the pages per node."""

    def refill(fd: int, offset: int, length: int, *, touch: bool = False) -> dict[int, int]:
        punch_hole(fd, offset, length)
        if touch:
            with Mapping(fd, offset, length, protection="read-write") as window:
                window.populate_write(0, length)
        else:
            allocate(fd, offset, length)
        return seen(fd, offset, length)

    return refill


def in_child(call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call gives
    """What ``call`` gives, made in a child process that is dead afterwards."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result: object = call()
        except BaseException as error:  # noqa: BLE001 - it is raised again by the parent
            result = RuntimeError(repr(error))
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pickle.loads(pipe.read())  # noqa: S301 - from our own child
    os.waitpid(child, 0)
    if isinstance(result, RuntimeError):
        raise result
    return result


@pytest.fixture
def in_cpuset() -> Iterator[Run]:
    """Makes a call in a child whose cpuset allows only some host nodes."""
    group = CGROUPS / "gmemd-test"
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    group.mkdir()

    def run(mems: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call gives
        (group / "cpuset.mems").write_text(mems)

        def inside() -> Any:  # noqa: ANN401 - what the call gives
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return call()

        return in_child(inside)

    yield run
    group.rmdir()


@pytest.fixture
def child() -> Callable[[Callable[[], Any]], Any]:
    return in_child
