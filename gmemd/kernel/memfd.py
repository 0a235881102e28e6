"""memfd: shared memory of 4 KiB pages or of huge pages, and telling it from guest_memfd."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from gmemd.kernel._kernel import lib
from gmemd.kernel.descriptor import status_of
from gmemd.kernel.errors import KernelError, invoke, system_call

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""The base page size in bytes."""

_POOLS = "sys/kernel/mm/hugepages"


def create_memfd(name: str, size_bytes: int, *, page_size: int = PAGE_SIZE) -> int:
    """A new memfd of ``size_bytes``, close-on-exec; the caller's.

    ``page_size`` in bytes; other than the base page size, it is a hugetlb memfd, whose pages come
    from the pool of that size. Raises KernelError (ENOENT: no such pool).
    """
    flags = 0
    if page_size != PAGE_SIZE:
        flags = lib.GM_MFD_HUGETLB | (page_size.bit_length() - 1) << lib.GM_MFD_HUGE_SHIFT
    what = f"creating memfd {name!r} of {size_bytes} bytes in pages of {page_size}"
    fd = invoke("memfd_create", lib.gm_memfd_create, os.fsencode(name), flags, what=what)
    try:
        invoke("ftruncate", lib.gm_ftruncate, fd, size_bytes, what=what)
    except KernelError:
        os.close(fd)
        raise
    return fd


def huge_page_sizes(root: Path = Path("/")) -> tuple[int, ...]:
    """Bytes of each size of huge pages that this kernel has pools of, ascending."""
    names = (path.name for path in (root / _POOLS).glob("hugepages-*kB"))
    sizes = (name.removeprefix("hugepages-").removesuffix("kB") for name in names)
    return tuple(sorted(int(size) << 10 for size in sizes if size.isdigit()))


def memfd_devices(root: Path = Path("/")) -> dict[int, int]:
    """Page size (bytes) by the device (st_dev) of this kernel's memfds, which nothing else has.

    Memory shared by anonymous mappings and System V's has the first one, too, and no descriptor.
    Raises KernelError where no memfd can be made.
    """
    return dict(_memfd_devices(huge_page_sizes(root)))


@cache
def _memfd_devices(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Found by making an empty file of each size: the kernel mounts a file system for each."""
    devices = []
    for page_size in (PAGE_SIZE, *sizes):
        try:
            fd = create_memfd("gmemd-probe", 0, page_size=page_size)
        except KernelError:
            if page_size == PAGE_SIZE:
                raise
            continue  # no pool of that size here
        try:
            devices.append((status_of(fd).st_dev, page_size))
        finally:
            os.close(fd)
    return tuple(devices)


def is_guest_memfd(fd: int) -> bool:
    """Whether the fd is a guest_memfd, by the name that the kernel gives its inode."""
    with system_call("readlink", f"asking what fd {fd} is"):
        return "[kvm-gmem]" in str(Path(f"/proc/self/fd/{fd}").readlink())


def is_hugetlb(fd: int) -> bool:
    """Whether the fd is of hugetlbfs."""
    kind = invoke("fstatfs", lib.gm_filesystem_type, fd, what=f"asking what fd {fd} is")
    return kind == lib.GM_HUGETLBFS_MAGIC
