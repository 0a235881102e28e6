"""System calls that a seccomp filter denies to this process.

A filter's EPERM looks like the kernel's own. So the call is made with arguments that do nothing,
which the kernel answers with 0 or with another errno: EPERM is the filter's then.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gmemd.kernel._kernel import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_FD = -1
_NO_MODE = 0x7F
_NO_FLAGS = 0xFFFFFFFF
_NO_OPTION = 0x7FFFFFFF

_PROBES: dict[str, Callable[[], int]] = {
    "cachestat": lambda: lib.gm_cachestat(_NO_FD, 0, 0, ffi.NULL),
    "fallocate": lambda: lib.gm_fallocate(_NO_FD, 0, 0, 0),
    "fstatfs": lambda: lib.gm_filesystem_type(_NO_FD),
    "ftruncate": lambda: lib.gm_ftruncate(_NO_FD, 0),
    "get_mempolicy": lambda: lib.gm_get_mempolicy(
        0, 0, ffi.new("int *"), ffi.new("uint64_t[]", lib.GM_MASK_WORDS)
    ),
    "madvise": lambda: lib.gm_madvise(0, 0, lib.GM_MADV_DONTNEED),
    "mbind": lambda: lib.gm_mbind(0, 0, 0, ffi.NULL),
    "memfd_create": lambda: lib.gm_memfd_create(b"", _NO_FLAGS),
    "mincore": lambda: lib.gm_mincore(0, 0, ffi.NULL),
    "move_pages": lambda: lib.gm_move_pages(0, 0, ffi.NULL, ffi.NULL, ffi.NULL),
    "pidfd_getfd": lambda: lib.gm_pidfd_getfd(_NO_FD, _NO_FD),
    "pidfd_open": lambda: lib.gm_pidfd_open(_NO_FD),
    "prctl": lambda: lib.gm_prctl(_NO_OPTION, 0),
    "set_mempolicy": lambda: lib.gm_set_mempolicy(_NO_MODE, ffi.NULL),
    "set_mempolicy_home_node": lambda: lib.gm_set_mempolicy_home_node(0, 0, 0),
    "statx": lambda: lib.gm_identify(_NO_FD, ffi.new("struct gm_identity *")),
    "userfaultfd": lambda: lib.gm_userfaultfd(_NO_FLAGS),
}

PROBED = frozenset(_PROBES)
"""The calls whose denial is told from the kernel's own: what gmemd is for rests on them."""

_LOOKS = ("move_pages", "madvise", "mincore", "cachestat")
_MADE_OF = {
    "mmap": ("madvise",),
    "mincore": ("mincore", "madvise"),
    "scan": _LOOKS,
    "scan of a memfd in use": ("userfaultfd", *_LOOKS),
    "scan of huge pages": ("userfaultfd", *_LOOKS),
}


def denied_by_filter(call: str) -> str | None:
    """Which system call of those that ``call`` makes is denied; None where it is none of them."""
    return next((name for name in _MADE_OF.get(call, (call,)) if _is_denied(name)), None)


def _is_denied(name: str) -> bool:
    probe = _PROBES.get(name)
    return probe is not None and probe() == -errno.EPERM
