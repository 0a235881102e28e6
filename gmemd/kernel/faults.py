"""The seam: where a test has the kernel refuse one of the calls that gmemd makes.

It is in the C code, around each system call and ioctl, also those within a loop over pages, so that
what a failure in the middle leaves behind is seen. Nothing in gmemd uses it: unused it costs the
look at one pointer, and it is reached from within the process alone.

``gmemd.kernel.errors.injected_failure`` makes a whole call of ``invoke`` fail, by the name that its
error has; this makes one of those fail that it consists of.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmemd.kernel._kernel import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def refusing(errno_of: Callable[[str], int]) -> Iterator[None]:
    """Ask, before each call that is made in the block, by its name, what errno it fails with.

    0 has it made. It is asked on whatever thread makes the call, and may not raise.
    """
    callback = ffi.callback(
        "int(*)(const char *)", lambda name: errno_of(ffi.string(name).decode("ascii"))
    )
    lib.gm_set_seam(callback)
    try:
        yield
    finally:
        lib.gm_set_seam(ffi.NULL)
