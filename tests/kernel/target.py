"""A process to look at: it maps, touches and gives up memory as it is told, and says what it reads.

As a program it is that process; commands and answers are lines of JSON.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
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

    def rollup(self) -> dict[str, int]:
        """What the kernel counts of its memory, in bytes: Rss, Pss, Swap, …, and page tables."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        lines += [line for line in status if line.startswith(("VmPTE", "HugetlbPages"))]
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


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
    """The first byte of each page."""
    return [ctypes.c_ubyte.from_address(address + page * step).value for page in range(pages)]


def fill(address: int, length: int) -> None:
    """Writes to every byte."""
    ctypes.memset(address, 1, length)


def write_file(fd: int, offset: int, length: int) -> None:
    os.pwrite(fd, bytes(length), offset)


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
