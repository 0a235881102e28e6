"""Pages: which are resident, and on which host node each is. The loops run in C, without the GIL.

``scan_window`` and ``scan_huge_window`` look at resident pages only and never allocate a hole.
"""

from __future__ import annotations

import errno
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.kernel._kernel import ffi, lib
from gmemd.kernel.errors import KernelError, invoke
from gmemd.kernel.memfd import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping as MappingOf
    from collections.abc import Sequence

    from gmemd.kernel._kernel import CData, IntArray, ScanCounts
    from gmemd.kernel.mapping import Mapping

ABSENT = lib.GM_ABSENT
"""In an array of nodes: the page isn't resident."""


@dataclass(frozen=True, slots=True)
class Cachestat:
    """What the page cache holds of a range, in base pages."""

    cache: int
    dirty: int
    writeback: int
    evicted: int
    recently_evicted: int

    @property
    def pages(self) -> int:
        """Resident pages, those never touched included."""
        return self.cache


@dataclass(frozen=True, slots=True)
class WindowScan:
    """A window's resident pages, in pages of its page size.

    sum(by_node) + sum(errors) = resident_pages. ``errors`` counts, by errno, resident pages whose
    node wasn't seen (EHWPOISON: poisoned, EFAULT: private to the guest, ENOENT: gone meanwhile).
    ``method`` is how residency was told: ``cachestat``, ``mincore`` (which misses pages that were
    allocated and never touched) or ``continue`` (hugetlb). ``nodes``, where asked for, has one
    entry per page of the window: its node, -errno, or ABSENT.
    """

    resident_pages: int
    by_node: MappingOf[int, int] = field(default_factory=dict)
    errors: MappingOf[int, int] = field(default_factory=dict)
    method: str = "cachestat"
    nodes: array[int] | None = None


@dataclass(frozen=True, slots=True)
class ForeignScan:
    """Pages of another process, as many as were asked for: sum(by_node) + sum(errors) = pages.

    ``errors`` counts by errno. ENOENT: nothing is mapped there; it never was touched, was swapped
    out, or is poisoned or a device's memory. EFAULT: only the kernel's shared page of zeros is
    mapped (memory that was read before it was written), or the address is in no mapping at all;
    kernels before 6.12 [read] say so of some holes, too. None of these is memory that the process
    maps: ``absent_pages``. Huge pages answer at any address within them, alike (THP and hugetlb),
    and so do pages in a PROT_NONE mapping. A private mapping of a file answers with the file's
    page where it was only read, with its own copy where it was written.
    """

    pages: int
    by_node: MappingOf[int, int] = field(default_factory=dict)
    errors: MappingOf[int, int] = field(default_factory=dict)

    @property
    def absent_pages(self) -> int:
        """Pages that the process has no memory for."""
        return self.errors.get(errno.ENOENT, 0) + self.errors.get(errno.EFAULT, 0)


def cachestat(fd: int, offset: int, length: int) -> Cachestat:
    """Counts of a file's range. Raises KernelError: EOPNOTSUPP for hugetlb, ENOSYS before 6.5."""
    if length <= 0:
        return Cachestat(0, 0, 0, 0, 0)
    out = ffi.new("struct gm_cachestat *")
    what = f"counting the pages of {length} bytes at offset {offset} of fd {fd}"
    invoke("cachestat", lib.gm_cachestat, fd, offset, length, out, what=what)
    return Cachestat(out.cache, out.dirty, out.writeback, out.evicted, out.recently_evicted)


def mincore_is_honest(fd: int) -> bool:
    """Whether mincore tells this process the truth about the file, which it must be able to map."""
    return bool(invoke("mincore", lib.gm_mincore_honest, fd, what="probing mincore"))


def move_pages_query(pid: int, addresses: Sequence[int]) -> array[int]:
    """The node of each address of a process (0: this one), or -errno (-ENOENT: not mapped)."""
    return _move_pages(pid, addresses, ffi.NULL, "asking for the nodes of")


