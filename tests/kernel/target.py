"""A process to look at: it maps, touches and gives up memory as it is told, and says what it reads.

As a program it is that process; commands and answers are lines of JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

PAGE = mmap.PAGESIZE
HUGE = 2 << 20

_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x1, 0x2, 0x20, 0x4000
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
_MFD_HUGETLB_2MB = 0x4 | 21 << 26

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
for _name in ("munmap", "mprotect", "madvise"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = _libc.munmap.argtypes[:2]
_libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.syscall.restype = ctypes.c_long

_COUNTED = ("Rss:", "Anonymous:", "AnonHugePages:", "Shared_Hugetlb:", "Private_Hugetlb:", "Swap:")

_KVM_CREATE_VM = 0xAE01
_SYS_USERFAULTFD = 323 if os.uname().machine == "x86_64" else 282
_UFFD_API = 0xAA
_UFFD_FEATURE_MISSING_SHMEM = 1 << 5
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_REGISTER_MODE_MISSING = 1
_UFFDIO_COPY = 0xC028AA03
_UFFD_EVENT_PAGEFAULT = 0x12
_UFFD_MESSAGE = struct.Struct("=B7xQQ8x")


class Target:
    """The process, until the block ends. Addresses and lengths in bytes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self.reap()

    def call(self, command: str, *arguments: object) -> Any:  # noqa: ANN401  whatever it answers
        """Has the process do what the function of that name does; what it answers."""
        self.send(command, *arguments)
        return self.answer()

    def send(self, command: str, *arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:  # noqa: ANN401  whatever it answers
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the target ended"
        return json.loads(line)

    def kill(self) -> None:
        """Kills the process; a zombie is left until it is reaped."""
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def resident(self, *ranges: tuple[int, int]) -> dict[str, int]:
        """What the kernel counts in the mappings within ranges (address, length), in bytes."""
        counted: Counter[str] = Counter()
        within = False
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            key, *values = line.split()
            if not key.endswith(":"):
                start, end = (int(edge, 16) for edge in key.split("-"))
                within = any(at <= start and end <= at + length for at, length in ranges)
            elif within and key in _COUNTED:
                counted[key] += int(values[0]) * 1024
        return dict(counted)


def anonymous(length: int) -> int:
    """Private memory in base pages; its address."""
    address = _mmap(length, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE)
    _libc.madvise(address, length, _MADV_NOHUGEPAGE)
    return address


def transparent_huge(length: int) -> int:
    """Private memory that may be had in huge pages, aligned to them; its address."""
    address = _mmap(length + HUGE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE)
    address = -(-address // HUGE) * HUGE
    _libc.madvise(address, length, _MADV_HUGEPAGE)
    return address


def memfd(length: int) -> int:
    """A file in memory; its fd."""
    fd = os.memfd_create("target")
    os.ftruncate(fd, length)
    return fd


def huge_memfd(length: int) -> int:
    """A file in memory of huge pages; its fd."""
    fd = os.memfd_create("target", _MFD_HUGETLB_2MB)
    os.ftruncate(fd, length)
    return fd


def map_file(fd: int, length: int, offset: int = 0, private: bool = False) -> int:  # noqa: FBT001, FBT002  JSON has positions only
    """A mapping of a file; its address."""
    return _mmap(length, _MAP_PRIVATE if private else _MAP_SHARED, fd, offset)


def unmap(address: int, length: int) -> None:
    assert _libc.munmap(address, length) == 0


def forbid(address: int, length: int) -> None:
    assert _libc.mprotect(address, length, 0) == 0


def touch(address: int, pages: int = 1, step: int = PAGE) -> None:
    """Writes to pages that are so many bytes apart."""
    for page in range(pages):
        ctypes.c_ubyte.from_address(address + page * step).value = 1


def read(address: int, pages: int = 1, step: int = PAGE) -> list[int]:
    """The first byte of each page; other threads go on, so that one of them may serve its fault."""
    byte = ctypes.create_string_buffer(1)
    found = []
    for page in range(pages):
        _libc.memcpy(byte, address + page * step, 1)
        found.append(byte.raw[0])
    return found


def fill(address: int, length: int) -> None:
    """Writes to every byte."""
    ctypes.memset(address, 1, length)


def write_file(fd: int, offset: int, length: int) -> None:
    os.pwrite(fd, bytes(length), offset)


def open_vm() -> int:
    """A KVM VM without vCPUs; its fd."""
    return fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), _KVM_CREATE_VM, 0)


def await_pages(address: int, length: int) -> None:
    """Memory whose pages come when they are touched, as in a migration's postcopy.

    Each is filled with `page_content` of its number, by a thread that writes down which.
    """
    uffd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC)
    fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("=QQQ", _UFFD_API, _UFFD_FEATURE_MISSING_SHMEM, 0))
    mode = _UFFDIO_REGISTER_MODE_MISSING
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, struct.pack("=QQQQ", address, length, mode, 0))
    threading.Thread(target=_serve_faults, args=(uffd, address), daemon=True).start()


def served() -> list[int]:
    """The numbers of the pages that were waited for, in order."""
    return _served


def page_content(page: int) -> int:
    """The byte that a page which is waited for is full of; never 0."""
    return page % 251 + 1


_served: list[int] = []


def _serve_faults(uffd: int, address: int) -> None:
    while True:
        event, _, touched = _UFFD_MESSAGE.unpack(os.read(uffd, _UFFD_MESSAGE.size))
        assert event == _UFFD_EVENT_PAGEFAULT
        page = (touched - address) // PAGE
        _served.append(page)
        content = ctypes.create_string_buffer(bytes([page_content(page)]) * PAGE, PAGE)
        source = ctypes.addressof(content)
        request = struct.pack("=QQQQq", address + page * PAGE, source, PAGE, 0, 0)
        fcntl.ioctl(uffd, _UFFDIO_COPY, request)


def _mmap(length: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def _obey() -> None:
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(globals()[command](*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _obey()
