/*
 * The system calls and ioctls that gmemd makes, with one face: 0 or a positive result, or -errno.
 * Numbers and structures that a distribution's headers may lack are defined here; the kernel's
 * uAPI is stable, and every structure's size is asserted.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

/* --- numbers -------------------------------------------------------------------------------- */

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node 450
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

#ifndef EHWPOISON
#define EHWPOISON 133
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_MINOR_HUGETLBFS
#define UFFD_FEATURE_MINOR_HUGETLBFS (1 << 9)
#endif
#ifndef UFFD_FEATURE_MINOR_SHMEM
#define UFFD_FEATURE_MINOR_SHMEM (1 << 10)
#endif
#ifndef UFFDIO_REGISTER_MODE_MINOR
#define UFFDIO_REGISTER_MODE_MINOR ((uint64_t)1 << 2)
#endif

/* Nodemasks are for 1024 nodes, the most that a kernel is built for (CONFIG_NODES_SHIFT=10). */
#define GM_NODES 1024
#define GM_MASK_WORDS (GM_NODES / 64)
#define GM_ERRNOS 256
/* In an array of nodes: this page isn't resident. No errno is as large. */
#define GM_ABSENT (-32768)

#define GM_KVMIO 0xAE
#define GM_CAP_GUEST_MEMFD 234
#define GM_CAP_GUEST_MEMFD_FLAGS 244
#define GM_GUEST_MEMFD_MMAP 1
#define GM_GUEST_MEMFD_INIT_SHARED 2

#define GM_PROT_NONE PROT_NONE
#define GM_PROT_READ PROT_READ
#define GM_PROT_READ_WRITE (PROT_READ | PROT_WRITE)

#define GM_MADV_DONTNEED MADV_DONTNEED
#define GM_MADV_POPULATE_READ MADV_POPULATE_READ
#define GM_MADV_POPULATE_WRITE MADV_POPULATE_WRITE

#define GM_MFD_HUGE_SHIFT 26
#define GM_MFD_HUGETLB 4U

#define GM_MPOL_F_ADDR (1 << 1)
#define GM_MPOL_F_MEMS_ALLOWED (1 << 2)
#define GM_MPOL_F_NUMA_BALANCING (1 << 13)
#define GM_MPOL_F_RELATIVE_NODES (1 << 14)
#define GM_MPOL_F_STATIC_NODES (1 << 15)

#define GM_FALLOC_KEEP_SIZE 1
#define GM_FALLOC_PUNCH_HOLE 2

#define GM_PR_SET_PDEATHSIG PR_SET_PDEATHSIG
#define GM_PR_SET_DUMPABLE PR_SET_DUMPABLE

#define GM_HUGETLBFS_MAGIC 0x958458f6
#define GM_CGROUP2_MAGIC 0x63677270

/* --- structures ----------------------------------------------------------------------------- */

struct gm_kvm_create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};

struct gm_cachestat {
	uint64_t cache;
	uint64_t dirty;
	uint64_t writeback;
	uint64_t evicted;
	uint64_t recently_evicted;
};

struct gm_cachestat_range {
	uint64_t offset;
	uint64_t length;
};

struct gm_scan {
	uint64_t resident;
	uint64_t by_cachestat;
	uint64_t nodes_end;  /* one past the highest node seen */
	uint64_t errors_end; /* one past the highest errno seen */
	uint64_t by_node[GM_NODES];
	uint64_t errors[GM_ERRNOS];
};

struct gm_identity {
	uint64_t device;
	uint64_t inode;
	uint64_t size;
	uint64_t mode;
};

struct gm_uffdio_continue {
	struct uffdio_range range;
	uint64_t mode;
	int64_t mapped;
};

_Static_assert(sizeof(struct gm_kvm_create_guest_memfd) == 64, "kvm_create_guest_memfd");
_Static_assert(sizeof(struct gm_cachestat) == 40, "cachestat");
_Static_assert(sizeof(struct gm_cachestat_range) == 16, "cachestat_range");
_Static_assert(sizeof(struct uffdio_api) == 24, "uffdio_api");
_Static_assert(sizeof(struct uffdio_register) == 32, "uffdio_register");
_Static_assert(sizeof(struct gm_uffdio_continue) == 32, "uffdio_continue");
_Static_assert(sizeof(void *) == 8 && sizeof(unsigned long) == 8, "gmemd is for 64-bit hosts");

#define GM_KVM_CREATE_VM _IO(GM_KVMIO, 0x01)
#define GM_KVM_CHECK_EXTENSION _IO(GM_KVMIO, 0x03)
#define GM_KVM_CREATE_GUEST_MEMFD _IOWR(GM_KVMIO, 0xd4, struct gm_kvm_create_guest_memfd)
#define GM_UFFDIO_CONTINUE _IOWR(UFFDIO, 0x07, struct gm_uffdio_continue)

/* --- the seam ------------------------------------------------------------------------------- */

