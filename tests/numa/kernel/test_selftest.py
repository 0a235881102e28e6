"""The NUMA items of the kernel's own guest_memfd selftest, through gmemd's API."""

import array
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from gmemd.kernel.bind import bind_range, read_policy
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.mempolicy import MemPolicy, get_policy_at, mbind

PAGE = 4096
SIZE = 4 << 20
PAGES = SIZE // PAGE

Place = Callable[..., dict[int, int]]


def on(*numbers: int) -> MemPolicy:
    return MemPolicy("bind", frozenset(numbers))


@pytest.mark.parametrize(
    "policy",
    [
        MemPolicy("default"),
        MemPolicy("local"),
        MemPolicy("preferred", frozenset({1})),
        MemPolicy("preferred-many", frozenset({0, 1})),
        on(0, 1),
        MemPolicy("interleave", frozenset({0, 1})),
        MemPolicy("weighted-interleave", frozenset({0, 1})),
    ],
    ids=str,
)
def test_a_policy_is_set_on_a_sub_range_and_read_back(fd: int, policy: MemPolicy) -> None:
    around = MemPolicy("interleave", frozenset({2, 3}))
    assert bind_range(fd, 0, SIZE, around).ok
    assert bind_range(fd, 8 * PAGE, 2 * PAGE, policy).ok
    assert [read_policy(fd, page * PAGE) for page in (7, 8, 9, 10)] == [
        around,
        policy,
        policy,
        around,
    ]


def test_an_unknown_mode_is_refused(fd: int) -> None:
    with pytest.raises(KernelError) as caught:
        bind_range(fd, 0, PAGE, MemPolicy("mode-999", frozenset({0})))
    assert (caught.value.call, caught.value.errno_name) == ("mbind", "EINVAL")
    with Mapping(fd, 0, PAGE) as window, pytest.raises(KernelError, match="mbind: EINVAL"):
        mbind(window.address, PAGE, MemPolicy("mode-999", frozenset({0})))


@pytest.mark.parametrize("touch", [False, True], ids=["fallocate", "touch"])
def test_allocation_follows_and_follows_the_swap(fd: int, place: Place, *, touch: bool) -> None:
    first = 16 * PAGE
    assert bind_range(fd, 0, first, on(1)).ok
    assert bind_range(fd, first, SIZE - first, on(0)).ok
    assert place(fd, 0, SIZE, touch=touch) == {1: 16, 0: PAGES - 16}
    assert place(fd, 0, first, touch=touch) == {1: 16}

    assert bind_range(fd, 0, first, on(0)).ok
    assert bind_range(fd, first, SIZE - first, on(1)).ok
    assert place(fd, 0, SIZE, touch=touch) == {0: 16, 1: PAGES - 16}
    assert place(fd, 0, first, touch=touch) == {0: 16}


def test_a_new_policy_moves_nothing_that_exists(fd: int, place: Place) -> None:
    assert bind_range(fd, 0, SIZE, on(1)).ok
    assert place(fd, 0, SIZE) == {1: PAGES}
    assert bind_range(fd, 0, SIZE, on(2)).ok
    assert place(fd, SIZE // 2, SIZE // 2) == {2: PAGES // 2}
    assert place(fd, 0, PAGE) == {2: 1}


def test_policies_outlive_every_mapping(fd: int, place: Place) -> None:
    with Mapping(fd, 0, SIZE) as window:
        mbind(window.address, SIZE, on(3))
        assert get_policy_at(window.address) == on(3)
    assert read_policy(fd, 0) == on(3)
    assert place(fd, 0, SIZE) == {3: PAGES}


def test_policies_outlive_the_creating_process(
    place: Place, child: Callable[[Callable[[], Any]], Any]
) -> None:
    ours, theirs = socket.socketpair()

    def create_bind_and_die() -> int:
        with Kvm() as kvm, kvm.create_vm() as vm:
            fd = vm.create_guest_memfd(SIZE, GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
        bind_range(fd, 0, SIZE // 2, on(2))
        bind_range(fd, SIZE // 2, SIZE // 2, on(1))
        fds = array.array("i", [fd])
        theirs.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return os.getpid()

    with ours, theirs:
        maker = child(create_bind_and_die)
        assert maker != os.getpid()
        _, [fd], _, _ = socket.recv_fds(ours, 1, 1)
    assert (read_policy(fd, 0), read_policy(fd, SIZE - PAGE)) == (on(2), on(1))
    assert place(fd, 0, SIZE) == {2: PAGES // 2, 1: PAGES // 2}
    os.close(fd)
