"""Where pages are, and are to go, by calls that aren't gmemd's, for programs that import little."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import Counter

PAGE = 4096

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_MOVE_PAGES = 279  # of x86-64, which is what the lab is
_GET_MEMPOLICY = 239 if os.uname().machine == "x86_64" else 236
_F_ADDR = 2
_NODES = 1024
_MODES = {0: "default", 1: "preferred", 2: "bind", 3: "interleave", 5: "preferred-many"}


def counted_bytes(fd: int, offset: int, size_bytes: int) -> dict[int, int]:
    """Bytes per node of a fully resident range, by move_pages on a mapping that is made for it."""
    address = _LIBC.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    nodes: Counter[int] = Counter()
    for start in range(0, size_bytes, 512 * PAGE):
        where = range(address + start, address + min(start + 512 * PAGE, size_bytes), PAGE)
        for place in where:
            ctypes.string_at(place, 1)
        status = (ctypes.c_int * len(where))()
        pages = (ctypes.c_void_p * len(where))(*where)
        assert _LIBC.syscall(_MOVE_PAGES, 0, len(where), pages, None, status, 0) == 0
        nodes.update(status)
    _LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))
    assert all(node >= 0 for node in nodes), nodes
    return {node: pages * PAGE for node, pages in sorted(nodes.items())}


def policy_of(memory: mmap.mmap) -> list[object]:
    """The policy that the kernel has for a mapping's first page: its mode, and its nodes."""
    mode, mask = ctypes.c_int(), (ctypes.c_ulong * (_NODES // 64))()
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    nodes, flags = ctypes.c_ulong(_NODES), ctypes.c_ulong(_F_ADDR)
    done = _LIBC.syscall(_GET_MEMPOLICY, ctypes.byref(mode), mask, nodes, address, flags)
    if done:
        raise OSError(ctypes.get_errno(), "get_mempolicy")
    bits = int.from_bytes(bytes(mask), "little")
    return [_MODES[mode.value], [node for node in range(_NODES) if bits >> node & 1]]
