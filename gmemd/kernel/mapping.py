"""A window of a file in this process' address space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from gmemd.kernel._kernel import ffi, lib
from gmemd.kernel.errors import invoke
from gmemd.kernel.memfd import PAGE_SIZE

if TYPE_CHECKING:
    from types import TracebackType

Protection = Literal["none", "read", "read-write"]

_PROTECTIONS: dict[Protection, int] = {
    "none": lib.GM_PROT_NONE,
    "read": lib.GM_PROT_READ,
    "read-write": lib.GM_PROT_READ_WRITE,
}


class Mapping:
    """Maps ``length`` bytes of ``fd`` from ``offset`` on, shared, until the block ends.

    It is left out of core dumps and of children. ``fd`` must stay open as long as the mapping is
    scanned. ``noreserve`` is for hugetlb, which reserves huge pages without it. Raises
    KernelError: ENODEV for a guest_memfd without the MMAP flag.
    """

    def __init__(
        self,
        fd: int,
        offset: int,
        length: int,
        *,
        protection: Protection = "none",
        noreserve: bool = False,
    ) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length
        self.address = invoke(
            "mmap",
            lib.gm_mmap,
            fd,
            offset,
            length,
            _PROTECTIONS[protection],
            int(noreserve),
            what=f"mapping {length} bytes at offset {offset} of fd {fd}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps; a second call does nothing."""
        address, self.address = self.address, 0
        if address:
            what = f"unmapping {self.length} bytes"
            invoke("munmap", lib.gm_munmap, address, self.length, what=what)

    def at(self, offset: int, length: int = 0) -> int:
        """The address of ``offset`` (bytes into the mapping); ValueError outside of it."""
        if not self.address or offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{offset}+{length} is outside a mapping of {self.length} bytes")
        return self.address + offset

    def populate_read(self, offset: int, length: int) -> None:
        """Maps the pages of the range for reading. **Allocates holes.** EFAULT: private or gone."""
        self._advise(lib.GM_MADV_POPULATE_READ, "reading in", offset, length)

    def populate_write(self, offset: int, length: int) -> None:
        """Maps the pages of the range for writing, allocating holes."""
        self._advise(lib.GM_MADV_POPULATE_WRITE, "allocating", offset, length)

    def drop_pages(self, offset: int, length: int) -> None:
        """Drops the range's page table entries; the pages themselves stay in the file."""
        self._advise(lib.GM_MADV_DONTNEED, "dropping the page tables of", offset, length)

    def mincore(self, offset: int, length: int) -> bytes:
        """One byte per base page: its lowest bit says whether the page is resident and up to date.

        All ones for who may not write the file (``pages.mincore_is_honest``).
        """
        pages = ffi.new("unsigned char[]", -(-length // PAGE_SIZE))
        invoke(
            "mincore",
            lib.gm_mincore,
            self.at(offset, length),
            length,
            pages,
            what=f"looking at {length} bytes at offset {offset}",
        )
        return bytes(ffi.buffer(pages))

    def _advise(self, advice: int, doing: str, offset: int, length: int) -> None:
        invoke(
            "madvise",
            lib.gm_madvise,
            self.at(offset, length),
            length,
            advice,
            what=f"{doing} {length} bytes at offset {offset} of a mapping of fd {self.fd}",
        )
