import errno
import os
import signal
import threading

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.kvm import KvmVm
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.pages import cachestat

PAGE = 4096


def test_pages_are_allocated_and_freed(fd: int) -> None:
    size = os.fstat(fd).st_size
    allocate(fd, 0, 64 * PAGE)
    punch_hole(fd, 8 * PAGE, 8 * PAGE)
    assert cachestat(fd, 0, size).pages == 56
    assert cachestat(fd, 8 * PAGE, 8 * PAGE).pages == 0
    assert os.fstat(fd).st_size == size


def test_an_empty_range_is_refused(fd: int) -> None:
    with pytest.raises(KernelError) as caught:
        allocate(fd, 0, 0)
    assert (caught.value.call, caught.value.errno) == ("fallocate", errno.EINVAL)


@pytest.mark.usefixtures("huge_fd")
def test_an_exhausted_pool_says_so() -> None:
    other = create_memfd("huge", 4096 << 21, page_size=2 << 20)
    with pytest.raises(KernelError) as caught:
        allocate(other, 0, 4096 << 21)
    os.close(other)
    assert caught.value.errno_name == "ENOSPC"
    assert "huge pages" in str(caught.value.hint)


@pytest.mark.needs("kvm", "guest_memfd")
def test_a_signal_interrupts_and_what_was_allocated_stays(vm: KvmVm) -> None:
    size = 512 << 20
    fd = vm.create_guest_memfd(size, 0)
    finished = threading.Event()
    main = threading.get_ident()

    def nag() -> None:
        while not finished.wait(0.001):
            signal.pthread_kill(main, signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    nagging = threading.Thread(target=nag)
    nagging.start()
    try:
        with pytest.raises(KernelError) as caught:
            allocate(fd, 0, size)
        assert 0 < cachestat(fd, 0, size).pages < size // PAGE
    finally:
        finished.set()
        nagging.join()
        signal.signal(signal.SIGUSR1, old)
        os.close(fd)
    assert caught.value.errno == errno.EINTR
