"""What move_pages says of another process' pages: node, hole, zero page; and of no process."""

from __future__ import annotations

import errno
import os
from array import array
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel.errors import KernelError, injected_failure
from gmemd.kernel.pages import ForeignScan, scan_foreign_pages, scan_foreign_range
from tests.kernel.target import HUGE, PAGE, Target

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def errno_at(target: Target, address: int) -> int:
    """The errno of one page, 0 if it is on a node."""
    found = scan_foreign_pages(target.pid, array("Q", [address]))
    assert found.pages == 1
    assert found == scan_foreign_range(target.pid, address, 1, PAGE)
    return next(iter(found.errors), 0)


def test_anonymous_pages(target: Target) -> None:
    memory = target.call("anonymous", 8 * MIB)
    target.call("touch", memory)
    target.call("read", memory + PAGE)
    assert errno_at(target, memory) == 0
    assert errno_at(target, memory + 17) == 0
    assert errno_at(target, memory + PAGE) == errno.EFAULT  # the page of zeros
    assert errno_at(target, memory + 2 * PAGE) == errno.ENOENT
    assert errno_at(target, memory + 4 * MIB) in (errno.ENOENT, errno.EFAULT)
    target.call("forbid", memory, 8 * MIB)
    assert errno_at(target, memory) == 0
    target.call("unmap", memory, 8 * MIB)
    assert errno_at(target, memory) == errno.EFAULT
    assert errno_at(target, 0) == errno.EFAULT


def test_transparent_huge_pages_answer_page_by_page(target: Target) -> None:
    memory = target.call("transparent_huge", 4 * MIB)
    target.call("touch", memory)
    if target.resident((memory, 4 * MIB))["AnonHugePages:"] != HUGE:
        pytest.skip("the kernel gave no huge page")
    found = scan_foreign_range(target.pid, memory, 1024, PAGE)
    assert sum(found.by_node.values()) == 512
    assert found.absent_pages == 512


def test_a_huge_page_of_zeros_is_nobodys_memory(target: Target) -> None:
    memory = target.call("transparent_huge", 2 * MIB)
    target.call("read", memory)
    found = scan_foreign_range(target.pid, memory, 512, PAGE)
    assert (found.by_node, found.absent_pages) == ({}, 512)


def test_pages_of_files(target: Target) -> None:
    fd = target.call("memfd", MIB)
    target.call("write_file", fd, 0, 100 * PAGE)
    shared = target.call("map_file", fd, MIB)
    assert errno_at(target, shared) == errno.ENOENT  # there, and not mapped by this process
    target.call("read", shared, 2)
    assert errno_at(target, shared + PAGE) == 0
    target.call("touch", shared + 200 * PAGE)
    assert errno_at(target, shared + 200 * PAGE) == 0
    private = target.call("map_file", fd, MIB, 0, True)
    target.call("touch", private)
    target.call("read", private + PAGE)
    assert errno_at(target, private) == 0
    assert errno_at(target, private + PAGE) == 0
    assert errno_at(target, private + 150 * PAGE) == errno.ENOENT


@pytest.mark.usefixtures("huge_pool")
def test_huge_pages_answer_at_any_address(target: Target) -> None:
    fd = target.call("huge_memfd", 8 * HUGE)
    memory = target.call("map_file", fd, 8 * HUGE)
    target.call("touch", memory, 3, 2 * HUGE)
    assert errno_at(target, memory) == errno_at(target, memory + 5 * PAGE) == 0
    found = scan_foreign_range(target.pid, memory, 8, HUGE)
    assert sum(found.by_node.values()) == 3
    assert found.absent_pages == 5


def test_counts_are_those_of_all_batches_and_in_any_order(target: Target) -> None:
    memory = target.call("anonymous", 16 * MIB)
    target.call("touch", memory, 1000, 3 * PAGE)
    whole = scan_foreign_range(target.pid, memory, 4096, PAGE)
    assert whole.pages == 4096
    assert sum(whole.by_node.values()) == 1000
    assert whole.absent_pages == 3096
    strided = scan_foreign_range(target.pid, memory, 1000, 3 * PAGE)
    assert sum(strided.by_node.values()) == strided.pages == 1000
    backwards = array("Q", (memory + page * PAGE for page in reversed(range(4096))))
    assert scan_foreign_pages(target.pid, backwards) == whole


def test_nothing_asked_is_nothing_seen(target: Target) -> None:
    assert scan_foreign_range(target.pid, 0, 0, PAGE) == ForeignScan(0)
    assert scan_foreign_pages(target.pid, array("Q")) == ForeignScan(0)


def test_a_process_that_exits_and_one_that_is_gone(target: Target) -> None:
    target.kill()
    with pytest.raises(KernelError, match="EINVAL") as exiting:
        scan_foreign_range(target.pid, PAGE, 1, PAGE)
    assert exiting.value.hint == "the process has no memory any more: it is exiting"
    target.reap()
    with pytest.raises(KernelError, match="ESRCH") as gone:
        scan_foreign_range(target.pid, PAGE, 1, PAGE)
    assert gone.value.hint == "the process is gone"


def test_a_stranger_needs_ptrace(
    target: Target, stranger: Callable[[Callable[[], object]], str]
) -> None:
    said = stranger(lambda: scan_foreign_range(target.pid, PAGE, 1, PAGE))
    assert "move_pages: EPERM" in said
    assert "CAP_SYS_PTRACE" in said


def test_a_failure_is_of_the_call() -> None:
    with injected_failure("move_pages", errno.EPERM), pytest.raises(KernelError, match="EPERM"):
        scan_foreign_range(os.getpid(), 0, 1, PAGE)
