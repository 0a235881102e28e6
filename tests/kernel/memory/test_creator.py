from __future__ import annotations

import errno
import fcntl
import os
import resource
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel import fallocate, pages
from gmemd.kernel.errors import KernelError
from gmemd.kernel.memfd import is_guest_memfd
from gmemd.memory.creator import create_guest_memfds
from gmemd.memory.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")

MIB = 1 << 20


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_as_many_as_asked_for_in_order_and_close_on_exec() -> None:
    sizes = [(1 + n % 7) * 4096 for n in range(300)]
    fds = create_guest_memfds(sizes, flags=3)
    try:
        assert [os.fstat(fd).st_size for fd in fds] == sizes
        assert all(is_guest_memfd(fd) for fd in fds)
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        assert children() == []
    finally:
        for fd in fds:
            os.close(fd)


def test_the_memory_outlives_its_creator(guest_memfd: Callable[..., int]) -> None:
    fd = guest_memfd(8 * MIB, flags=0)
    fallocate.allocate(fd, 0, 8 * MIB)
    assert pages.cachestat(fd, 0, 8 * MIB).pages == 2048


def test_the_creators_error_arrives_as_it_was(open_fds: Callable[[], set[str]]) -> None:
    before = open_fds()
    with pytest.raises(KernelError) as caught:
        create_guest_memfds([4096, 123], flags=0)
    assert (caught.value.call, caught.value.errno) == ("KVM_CREATE_GUEST_MEMFD", errno.EINVAL)
    assert caught.value.hint
    assert open_fds() == before


def test_descriptors_that_find_no_room_are_an_error(open_fds: Callable[[], set[str]]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    with ExitStack() as used_up:
        used_up.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < 380:
            used_up.callback(os.close, fd)
        os.close(fd)
        before = open_fds()
        with pytest.raises(ProvisionError, match="no room") as caught:
            create_guest_memfds([4096] * 100, flags=0)
        assert open_fds() == before
    assert "LimitNOFILE" in str(caught.value.hint)


def test_a_creator_that_is_late_is_ended(open_fds: Callable[[], set[str]]) -> None:
    before = open_fds()
    with pytest.raises(ProvisionError, match="no answer in time"):
        create_guest_memfds([4096], flags=0, timeout_seconds=0.0001)
    assert children() == []
    assert open_fds() == before
