"""Allocating and freeing a file's pages without mapping them."""

from __future__ import annotations

from gmemd.kernel._kernel import lib
from gmemd.kernel.errors import invoke


def allocate(fd: int, offset: int, length: int) -> None:
    """Allocates the range's holes (bytes, page multiples); its size stays as it is.

    Raises KernelError. EINTR: a signal came; a guest_memfd keeps what was allocated so far
    (kvm_gmem_allocate). A memfd goes on unless the signal is fatal (shmem_fallocate).
    """
    _fallocate(fd, lib.GM_FALLOC_KEEP_SIZE, "allocating", offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Frees the range's pages, **and what is in them** (bytes, page multiples)."""
    mode = lib.GM_FALLOC_KEEP_SIZE | lib.GM_FALLOC_PUNCH_HOLE
    _fallocate(fd, mode, "punching", offset, length)


def _fallocate(fd: int, mode: int, doing: str, offset: int, length: int) -> None:
    what = f"{doing} {length} bytes at offset {offset} of fd {fd}"
    invoke("fallocate", lib.gm_fallocate, fd, mode, offset, length, what=what)