def move_pages_move(pid: int, addresses: Sequence[int], nodes: Sequence[int]) -> array[int]:
    """Asks to move pages that only that process maps; per page its node then, or -errno.

    guest_memfd pages stay where they are, and the call still succeeds: believe the result of a
    later query only.
    """
    if len(nodes) != len(addresses):
        raise ValueError("one node per address")
    return _move_pages(pid, addresses, ffi.new("int[]", list(nodes)), "moving")


def _move_pages(pid: int, addresses: Sequence[int], nodes: CData, doing: str) -> array[int]:
    status = array("i", bytes(4 * len(addresses)))
    if not status:
        return status
    invoke(
        "move_pages",
        lib.gm_move_pages,
        pid,
        len(addresses),
        ffi.from_buffer("uint64_t[]", array("Q", addresses)),
        nodes,
        ffi.from_buffer("int[]", status, require_writable=True),
        what=f"{doing} {len(addresses)} pages of " + (f"pid {pid}" if pid else "this process"),
    )
    return status


def query_range(address: int, pages: int) -> array[int]:
    """The node of each of ``pages`` base pages of this process from ``address`` on, or -errno."""
    nodes = array("h", bytes(2 * pages))
    if pages:
        what = f"asking for the nodes of {pages} pages of this process"
        buffer = ffi.from_buffer("int16_t[]", nodes, require_writable=True)
        invoke("move_pages", lib.gm_query_range, address, pages, buffer, what=what)
    return nodes


