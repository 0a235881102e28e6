#!/usr/bin/env python3
"""A whole VMM, as small as can be: its guest's memory comes from gmemd.

    vmm.py VM [--socket PATH]

It acquires the memory of a VM, maps it, gives it to KVM where the layout says, and runs a guest of
five instructions that writes to every page below 4 GiB. Then it says what the guest did, and keeps
the memory until its standard input ends: `gmemd audit VM` meanwhile shows where the pages are.
Needs x86, /dev/kvm, and a VM spec with `source: create`.
"""

# ruff: noqa: T201  a script, which prints

from __future__ import annotations

import argparse
import mmap
import os
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Final

from cffi import FFI

from gmemd.client import DEFAULT_SOCKET, Client, Memory, Progress
from gmemd.errors import GmemdError

if TYPE_CHECKING:
    from gmemd.client.memory import Extent

PAGE: Final = 4096
FOUR_GIB: Final = 4 << 30
FIRMWARE_GPA: Final = 3 << 30  # gmemd places nothing between 3 and 4 GiB: that is the VMM's

# Real mode: ecx pages from edi on get the number of pages that are left, then the guest halts.
FIRMWARE: Final = bytes.fromhex(
    "6667890f"  # mov [edi], ecx
    "6681c700100000"  # add edi, 4096
    "6649"  # dec ecx
    "75f1"  # jnz to the mov
    "f4"  # hlt
)

CREATE_VM, GET_VCPU_MMAP_SIZE, CREATE_VCPU, RUN = 0xAE01, 0xAE04, 0xAE41, 0xAE80
SET_USER_MEMORY_REGION = 0x4020AE46
SET_REGS, GET_SREGS, SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
EXIT_HLT = 5

ffi = FFI()
ffi.cdef("""
    int ioctl(int fd, unsigned long request, ...);
    struct memory_region { uint32_t slot, flags; uint64_t gpa, size, address; };
    struct regs { uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r[8], rip, rflags; };
    struct segment {
        uint64_t base; uint32_t limit; uint16_t selector;
        uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;
    };
    struct sregs { struct segment cs, ds, es, fs, gs, ss; uint8_t others[168]; };
    struct run { uint8_t requests[8]; uint32_t exit_reason; };
""")
libc: Any = ffi.dlopen(None)


def ioctl(fd: int, request: int, argument: object = 0) -> int:
    """Do one, with a number or a pointer to a struct. Raises OSError."""
    if isinstance(argument, int):
        argument = ffi.cast("long", argument)
    result = int(libc.ioctl(fd, request, argument))
    if result < 0:
        raise OSError(ffi.errno, f"ioctl {request:#x}: {os.strerror(ffi.errno)}")
    return result


class Guest:
    """A VM with one vCPU; what is opened closes with ``stack``."""

    def __init__(self, stack: ExitStack) -> None:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, kvm)
        self._vm = ioctl(kvm, CREATE_VM)
        stack.callback(os.close, self._vm)
        self._vcpu = ioctl(self._vm, CREATE_VCPU)
        stack.callback(os.close, self._vcpu)
        self._run = mmap.mmap(self._vcpu, ioctl(kvm, GET_VCPU_MMAP_SIZE))
        self._slots = 0
        self._firmware = mmap.mmap(-1, PAGE)
        self._firmware.write(FIRMWARE)
        self.add_memory(self._firmware, 0, FIRMWARE_GPA, PAGE)
        self._start_in_flat_real_mode()

    def add_memory(self, memory: mmap.mmap, offset: int, gpa: int, size: int) -> None:
        """Make ``size`` bytes from ``offset`` on of a mapping the guest's memory at ``gpa``."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory))) + offset
        slot = ffi.new("struct memory_region *", (self._slots, 0, gpa, size, address))
        ioctl(self._vm, SET_USER_MEMORY_REGION, slot)
        self._slots += 1

    def write_pages(self, gpa: int, n_pages: int) -> None:
        """Have the guest write to each of these pages."""
        regs = ffi.new("struct regs *", {"rdi": gpa, "rcx": n_pages, "rflags": 2})
        ioctl(self._vcpu, SET_REGS, regs)
        ioctl(self._vcpu, RUN)
        reason = ffi.cast("struct run *", ffi.from_buffer(self._run)).exit_reason
        if reason != EXIT_HLT:
            raise RuntimeError(f"the guest stopped for reason {reason}, not for its halt")

    def _start_in_flat_real_mode(self) -> None:
        """Let every segment reach 4 GiB, and the code begin where the firmware is."""
        sregs = ffi.new("struct sregs *")
        ioctl(self._vcpu, GET_SREGS, sregs)
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
            segment.base, segment.limit, segment.g = 0, 0xFFFFFFFF, 1
        sregs.cs.base = FIRMWARE_GPA
        ioctl(self._vcpu, SET_SREGS, sregs)


def give(memory: Memory, guest: Guest) -> list[tuple[Extent, mmap.mmap, int]]:
    """Map each region and make its extents the guest's; returns these with where they are."""
    given = []
    for region in memory.regions:
        mapping = mmap.mmap(region.fd, region.size, offset=region.offset)
        for extent in region.extents:
            offset = extent.offset - region.offset  # an extent's offset is one in the file
            guest.add_memory(mapping, offset, extent.gpa, extent.size)
            given.append((extent, mapping, offset))
        where = ", ".join(f"{extent.gpa:#x}" for extent in region.extents)
        nodes = ",".join(map(str, region.host_nodes))
        print(
            f"guest node {region.guest_node}: {region.size} bytes of {region.backend} at {where}: "
            f"{region.policy} {nodes}, {region.strategy}, {region.policy_outcome or 'no policy'}"
        )
    return given


def exercise(guest: Guest, extent: Extent, mapping: mmap.mmap, offset: int) -> None:
    """Have the guest write to what it can reach of an extent, and see that it did."""
    n_pages = max(0, min(extent.size, FOUR_GIB - extent.gpa)) // PAGE
    if n_pages:
        guest.write_pages(extent.gpa, n_pages)
    for page in range(n_pages):
        at = offset + page * PAGE
        written = int.from_bytes(mapping[at : at + 4], sys.byteorder)
        if written != n_pages - page:
            raise RuntimeError(f"page {page} at {extent.gpa:#x} has {written}")
    print(f"the guest wrote to {n_pages} pages at {extent.gpa:#x}")


def show(progress: Progress) -> None:
    """Tell how far the memory is."""
    ratio = f" {progress.ratio:.0%}" if progress.ratio is not None else ""
    print(f"{progress.state}{ratio} {progress.message}".rstrip(), file=sys.stderr)


def main() -> int:
    """Be a VMM."""
    parser = argparse.ArgumentParser(description="A VMM whose guest's memory comes from gmemd.")
    parser.add_argument("vm")
    parser.add_argument("--socket", default=DEFAULT_SOCKET)
    args = parser.parse_args()
    try:
        memory = Client(args.socket).acquire(args.vm, progress=show)
    except GmemdError as error:
        print(error.in_one_line, file=sys.stderr)
        return int(error.exit_code)
    with ExitStack() as stack:
        guest = Guest(stack)
        with closing(memory):
            given = give(memory, guest)  # what is mapped stays when the file descriptors go
        for extent, mapping, offset in given:
            exercise(guest, extent, mapping, offset)
        print("done", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
