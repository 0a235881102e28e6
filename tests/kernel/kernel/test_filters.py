"""Telling a seccomp filter's EPERM from the kernel's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel import filters
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.pages import move_pages_query, scan_window
from tests import seccomp

if TYPE_CHECKING:
    from collections.abc import Callable

NO_PROCESS_OF_NOBODYS = 1


def without(call: str, look: Callable[[], str]) -> str:
    """What a process says that has the call denied."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        seccomp.deny([call])
        os.write(writing, look().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


@pytest.mark.parametrize("call", sorted(filters.PROBED))
def test_a_denied_call_is_known_and_others_are_not_blamed(call: str) -> None:
    def blamed() -> str:
        found = {filters.denied_by_filter(one) for one in filters.PROBED} - {None}
        return " ".join(map(str, found))

    assert blamed() == ""
    assert without(call, blamed) == call


@pytest.mark.parametrize("call", ["move_pages", "madvise"])
def test_an_error_names_the_call_that_was_denied(call: str) -> None:
    def look() -> str:
        fd = create_memfd("test", PAGE_SIZE)
        try:
            with Mapping(fd, 0, PAGE_SIZE, protection="read-write") as window:
                window.populate_write(0, PAGE_SIZE)
                scan_window(window, 0, PAGE_SIZE)
        except KernelError as error:
            return f"{error.call} {error.errno_name} {error.filtered} {error.hint}"
        return "none"

    said = without(call, look)
    assert said.startswith(f"{call} EPERM True a seccomp filter forbids {call} ")


def test_the_kernels_own_refusal_is_not_blamed_on_a_filter() -> None:
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            move_pages_query(NO_PROCESS_OF_NOBODYS, [0])
        except KernelError as error:
            os._exit(int((error.errno_name, error.filtered) != ("EPERM", False)))
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
