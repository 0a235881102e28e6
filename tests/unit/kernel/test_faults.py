"""The seam in the C code: one call of those that a function makes fails, and nothing is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gmemd.kernel import faults
from gmemd.kernel.errors import KernelError, system_call
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import create_memfd

PAGE = 4096


def test_every_call_is_asked_for_by_its_name() -> None:
    asked: list[str] = []

    def note(call: str) -> int:
        asked.append(call)
        return 0

    with faults.refusing(note):
        os.close(create_memfd("asked", PAGE))
    assert asked == ["memfd_create", "ftruncate"]
    os.close(create_memfd("not asked any more", PAGE))
    assert len(asked) == 2


def test_a_call_in_the_middle_leaves_nothing_behind() -> None:
    fd = create_memfd("mapped", PAGE)
    left = iter([0, 0, errno.ENOMEM])  # mmap, and the second of its two madvise calls
    with faults.refusing(lambda _: next(left)), pytest.raises(KernelError) as caught:
        Mapping(fd, 0, PAGE)
    os.close(fd)
    assert (caught.value.call, caught.value.errno) == ("mmap", errno.ENOMEM)
    assert "memfd:mapped" not in Path("/proc/self/maps").read_text()


def test_what_python_calls_has_a_typed_error_too() -> None:
    with pytest.raises(KernelError) as caught, system_call("open", "opening it"):
        os.open("/nowhere", os.O_RDONLY)
    assert (caught.value.call, caught.value.errno) == ("open", errno.ENOENT)
