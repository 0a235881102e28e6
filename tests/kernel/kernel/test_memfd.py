import fcntl
import os
from pathlib import Path

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.memfd import create_memfd, is_guest_memfd, is_hugetlb


def test_a_memfd_has_its_size_and_closes_on_exec(memfd: int) -> None:
    assert os.fstat(memfd).st_size == 16 << 20
    assert fcntl.fcntl(memfd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert not is_guest_memfd(memfd)
    assert not is_hugetlb(memfd)


def test_a_hugetlb_memfd_is_known(huge_fd: int) -> None:
    assert is_hugetlb(huge_fd)
    assert os.fstat(huge_fd).st_blksize == 2 << 20


def test_a_page_size_without_a_pool_is_refused() -> None:
    with pytest.raises(KernelError) as caught:
        create_memfd("odd", 1 << 20, page_size=8192)
    assert caught.value.call == "memfd_create"


def test_a_failed_size_leaves_no_fd_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError):
        create_memfd("odd", (2 << 20) + 1, page_size=2 << 20)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
