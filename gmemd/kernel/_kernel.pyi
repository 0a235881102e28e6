from array import array
from collections.abc import Callable, Sequence
from typing import Final, Literal, overload

class CData: ...

class IntArray(CData):
    def __getitem__(self, index: int) -> int: ...

class CachestatCounts(CData):
    cache: int
    dirty: int
    writeback: int
    evicted: int
    recently_evicted: int

class Identity(CData):
    device: int
    inode: int
    size: int
    mode: int

class ScanCounts(CData):
    resident: int
    by_cachestat: int
    nodes_end: int
    errors_end: int
    by_node: IntArray
    errors: IntArray

class _Ffi:
    NULL: Final[CData]

    @overload
    def new(self, cdecl: Literal["struct gm_scan *"]) -> ScanCounts: ...
    @overload
    def new(self, cdecl: Literal["struct gm_cachestat *"]) -> CachestatCounts: ...
    @overload
    def new(self, cdecl: Literal["struct gm_identity *"]) -> Identity: ...
    @overload
    def new(
        self,
        cdecl: Literal["int *", "int[]", "uint64_t[]", "unsigned char[]"],
        init: int | Sequence[int] = ...,
    ) -> IntArray: ...
    def from_buffer(
        self, cdecl: str, python_buffer: array[int], *, require_writable: bool = False
    ) -> CData: ...
    def buffer(self, cdata: CData) -> bytes: ...
    def callback(self, cdecl: str, python_callable: Callable[[CData], int]) -> CData: ...
    def string(self, cdata: CData) -> bytes: ...
    def unpack(self, cdata: IntArray, length: int) -> list[int]: ...

class _Lib:
    GM_NODES: Final[int]
    GM_MASK_WORDS: Final[int]
    GM_ERRNOS: Final[int]
    GM_ABSENT: Final[int]
    GM_CAP_GUEST_MEMFD: Final[int]
    GM_CAP_GUEST_MEMFD_FLAGS: Final[int]
    GM_GUEST_MEMFD_MMAP: Final[int]
    GM_GUEST_MEMFD_INIT_SHARED: Final[int]
    GM_PROT_NONE: Final[int]
    GM_PROT_READ: Final[int]
    GM_PROT_READ_WRITE: Final[int]
    GM_MADV_DONTNEED: Final[int]
    GM_MADV_POPULATE_READ: Final[int]
    GM_MADV_POPULATE_WRITE: Final[int]
    GM_MFD_HUGE_SHIFT: Final[int]
    GM_MFD_HUGETLB: Final[int]
    GM_MPOL_F_ADDR: Final[int]
    GM_MPOL_F_MEMS_ALLOWED: Final[int]
    GM_MPOL_F_STATIC_NODES: Final[int]
    GM_MPOL_F_RELATIVE_NODES: Final[int]
    GM_MPOL_F_NUMA_BALANCING: Final[int]
    GM_FALLOC_KEEP_SIZE: Final[int]
    GM_FALLOC_PUNCH_HOLE: Final[int]
    GM_PR_SET_PDEATHSIG: Final[int]
    GM_PR_SET_DUMPABLE: Final[int]
    GM_HUGETLBFS_MAGIC: Final[int]
    GM_CGROUP2_MAGIC: Final[int]

    def gm_set_seam(self, seam: CData) -> int: ...
    def gm_kvm_open(self, path: bytes) -> int: ...
    def gm_kvm_create_vm(self, kvm_fd: int) -> int: ...
    def gm_kvm_check_extension(self, fd: int, capability: int) -> int: ...
    def gm_kvm_create_guest_memfd(self, vm_fd: int, size: int, flags: int) -> int: ...
    def gm_memfd_create(self, name: bytes, flags: int) -> int: ...
    def gm_ftruncate(self, fd: int, size: int) -> int: ...
    def gm_fallocate(self, fd: int, mode: int, offset: int, length: int) -> int: ...
    def gm_filesystem_type(self, fd: int) -> int: ...
    def gm_identify(self, fd: int, out: CData) -> int: ...
    def gm_mmap(
        self, fd: int, offset: int, length: int, protection: int, noreserve: int
    ) -> int: ...
    def gm_munmap(self, address: int, length: int) -> int: ...
    def gm_madvise(self, address: int, length: int, advice: int) -> int: ...
    def gm_mincore(self, address: int, length: int, pages: CData) -> int: ...
    def gm_mincore_honest(self, fd: int) -> int: ...
    def gm_cachestat(self, fd: int, offset: int, length: int, out: CData) -> int: ...
    def gm_mbind(self, address: int, length: int, mode: int, mask: CData) -> int: ...
    def gm_get_mempolicy(self, address: int, flags: int, mode: CData, mask: CData) -> int: ...
    def gm_set_mempolicy(self, mode: int, mask: CData) -> int: ...
    def gm_set_mempolicy_home_node(self, address: int, length: int, node: int) -> int: ...
    def gm_move_pages(
        self, pid: int, count: int, addresses: CData, nodes: CData, status: CData
    ) -> int: ...
    def gm_query_range(self, address: int, pages: int, nodes: CData) -> int: ...
    def gm_scan(
        self,
        fd: int,
        offset: int,
        address: int,
        length: int,
        use_cachestat: int,
        existing_only: int,
        nodes: CData,
        out: CData,
    ) -> int: ...
    def gm_sample(
        self,
        fd: int,
        offset: int,
        length: int,
        pages: CData,
        count: int,
        existing_only: int,
        nodes: CData,
        out: CData,
    ) -> int: ...
    def gm_sample_unread(self, fd: int, offset: int, pages: CData, count: int) -> int: ...
    def gm_scan_foreign(
        self, pid: int, address: int, step: int, listed: CData, pages: int, out: CData
    ) -> int: ...
    def gm_scan_huge(
        self,
        fd: int,
        offset: int,
        length: int,
        page_size: int,
        listed: CData,
        count: int,
        nodes: CData,
        out: CData,
    ) -> int: ...
    def gm_rescan(
        self,
        pagemap: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        nodes: CData,
        runs: CData,
        most_runs: int,
        lost: CData,
        found: CData,
    ) -> int: ...
    def gm_userfaultfd(self, flags: int) -> int: ...
    def gm_pidfd_open(self, pid: int) -> int: ...
    def gm_pidfd_getfd(self, pidfd: int, target_fd: int) -> int: ...
    def gm_prctl(self, option: int, value: int) -> int: ...

lib: _Lib
ffi: _Ffi