/*
 * Where a test has the kernel refuse: asked before each call, by the call's name, it gives an errno,
 * or 0 for the call to be made. Nothing but a test sets it.
 */
typedef int gm_seam_function(const char *call);

static gm_seam_function *gm_seam;

int64_t gm_set_seam(gm_seam_function *seam)
{
	gm_seam = seam;
	return 0;
}

static int refused(const char *call)
{
	gm_seam_function *seam = gm_seam;
	int error = __builtin_expect(seam != NULL, 0) ? seam(call) : 0;

	if (error)
		errno = error;
	return error != 0;
}

/* A call's result, or -1 with the errno that a test wants instead of it. */
#define TRY(name, call) (refused(name) ? -1 : (call))

static int64_t result_of(long value)
{
	return value < 0 ? -(int64_t)errno : (int64_t)value;
}

static uint64_t base_page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* --- KVM ------------------------------------------------------------------------------------ */

int64_t gm_kvm_open(const char *path)
{
	return result_of(TRY("open /dev/kvm", open(path, O_RDWR | O_CLOEXEC)));
}

/* Whatever stops a task for a moment, such as its cgroup's freezer, ends this with EINTR. */
int64_t gm_kvm_create_vm(int kvm_fd)
{
	int64_t result;

	do {
		result = result_of(TRY("KVM_CREATE_VM", ioctl(kvm_fd, GM_KVM_CREATE_VM, 0UL)));
	} while (result == -EINTR);
	return result;
}

int64_t gm_kvm_check_extension(int fd, uint64_t capability)
{
	return result_of(
		TRY("KVM_CHECK_EXTENSION", ioctl(fd, GM_KVM_CHECK_EXTENSION, (unsigned long)capability)));
}

/* The kernel gives the fd no close-on-exec flag, and doesn't check the reserved fields. */
int64_t gm_kvm_create_guest_memfd(int vm_fd, uint64_t size, uint64_t flags)
{
	struct gm_kvm_create_guest_memfd request = {.size = size, .flags = flags};
	int fd = TRY("KVM_CREATE_GUEST_MEMFD", ioctl(vm_fd, GM_KVM_CREATE_GUEST_MEMFD, &request));

	if (fd < 0)
		return -(int64_t)errno;
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
		int64_t error = -(int64_t)errno;

		close(fd);
		return error;
	}
	return fd;
}

/* --- files ---------------------------------------------------------------------------------- */

int64_t gm_memfd_create(const char *name, unsigned int flags)
{
	return result_of(
		TRY("memfd_create", syscall(SYS_memfd_create, name, flags | MFD_CLOEXEC)));
}

int64_t gm_ftruncate(int fd, uint64_t size)
{
	return result_of(TRY("ftruncate", ftruncate(fd, (off_t)size)));
}

int64_t gm_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
	return result_of(
		TRY("fallocate", fallocate(fd, mode, (off_t)offset, (off_t)length)));
}

int64_t gm_filesystem_type(int fd)
{
	struct statfs status;

	if (TRY("fstatfs", fstatfs(fd, &status)) < 0)
		return -(int64_t)errno;
	return (int64_t)((uint64_t)status.f_type & 0xffffffffU);
}

/* What the kernel knows of the file by itself: a file system that would have to ask isn't asked. */
int64_t gm_identify(int fd, struct gm_identity *out)
{
	struct statx status;

	if (TRY("statx", statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
			       STATX_TYPE | STATX_INO | STATX_SIZE, &status)) < 0)
		return -(int64_t)errno;
	out->device = makedev(status.stx_dev_major, status.stx_dev_minor);
	out->inode = status.stx_ino;
	out->size = status.stx_size;
	out->mode = status.stx_mode;
	return 0;
}

/* --- mappings ------------------------------------------------------------------------------- */

int64_t gm_munmap(uint64_t address, uint64_t length)
{
	return result_of(munmap((void *)address, length));
}

int64_t gm_madvise(uint64_t address, uint64_t length, int advice)
{
	return result_of(TRY("madvise", madvise((void *)address, length, advice)));
}

/* Neither a core dump nor a child may read guest memory: the one fills holes, both leak it. */
int64_t gm_mmap(int fd, uint64_t offset, uint64_t length, int protection, int noreserve)
{
	int flags = MAP_SHARED | (noreserve ? MAP_NORESERVE : 0);
	void *address = refused("mmap") ? MAP_FAILED
					: mmap(NULL, length, protection, flags, fd, (off_t)offset);

	if (address == MAP_FAILED)
		return -(int64_t)errno;
	if (TRY("madvise", madvise(address, length, MADV_DONTDUMP)) < 0 ||
	    TRY("madvise", madvise(address, length, MADV_DONTFORK)) < 0) {
		int64_t error = -(int64_t)errno;

		munmap(address, length);
		return error;
	}
	return (int64_t)(uintptr_t)address;
}

