"""A real guest, a few bytes of real mode, that writes one byte to each page of runs of pages.

As a program it is the VMM that isn't gmemd: it takes a guest_memfd that somebody else made and
uses it as a plain memslot, ``python vcpu.py FD SIZE FIRST:COUNT [FIRST:COUNT…]`` (in pages).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = 4096

_IO = 0xAE << 8
_WRITE, _READ = 1 << 30, 2 << 30


def _request(number: int, size: int = 0, direction: int = 0) -> int:
    return direction | size << 16 | _IO | number


_CREATE_VM = _request(0x01)
_GET_VCPU_MMAP_SIZE = _request(0x04)
_CREATE_VCPU = _request(0x41)
_SET_USER_MEMORY_REGION2 = _request(0x49, 160, _WRITE)
_CREATE_GUEST_MEMFD = _request(0xD4, 64, _READ | _WRITE)
_RUN = _request(0x80)
_GET_REGS = _request(0x81, 144, _READ)
_SET_REGS = _request(0x82, 144, _WRITE)
_GET_SREGS = _request(0x83, 312, _READ)
_SET_SREGS = _request(0x84, 312, _WRITE)

_MEM_GUEST_MEMFD = 4
_EXIT_REASON_OFFSET = 8
_EXIT_HLT = 5

# Real mode with segments of 4 GiB: ecx pages from edi on get a byte each, then the guest halts.
_CODE = bytes.fromhex(
    "67c6072a"  # mov byte [edi], 0x2a
    "6681c700100000"  # add edi, 4096
    "6649"  # dec ecx
    "75f1"  # jnz to the mov
    "f4"  # hlt
)
CODE_ADDRESS = 3 << 30  # where no layout has memory
MEMORY_ADDRESS = 1 << 20
_RFLAGS = 2  # the bit that is always set
_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)
_SEGMENT = struct.Struct("=QIHBBBBBBBBBB")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


def _address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Guest(AbstractContextManager["Guest"]):
    """A VM with one vCPU; ``add_memory`` gives it what ``write`` then writes to.

    ``code`` is another program of real mode, for ``run``.
    """

    def __init__(self, code: bytes = _CODE) -> None:
        with ExitStack() as stack:
            kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, kvm)
            self.vm_fd = fcntl.ioctl(kvm, _CREATE_VM, 0)
            stack.callback(os.close, self.vm_fd)
            self._code = mmap.mmap(-1, PAGE)
            self._code.write(code)
            self._slots = 0
            self._maps: list[mmap.mmap] = []
            self._add_slot(CODE_ADDRESS, PAGE, _address_of(self._code))
            self._vcpu = fcntl.ioctl(self.vm_fd, _CREATE_VCPU, 0)
            stack.callback(os.close, self._vcpu)
            self._run = mmap.mmap(self._vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
            self._flatten_segments()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the VM; what guest_memfds it had stay with their holders."""
        self._stack.close()

    def create_guest_memfd(self, size_bytes: int, flags: int) -> int:
        """A guest_memfd of this VM; the caller's."""
        asked = bytearray(struct.pack("=QQ", size_bytes, flags).ljust(64, b"\0"))
        return fcntl.ioctl(self.vm_fd, _CREATE_GUEST_MEMFD, asked)

    def add_memory(
        self, fd: int, size_bytes: int, *, bound: bool, gpa: int = MEMORY_ADDRESS, offset: int = 0
    ) -> mmap.mmap:
        """Maps part of a file and makes it the guest's memory: bound to the slot, or plainly."""
        memory = mmap.mmap(fd, size_bytes, offset=offset)
        self._maps.append(memory)
        backing = (offset, fd) if bound else None
        self._add_slot(gpa, size_bytes, _address_of(memory), backing)
        return memory

    def write(self, first_page: int, n_pages: int, *, gpa: int = MEMORY_ADDRESS) -> None:
        """Has the vCPU write one byte to each of these pages."""
        self.run(rcx=n_pages, rdi=gpa + first_page * PAGE)

    def run(self, **registers: int) -> dict[str, int]:
        """Has the vCPU run its code from the start until it halts; registers before and after."""
        wanted = {"rflags": _RFLAGS} | registers
        values = [wanted.get(name, 0) for name in _REGISTERS]
        fcntl.ioctl(self._vcpu, _SET_REGS, struct.pack("=18Q", *values))
        while True:
            try:
                fcntl.ioctl(self._vcpu, _RUN, 0)
            except InterruptedError:
                continue
            (reason,) = struct.unpack_from("=I", self._run, _EXIT_REASON_OFFSET)
            if reason != _EXIT_HLT:
                raise RuntimeError(f"the guest stopped for reason {reason}, not for its halt")
            halted = fcntl.ioctl(self._vcpu, _GET_REGS, bytes(144))
            return dict(zip(_REGISTERS, struct.unpack("=18Q", halted), strict=True))

    def _add_slot(
        self, gpa: int, size: int, address: int, backing: tuple[int, int] | None = None
    ) -> None:
        """A memslot; ``backing`` is the offset in a guest_memfd, and its fd."""
        flags = 0 if backing is None else _MEM_GUEST_MEMFD
        offset, fd = backing or (0, 0)
        region = struct.pack("=IIQQQQII", self._slots, flags, gpa, size, address, offset, fd, 0)
        fcntl.ioctl(self.vm_fd, _SET_USER_MEMORY_REGION2, region.ljust(160, b"\0"))
        self._slots += 1

    def _flatten_segments(self) -> None:
        """Gives every segment 4 GiB, so that real mode reaches all of the memory."""
        sregs = bytearray(fcntl.ioctl(self._vcpu, _GET_SREGS, bytes(312)))
        for position, name in enumerate(_SEGMENTS[:6]):
            kind = 11 if name == "cs" else 3
            # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
            base = CODE_ADDRESS if name == "cs" else 0
            flat = _SEGMENT.pack(base, 0xFFFFFFFF, 0, kind, 1, 0, 0, 1, 0, 1, 0, 0, 0)
            _SEGMENT.pack_into(sregs, position * _SEGMENT.size, *_SEGMENT.unpack(flat))
        fcntl.ioctl(self._vcpu, _SET_SREGS, bytes(sregs))


def parse_runs(words: Iterable[str]) -> list[tuple[int, int]]:
    """``FIRST:COUNT`` words as pairs."""
    pairs = (word.partition(":") for word in words)
    return [(int(first), int(count)) for first, _, count in pairs]


def main() -> None:
    """Writes to the pages that the command line names, of the fd that it names."""
    fd, size, *runs = sys.argv[1:]
    with Guest() as guest:
        guest.add_memory(int(fd), int(size), bound=False)
        for first_page, n_pages in parse_runs(runs):
            guest.write(first_page, n_pages)


if __name__ == "__main__":
    main()
