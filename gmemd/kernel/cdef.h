/* What Python sees of kernel.c, scan.c and kept.c. Every function returns 0 or a positive result, or -errno. */

#define GM_NODES ...
#define GM_MASK_WORDS ...
#define GM_ERRNOS ...
#define GM_ABSENT ...

#define GM_CAP_GUEST_MEMFD ...
#define GM_CAP_GUEST_MEMFD_FLAGS ...
#define GM_GUEST_MEMFD_MMAP ...
#define GM_GUEST_MEMFD_INIT_SHARED ...

#define GM_PROT_NONE ...
#define GM_PROT_READ ...
#define GM_PROT_READ_WRITE ...

#define GM_MADV_DONTNEED ...
#define GM_MADV_POPULATE_READ ...
#define GM_MADV_POPULATE_WRITE ...

#define GM_MFD_HUGE_SHIFT ...
#define GM_MFD_HUGETLB ...

#define GM_MPOL_F_ADDR ...
#define GM_MPOL_F_MEMS_ALLOWED ...
#define GM_MPOL_F_STATIC_NODES ...
#define GM_MPOL_F_RELATIVE_NODES ...
#define GM_MPOL_F_NUMA_BALANCING ...

#define GM_FALLOC_KEEP_SIZE ...
#define GM_FALLOC_PUNCH_HOLE ...

#define GM_PR_SET_PDEATHSIG ...
#define GM_PR_SET_DUMPABLE ...

#define GM_HUGETLBFS_MAGIC ...
#define GM_CGROUP2_MAGIC ...

struct gm_cachestat {
	uint64_t cache;
	uint64_t dirty;
	uint64_t writeback;
	uint64_t evicted;
	uint64_t recently_evicted;
};

struct gm_identity {
	uint64_t device;
	uint64_t inode;
	uint64_t size;
	uint64_t mode;
};

struct gm_scan {
	uint64_t resident;
	uint64_t by_cachestat;
	uint64_t nodes_end;
	uint64_t errors_end;
	uint64_t by_node[...];
	uint64_t errors[...];
};

typedef int gm_seam_function(const char *call);
int64_t gm_set_seam(gm_seam_function *seam);

int64_t gm_kvm_open(const char *path);
int64_t gm_kvm_create_vm(int kvm_fd);
int64_t gm_kvm_check_extension(int fd, uint64_t capability);
int64_t gm_kvm_create_guest_memfd(int vm_fd, uint64_t size, uint64_t flags);

int64_t gm_memfd_create(const char *name, unsigned int flags);
int64_t gm_ftruncate(int fd, uint64_t size);
int64_t gm_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
int64_t gm_filesystem_type(int fd);
int64_t gm_identify(int fd, struct gm_identity *out);

int64_t gm_mmap(int fd, uint64_t offset, uint64_t length, int protection, int noreserve);
int64_t gm_munmap(uint64_t address, uint64_t length);
int64_t gm_madvise(uint64_t address, uint64_t length, int advice);
int64_t gm_mincore(uint64_t address, uint64_t length, unsigned char *pages);
int64_t gm_mincore_honest(int fd);
int64_t gm_cachestat(int fd, uint64_t offset, uint64_t length, struct gm_cachestat *out);

int64_t gm_mbind(uint64_t address, uint64_t length, int mode, const uint64_t *mask);
int64_t gm_get_mempolicy(uint64_t address, int flags, int *mode, uint64_t *mask);
int64_t gm_set_mempolicy(int mode, const uint64_t *mask);
int64_t gm_set_mempolicy_home_node(uint64_t address, uint64_t length, int node);

int64_t gm_move_pages(int pid, uint64_t count, const uint64_t *addresses, const int *nodes,
		      int *status);
int64_t gm_query_range(uint64_t address, uint64_t pages, int16_t *nodes);

int64_t gm_scan(int fd, uint64_t offset, uint64_t address, uint64_t length, int use_cachestat,
		int existing_only, int16_t *nodes, struct gm_scan *out);
int64_t gm_sample(int fd, uint64_t offset, uint64_t length, const uint64_t *pages, uint64_t count,
		  int existing_only, int16_t *nodes, struct gm_scan *out);
int64_t gm_sample_unread(int fd, uint64_t offset, const uint64_t *pages, uint64_t count);
int64_t gm_scan_foreign(int pid, uint64_t address, uint64_t step, const uint64_t *listed,
			uint64_t pages, struct gm_scan *out);
int64_t gm_scan_huge(int fd, uint64_t offset, uint64_t length, uint64_t page_size,
		     const uint64_t *listed, uint64_t count, int16_t *nodes, struct gm_scan *out);

int64_t gm_rescan(int pagemap, int fd, uint64_t offset, uint64_t address, uint64_t length,
		  int16_t *nodes, uint64_t *runs, uint64_t most_runs, struct gm_scan *lost,
		  struct gm_scan *found);

int64_t gm_userfaultfd(unsigned int flags);
int64_t gm_pidfd_open(int pid);
int64_t gm_pidfd_getfd(int pidfd, int target_fd);
int64_t gm_prctl(int option, unsigned long value);