def scan_window(
    mapping: Mapping,
    offset: int,
    length: int,
    page_size: int = PAGE_SIZE,
    *,
    per_page: bool = False,
    use_cachestat: bool = True,
    existing_only: bool = False,
) -> WindowScan:
    """The resident pages of a window (bytes into the mapping) and their nodes.

    The mapping must be readable; what is resident gets mapped, holes stay holes. Residency is
    cachestat's; where there is none (or not ``use_cachestat``), mincore's. ``existing_only`` is for
    a memfd (never guest_memfd) that others use: its pages are mapped through userfaultfd's
    UFFDIO_CONTINUE, so that one which is punched in the instant between isn't made again.

    A ``page_size`` above the base page's is a hugetlb file: its scan has a mapping of its own.
    Raises KernelError: EPERM where neither tells this process the truth.
    """
    if page_size != PAGE_SIZE:
        mapping.at(offset, length)
        return scan_huge_window(
            mapping.fd, mapping.offset + offset, length, page_size, per_page=per_page
        )
    out = ffi.new("struct gm_scan *")
    nodes = array("h", bytes(2 * (length // page_size))) if per_page else None
    invoke(
        "scan of a memfd in use" if existing_only else "scan",
        lib.gm_scan,
        mapping.fd,
        mapping.offset + offset,
        mapping.at(offset, length),
        length,
        int(use_cachestat),
        int(existing_only),
        _buffer_of(nodes),
        out,
        what=f"scanning {length} bytes at offset {mapping.offset + offset} of fd {mapping.fd}",
    )
    return scanned(out, "cachestat" if out.by_cachestat else "mincore", nodes)


def sample_pages(
    fd: int,
    offset: int,
    length: int,
    pages: array[int],
    page_size: int = PAGE_SIZE,
    *,
    existing_only: bool = False,
) -> WindowScan:
    """As ``scan_window``, of single pages of a file's range: their numbers in it (type Q).

    ``pages`` ascend from one 2 MiB to the next, with the least first and the greatest last; the
    result's ``nodes`` go with them. The range is mapped piece by piece (of huge pages: whole), and
    no piece is when the call returns.
    """
    out = ffi.new("struct gm_scan *")
    if pages and not 0 <= pages[0] <= pages[-1] < length // page_size:
        raise ValueError(f"not all pages are within {length} bytes")
    nodes = array("h", bytes(2 * len(pages)))
    listed, told = ffi.from_buffer("uint64_t[]", pages), _buffer_of(nodes)
    what = f"scanning {len(pages)} pages of fd {fd}"
    if page_size != PAGE_SIZE:
        huge = (fd, offset, length, page_size, listed, len(pages), told, out)
        invoke("scan of huge pages", lib.gm_scan_huge, *huge, what=what)
        return scanned(out, "continue", nodes)
    call = "scan of a memfd in use" if existing_only else "scan"
    small = (fd, offset, length, listed, len(pages), int(existing_only), told, out)
    invoke(call, lib.gm_sample, *small, what=what)
    return scanned(out, "cachestat" if out.by_cachestat or not pages else "mincore", nodes)


def resident_of(fd: int, offset: int, pages: array[int]) -> int:
    """Count which base pages of a file exist, by their numbers from ``offset`` on (type Q).

    Nothing is mapped. Raises KernelError as `cachestat` does.
    """
    listed = ffi.from_buffer("uint64_t[]", pages)
    what = f"counting {len(pages)} pages of fd {fd}"
    return invoke("cachestat", lib.gm_sample_unread, fd, offset, listed, len(pages), what=what)


def scan_foreign_range(pid: int, address: int, pages: int, page_size: int) -> ForeignScan:
    """Where ``pages`` pages of a process are, from ``address`` on, one every ``page_size`` bytes.

    Nothing is mapped, allocated or moved. The process' mmap lock is taken shared, for 16 pages at
    a time, with pauses every 0.1 ms. Raises KernelError: EPERM without ptrace access, ESRCH if the
    process is gone, EINVAL while it exits.
    """
    return _scan_foreign(pid, address, page_size, ffi.NULL, pages)


def scan_foreign_pages(pid: int, addresses: array[int]) -> ForeignScan:
    """As ``scan_foreign_range``, of the pages at these addresses (type Q), in their order."""
    return _scan_foreign(pid, 0, 0, ffi.from_buffer("uint64_t[]", addresses), len(addresses))


def _scan_foreign(pid: int, address: int, step: int, listed: CData, pages: int) -> ForeignScan:
    out = ffi.new("struct gm_scan *")
    what = f"asking for the nodes of {pages} pages of pid {pid}"
    invoke("move_pages", lib.gm_scan_foreign, pid, address, step, listed, pages, out, what=what)
    return ForeignScan(
        pages=out.resident,
        by_node=_counts(out.by_node, out.nodes_end),
        errors=_counts(out.errors, out.errors_end),
    )


def scan_huge_window(
    fd: int, offset: int, length: int, page_size: int, *, per_page: bool = False
) -> WindowScan:
    """The resident huge pages of a hugetlb file's range and their nodes, in pages of that size.

    Offset and length are multiples of ``page_size``. Huge pages that exist are mapped through
    userfaultfd's UFFDIO_CONTINUE, which never makes one. Raises KernelError.
    """
    if offset % page_size or length % page_size:
        what = f"{offset}+{length} is no range of pages of {page_size} bytes"
        raise KernelError("scan of huge pages", errno.EINVAL, what, hint="align the range")
    out = ffi.new("struct gm_scan *")
    nodes = array("h", bytes(2 * (length // page_size))) if per_page else None
    what = f"scanning {length} bytes at offset {offset} of fd {fd}"
    buffer = _buffer_of(nodes)
    call = "scan of huge pages"
    arguments = (fd, offset, length, page_size, ffi.NULL, 0, buffer, out)
    invoke(call, lib.gm_scan_huge, *arguments, what=what)
    return scanned(out, "continue", nodes)


def _buffer_of(nodes: array[int] | None) -> CData:
    if not nodes:
        return ffi.NULL
    return ffi.from_buffer("int16_t[]", nodes, require_writable=True)


def scanned(out: ScanCounts, method: str, nodes: array[int] | None = None) -> WindowScan:
    """Give what a scan of scan.c counted."""
    return WindowScan(
        resident_pages=out.resident,
        by_node=_counts(out.by_node, out.nodes_end),
        errors=_counts(out.errors, out.errors_end),
        method=method,
        nodes=nodes,
    )


def _counts(values: IntArray, end: int) -> dict[int, int]:
    return {index: pages for index, pages in enumerate(ffi.unpack(values, end)) if pages}