int64_t gm_mincore(uint64_t address, uint64_t length, unsigned char *pages)
{
	return result_of(TRY("mincore", mincore((void *)address, length, pages)));
}

/*
 * Whether mincore tells the truth of this file: 1 or 0. It answers "resident" for every page to
 * those who may not write the file, so a page past the end, which can't be resident, shows it.
 */
int64_t gm_mincore_honest(int fd)
{
	uint64_t page = base_page_size();
	unsigned char resident = 1;
	struct stat status;
	int64_t address, result;

	if (fstat(fd, &status) < 0)
		return -(int64_t)errno;
	address = gm_mmap(fd, ((uint64_t)status.st_size + page - 1) / page * page, page, PROT_NONE, 1);
	if (address < 0)
		return address;
	result = gm_mincore((uint64_t)address, page, &resident);
	gm_munmap((uint64_t)address, page);
	return result < 0 ? result : !(resident & 1);
}

int64_t gm_cachestat(int fd, uint64_t offset, uint64_t length, struct gm_cachestat *out)
{
	struct gm_cachestat_range range = {.offset = offset, .length = length};

	return result_of(TRY("cachestat", syscall(SYS_cachestat, fd, &range, out, 0U)));
}

/* --- memory policies ------------------------------------------------------------------------ */

/* The kernel takes one bit less than maxnode says. */
int64_t gm_mbind(uint64_t address, uint64_t length, int mode, const uint64_t *mask)
{
	return result_of(TRY("mbind", syscall(SYS_mbind, address, length, (long)mode, mask,
					      mask ? GM_NODES + 1UL : 0UL, 0U)));
}

int64_t gm_set_mempolicy(int mode, const uint64_t *mask)
{
	return result_of(TRY("set_mempolicy", syscall(SYS_set_mempolicy, mode, mask,
						      mask ? GM_NODES + 1UL : 0UL)));
}

/* The kernel clears the buffer up to maxnode, rounded up to a word: one word more than used. */
int64_t gm_get_mempolicy(uint64_t address, int flags, int *mode, uint64_t *mask)
{
	uint64_t buffer[GM_MASK_WORDS + 1] = {0};
	long result = TRY("get_mempolicy", syscall(SYS_get_mempolicy, mode, buffer, GM_NODES + 1UL,
						   address, (unsigned long)flags));

	if (result < 0)
		return -(int64_t)errno;
	memcpy(mask, buffer, GM_MASK_WORDS * sizeof(*mask));
	return 0;
}

int64_t gm_set_mempolicy_home_node(uint64_t address, uint64_t length, int node)
{
	return result_of(TRY("set_mempolicy_home_node",
			     syscall(SYS_set_mempolicy_home_node, address, length,
				     (unsigned long)node, 0UL)));
}

/* --- pages ---------------------------------------------------------------------------------- */

/* Only the process' own pages are moved (flags 0); nodes == NULL asks where they are. */
int64_t gm_move_pages(int pid, uint64_t count, const uint64_t *addresses, const int *nodes,
		      int *status)
{
	return result_of(TRY("move_pages",
			     syscall(SYS_move_pages, pid, count, addresses, nodes, status, 0)));
}

#define BATCH 512 /* pages looked at between two looks at the file: 2 MiB of 4 KiB pages */

/* The nodes (or -errno) of up to BATCH mapped pages of this process. */
static int64_t query_batch(uint64_t address, uint64_t pages, uint64_t step, int16_t *nodes)
{
	uint64_t addresses[BATCH] = {0};
	int status[BATCH];
	int64_t result;
	uint64_t i;

	for (i = 0; i < pages; i++)
		addresses[i] = address + i * step;
	result = gm_move_pages(0, pages, addresses, NULL, status);
	if (result < 0)
		return result;
	for (i = 0; i < pages; i++)
		nodes[i] = (int16_t)status[i];
	return 0;
}

int64_t gm_query_range(uint64_t address, uint64_t pages, int16_t *nodes)
{
	uint64_t step = base_page_size(), done, count;
	int64_t result;

	for (done = 0; done < pages; done += count) {
		count = pages - done < BATCH ? pages - done : BATCH;
		result = query_batch(address + done * step, count, step, nodes + done);
		if (result < 0)
			return result;
	}
	return 0;
}

/* --- processes ------------------------------------------------------------------------------ */

int64_t gm_pidfd_open(int pid)
{
	return result_of(TRY("pidfd_open", syscall(SYS_pidfd_open, pid, 0U)));
}

int64_t gm_userfaultfd(unsigned int flags)
{
	return result_of(TRY("userfaultfd", syscall(SYS_userfaultfd, flags)));
}

int64_t gm_pidfd_getfd(int pidfd, int target_fd)
{
	return result_of(TRY("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, target_fd, 0U)));
}

int64_t gm_prctl(int option, unsigned long value)
{
	return result_of(TRY("prctl", prctl(option, value, 0UL, 0UL, 0UL)));
}
