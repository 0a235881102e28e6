import errno
import os
import re
from pathlib import Path

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.pages import cachestat

PAGE = 4096


def flags_of(address: int) -> set[str]:
    """VmFlags of the mapping at the address."""
    found = re.search(
        rf"^{address:x}-.*?^VmFlags: (.*?)$",
        Path("/proc/self/smaps").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    assert found is not None
    return set(found[1].split())


@pytest.mark.parametrize(
    ("protection", "may"), [("none", set()), ("read", {"rd"}), ("read-write", {"rd", "wr"})]
)
def test_a_mapping_is_shared_and_left_out_of_dumps_and_children(
    fd: int, protection: str, may: set[str]
) -> None:
    with Mapping(fd, PAGE, 8 * PAGE, protection=protection) as window:  # type: ignore[arg-type]
        flags = flags_of(window.address)
    assert {"sh", "dd", "dc"} <= flags
    assert flags & {"rd", "wr"} == may


def test_hugetlb_is_mapped_without_a_reservation(huge_fd: int) -> None:
    def reserved() -> int:
        path = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")
        return int(path.read_text())

    before = reserved()
    with Mapping(huge_fd, 0, 8 << 21, noreserve=True) as window:
        assert "nr" in flags_of(window.address)
        assert reserved() == before


def test_populating_makes_pages_and_dropping_keeps_them(fd: int) -> None:
    with Mapping(fd, 0, 16 * PAGE, protection="read-write") as window:
        window.populate_write(0, 2 * PAGE)
        window.populate_read(4 * PAGE, PAGE)
        assert [byte & 1 for byte in window.mincore(0, 6 * PAGE)] == [1, 1, 0, 0, 1, 0]
        window.drop_pages(0, 16 * PAGE)
        assert cachestat(fd, 0, 16 * PAGE).pages == 3


def test_populating_past_the_end_is_an_error_not_a_signal(memfd: int) -> None:
    with Mapping(memfd, 0, 16 * PAGE, protection="read") as window:
        os.ftruncate(memfd, 4 * PAGE)
        with pytest.raises(KernelError) as caught:
            window.populate_read(0, 16 * PAGE)
    assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize(("offset", "length"), [(-PAGE, PAGE), (0, 9 * PAGE), (8 * PAGE, PAGE)])
def test_nothing_outside_the_mapping_is_touched(memfd: int, offset: int, length: int) -> None:
    with Mapping(memfd, 0, 8 * PAGE) as window, pytest.raises(ValueError, match="outside"):
        window.populate_read(offset, length)


def test_a_closed_mapping_is_gone(memfd: int) -> None:
    window = Mapping(memfd, 0, 8 * PAGE)
    window.close()
    window.close()
    with pytest.raises(ValueError, match="outside"):
        window.mincore(0, PAGE)


def test_an_unaligned_offset_is_refused(memfd: int) -> None:
    with pytest.raises(KernelError) as caught:
        Mapping(memfd, 100, PAGE)
    assert caught.value.errno_name == "EINVAL"
