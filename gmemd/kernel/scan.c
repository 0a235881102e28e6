/*
 * Scans: which pages of a file's window, or of another process, are resident, and on which node
 * each is. This continues kernel.c, whose calls it is made of.
 */

/* --- mapping what exists -------------------------------------------------------------------- */

static int64_t open_minor_faults(uint64_t address, uint64_t length, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	struct uffdio_register request = {
		.range = {.start = address, .len = length},
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	int fd = (int)TRY("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK |
							    UFFD_USER_MODE_ONLY));

	if (fd < 0)
		return -(int64_t)errno;
	if (TRY("UFFDIO_API", ioctl(fd, UFFDIO_API, &api)) < 0 ||
	    TRY("UFFDIO_REGISTER", ioctl(fd, UFFDIO_REGISTER, &request)) < 0) {
		int64_t error = -(int64_t)errno;

		close(fd);
		return error;
	}
	return fd;
}

/* Maps pages that exist, from the first on: how many bytes, or -errno for the first of them. */
static int64_t map_existing(int uffd, uint64_t address, uint64_t length)
{
	struct gm_uffdio_continue request;
	int64_t result;

	do {
		request = (struct gm_uffdio_continue){
			.range = {.start = address, .len = length},
			.mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
		};
		result = result_of(TRY("UFFDIO_CONTINUE", ioctl(uffd, GM_UFFDIO_CONTINUE, &request)));
		if (result == -EAGAIN && request.mapped > 0)
			return request.mapped;
	} while (result == -EAGAIN || result == -EINTR);
	return result == 0 ? (int64_t)length : result;
}

/* --- scan ----------------------------------------------------------------------------------- */

/*
 * A scan finds the resident pages of a mapped window and the node of each. The truth about
 * residency is cachestat, which counts pages that were allocated and never touched, too; mincore,
 * which doesn't know those, only saves cachestat calls where both count the same. A range is
 * populated right after the look that found all of it resident, so that the instant in which a
 * page could be punched and be made again is the shortest possible; a hole is never populated.
 *
 * With a userfaultfd over the window nothing is populated: what exists is mapped by UFFDIO_CONTINUE,
 * which never makes a page, so that instant does no harm.
 */
struct scan {
	int fd;
	uint64_t offset;  /* of the window, in the file */
	uint64_t address; /* of the window */
	uint64_t page_size;
	int use_cachestat;
	int uffd;       /* over the window, or -1 */
	int16_t *nodes; /* per page, or NULL */
	struct gm_scan *out;
};

/* Counts pages in a row that answered alike: a node, or -errno. */
static void count_pages(struct scan *scan, uint64_t page, uint64_t count, int16_t node)
{
	struct gm_scan *out = scan->out;
	uint64_t error = node < 0 && node > -GM_ERRNOS ? (uint64_t)-node : ERANGE, i;

	out->resident += count;
	for (i = 0; scan->nodes && i < count; i++)
		scan->nodes[page + i] = node;
	if (node >= 0 && node < GM_NODES) {
		out->by_node[node] += count;
		if (out->nodes_end <= (uint64_t)node)
			out->nodes_end = (uint64_t)node + 1;
		return;
	}
	out->errors[error] += count;
	if (out->errors_end <= error)
		out->errors_end = error + 1;
}

static void count_page(struct scan *scan, uint64_t page, int16_t node)
{
	count_pages(scan, page, 1, node);
}

static int64_t populate_read(uint64_t address, uint64_t length)
{
	int64_t result;

	do {
		result = gm_madvise(address, length, MADV_POPULATE_READ);
	} while (result == -EINTR);
	return result;
}

/* One bad page (poisoned, private) fails a whole populate: halve until it stands alone. */
static void populate_around(struct scan *scan, uint64_t page, uint64_t count, int16_t *failed)
{
	uint64_t half = count / 2;
	int64_t result = populate_read(scan->address + page * scan->page_size,
				       count * scan->page_size);

	if (result == 0)
		return;
	if (count == 1) {
		*failed = (int16_t)result;
		return;
	}
	populate_around(scan, page, half, failed);
	populate_around(scan, page + half, count - half, failed + half);
}

/*
 * A page of a memfd that was punched meanwhile is told by EFAULT, one behind a new end by EINVAL, and
 * a poisoned one by EIO [read: shmem_get_folio_gfp, mfill_atomic_pte_continue].
 */
static int16_t why_unmapped(int64_t error)
{
	if (error == -EFAULT || error == -EINVAL)
		return -ENOENT;
	return (int16_t)(error == -EIO ? -EHWPOISON : error);
}

static void map_run(struct scan *scan, uint64_t page, uint64_t count, int16_t *failed)
{
	uint64_t done = 0;

	while (done < count) {
		int64_t mapped = map_existing(scan->uffd,
					      scan->address + (page + done) * scan->page_size,
					      (count - done) * scan->page_size);

		if (mapped > 0) {
			done += (uint64_t)mapped / scan->page_size;
			continue;
		}
		if (mapped != -EEXIST)
			failed[done] = why_unmapped(mapped);
		done++;
	}
}

static int64_t cached_pages(const struct scan *scan, uint64_t page, uint64_t count)
{
	struct gm_cachestat stat;
	int64_t result = gm_cachestat(scan->fd, scan->offset + page * scan->page_size,
				      count * scan->page_size, &stat);

	return result < 0 ? result : (int64_t)stat.cache;
}

static int64_t mark_resident(const struct scan *scan, uint64_t page, uint64_t count,
			     unsigned char *marks)
{
	int64_t result = gm_mincore(scan->address + page * scan->page_size,
				    count * scan->page_size, marks);
	uint64_t i, marked = 0;

	for (i = 0; result == 0 && i < count; i++)
		marked += marks[i] & 1;
	return result < 0 ? result : (int64_t)marked;
}

static int64_t is_resident(const struct scan *scan, uint64_t page)
{
	unsigned char mark;

	if (scan->out->by_cachestat)
		return cached_pages(scan, page, 1);
	return mark_resident(scan, page, 1, &mark);
}

static void map_page(struct scan *scan, uint64_t page, int16_t *failed)
{
	if (scan->uffd >= 0)
		map_run(scan, page, 1, failed);
	else
		populate_around(scan, page, 1, failed);
}

/*
 * A page that the kernel moves, or tries to write back, at this moment is in the file and in no
 * page table: one that was mapped and is told as none is mapped and looked at again, each time a
 * little later. What stays in the file and is never seen is EAGAIN; what left it meanwhile stays
 * ENOENT. [tried: MADV_PAGEOUT of a memfd without swap, 6.18]
 */
#define MAPPED_AGAIN 5
#define FIRST_PAUSE_NS 50000L

static int64_t map_again(struct scan *scan, uint64_t page, int *status, int16_t *failed)
{
	uint64_t address = scan->address + page * scan->page_size;
	int time;

	for (time = 0; time < MAPPED_AGAIN && *status == -ENOENT && !*failed; time++) {
		struct timespec pause = {.tv_nsec = FIRST_PAUSE_NS << time};
		int64_t result;

		if (time)
			nanosleep(&pause, NULL);
		result = is_resident(scan, page);
		if (result <= 0)
			return result;
		map_page(scan, page, failed);
		result = gm_move_pages(0, 1, &address, NULL, status);
		if (result < 0)
			return result;
	}
	if (*status == -ENOENT && !*failed)
		*failed = -EAGAIN;
	return 0;
}

static int16_t node_of(int status, int16_t failed)
{
	return status < 0 && failed ? failed : (int16_t)status;
}

/* Maps up to BATCH resident pages and counts them by node. */
static int64_t take_run(struct scan *scan, uint64_t page, uint64_t count)
{
	uint64_t addresses[BATCH], start = 0, i;
	int16_t failed[BATCH] = {0};
	int status[BATCH];
	int64_t result;

	if (scan->uffd >= 0)
		map_run(scan, page, count, failed);
	else
		populate_around(scan, page, count, failed);
	for (i = 0; i < count; i++)
		addresses[i] = scan->address + (page + i) * scan->page_size;
	result = gm_move_pages(0, count, addresses, NULL, status);
	if (result < 0)
		return result;
	for (i = 0; i < count; i++) {
		if (status[i] != -ENOENT)
			continue;
		result = map_again(scan, page + i, status + i, failed + i);
		if (result < 0)
			return result;
	}
	for (i = 1; i <= count; i++) {
		int16_t node = node_of(status[start], failed[start]);

		if (i < count && node_of(status[i], failed[i]) == node)
			continue;
		count_pages(scan, page + start, i - start, node);
		start = i;
	}
	return 0;
}

static int64_t take_marked(struct scan *scan, uint64_t page, uint64_t count,
			   const unsigned char *marks)
{
	uint64_t start, end;
	int64_t result;

	for (start = 0; start < count; start = end) {
		for (end = start; end < count && (marks[end] & 1) == (marks[start] & 1);)
			end++;
		if (!(marks[start] & 1))
			continue;
		result = take_run(scan, page + start, end - start);
		if (result < 0)
			return result;
	}
	return 0;
}

/* Up to BATCH pages: all, none, as mincore says if it counts the same, or else each half. */
static int64_t scan_range(struct scan *scan, uint64_t page, uint64_t count)
{
	unsigned char marks[BATCH];
	int64_t cached = cached_pages(scan, page, count), marked, result;

	if (cached <= 0)
		return cached;
	if ((uint64_t)cached >= count)
		return take_run(scan, page, count);
	marked = mark_resident(scan, page, count, marks);
	if (marked < 0)
		return marked;
	if (marked == cached)
		return take_marked(scan, page, count, marks);
	result = scan_range(scan, page, count / 2);
	if (result < 0)
		return result;
	return scan_range(scan, page + count / 2, count - count / 2);
}

static int64_t scan_range_by_mincore(struct scan *scan, uint64_t page, uint64_t count)
{
	unsigned char marks[BATCH];
	int64_t marked = mark_resident(scan, page, count, marks);

	if (marked <= 0)
		return marked;
	return take_marked(scan, page, count, marks);
}

/*
 * Chooses the look: 1 cachestat, 0 mincore, -errno where neither tells the truth. To those who may
 * not write the file cachestat says EPERM, and a filter does to all.
 */
static int64_t choose_look(const struct scan *scan)
{
	int64_t result = -ENOSYS;

	if (scan->use_cachestat)
		result = cached_pages(scan, 0, 1);
	if (result >= 0)
		return 1;
	if (result == -EOPNOTSUPP || result == -EPERM)
		return result;
	result = gm_mincore_honest(scan->fd);
	if (result < 0)
		return result;
	return result ? 0 : -EPERM;
}

static int64_t scan_all(struct scan *scan, uint64_t pages)
{
	struct gm_scan *out = scan->out;
	uint64_t page, count;
	int64_t result = choose_look(scan);

	if (result < 0)
		return result;
	out->by_cachestat = (uint64_t)result;
	if (out->by_cachestat && pages > BATCH && cached_pages(scan, 0, pages) == 0)
		return 0;
	for (page = 0; page < pages; page += count) {
		count = pages - page < BATCH ? pages - page : BATCH;
		result = out->by_cachestat ? scan_range(scan, page, count)
					   : scan_range_by_mincore(scan, page, count);
		if (result < 0)
			return result;
	}
	return 0;
}

int64_t gm_scan(int fd, uint64_t offset, uint64_t address, uint64_t length, int use_cachestat,
		int existing_only, int16_t *nodes, struct gm_scan *out)
{
	struct scan scan = {.fd = fd, .offset = offset, .address = address,
			    .page_size = base_page_size(), .use_cachestat = use_cachestat,
			    .uffd = -1, .nodes = nodes, .out = out};
	uint64_t pages = length / scan.page_size, page;
	int64_t result;

	memset(out, 0, sizeof(*out));
	for (page = 0; nodes && page < pages; page++)
		nodes[page] = GM_ABSENT;
	if (pages == 0)
		return 0;
	if (existing_only) {
		result = open_minor_faults(address, length, UFFD_FEATURE_MINOR_SHMEM);
		if (result < 0)
			return result;
		scan.uffd = (int)result;
	}
	result = scan_all(&scan, pages);
	if (scan.uffd >= 0)
		close(scan.uffd);
	return result;
}

/* --- sample --------------------------------------------------------------------------------- */

/*
 * What a sample maps at a time. It decides on what page tables cost, which is what makes a sample of
 * a large file dearer than one of a small file. Measured, us a page for 4,096 pages of 1, 4 and
 * 8 GiB: windows of 128 MiB 2.3, 2.8 and 3.2, of 512 MiB 2.4, 2.9 and 3.2, of 1 GiB 2.6, 3.1 and
 * 3.4, of 4 GiB 2.6, 3.5 and 3.7.
 */
#define SAMPLE_WINDOW (128ULL << 20)

/* Counts pages that are mapped, by their places in the sample. */
static int64_t query_listed(struct scan *scan, const uint64_t *addresses, int16_t *failed,
			    const uint64_t *places, uint64_t count)
{
	int status[BATCH];
	int64_t result = gm_move_pages(0, count, addresses, NULL, status);
	uint64_t i;

	if (result < 0)
		return result;
	for (i = 0; i < count; i++) {
		result = map_again(scan, (addresses[i] - scan->address) / scan->page_size,
				   status + i, failed + i);
		if (result < 0)
			return result;
		count_page(scan, places[i], node_of(status[i], failed[i]));
	}
	return 0;
}

/*
 * Pages of a mapped window, by their numbers in the file's range, each mapped right after the look
 * at it. The first one's place in the sample is ``place``.
 */
static int64_t sample_window(struct scan *scan, const uint64_t *pages, uint64_t count,
			     uint64_t first, uint64_t place)
{
	uint64_t addresses[BATCH], places[BATCH], found = 0, i;
	int16_t failed[BATCH];

	for (i = 0; i < count; i++) {
		int64_t result = is_resident(scan, pages[i] - first);

		if (result < 0)
			return result;
		if (result > 0) {
			failed[found] = 0;
			map_page(scan, pages[i] - first, failed + found);
			places[found] = place + i;
			addresses[found++] = scan->address + (pages[i] - first) * scan->page_size;
		}
		if (found == BATCH || (found && i + 1 == count)) {
			result = query_listed(scan, addresses, failed, places, found);
			if (result < 0)
				return result;
			found = 0;
		}
	}
	return 0;
}

static int64_t map_and_sample(struct scan *scan, const uint64_t *pages, uint64_t count,
			      uint64_t first, uint64_t length, uint64_t place, int existing_only)
{
	int64_t address = gm_mmap(scan->fd, scan->offset, length, PROT_READ, 0), result = 0;

	if (address < 0)
		return address;
	scan->address = (uint64_t)address;
	scan->uffd = -1;
	if (existing_only) {
		result = open_minor_faults(scan->address, length, UFFD_FEATURE_MINOR_SHMEM);
		scan->uffd = (int)result;
	}
	if (result >= 0)
		result = choose_look(scan);
	if (result >= 0) {
		scan->out->by_cachestat = (uint64_t)result;
		result = sample_window(scan, pages, count, first, place);
	}
	if (scan->uffd >= 0)
		close(scan->uffd);
	gm_munmap(scan->address, length);
	return result;
}

/*
 * As gm_scan, of single pages of a file's range, by their numbers in it: window after window, in
 * any order within one. The nodes are in that order, too.
 */
int64_t gm_sample(int fd, uint64_t offset, uint64_t length, const uint64_t *pages, uint64_t count,
		  int existing_only, int16_t *nodes, struct gm_scan *out)
{
	struct scan scan = {.fd = fd, .page_size = base_page_size(), .use_cachestat = 1,
			    .nodes = nodes, .out = out};
	uint64_t done, end, in_window = SAMPLE_WINDOW / scan.page_size;
	int64_t result;

	memset(out, 0, sizeof(*out));
	for (done = 0; nodes && done < count; done++)
		nodes[done] = GM_ABSENT;
	for (done = 0; done < count; done = end) {
		uint64_t first = pages[done] / in_window * in_window;
		uint64_t start = first * scan.page_size;

		for (end = done; end < count && pages[end] / in_window == first / in_window;)
			end++;
		scan.offset = offset + start;
		result = map_and_sample(&scan, pages + done, end - done, first,
					length - start < SAMPLE_WINDOW ? length - start
								       : SAMPLE_WINDOW,
					done, existing_only);
		if (result < 0)
			return result;
	}
	return 0;
}

/* Counts which single pages of a file exist, whatever they are; nothing is mapped. */
int64_t gm_sample_unread(int fd, uint64_t offset, const uint64_t *pages, uint64_t count)
{
	struct scan scan = {.fd = fd, .offset = offset, .page_size = base_page_size()};
	uint64_t found = 0, i;

	for (i = 0; i < count; i++) {
		int64_t result = cached_pages(&scan, pages[i], 1);

		if (result < 0)
			return result;
		found += (uint64_t)result;
	}
	return (int64_t)found;
}

/* --- pages of another process --------------------------------------------------------------- */

/*
 * The kernel takes the process' mmap lock, shared, for 16 addresses at a time. Who looks without a
 * pause holds it nearly always, and on a busy host loses the CPU while holding it: the process'
 * mmap, munmap and brk then wait until it has the CPU again. So it is left alone for most of the
 * time. Measured on two CPUs with twice as many tasks ready to run, the process being looked at over
 * and over: 1 % of its mmaps took more than 1 ms without pauses, 0.2 % with these (0.1 and 0.4 ms).
 */
#define FOREIGN_BATCH 128
#define HOLD_NS 100000
#define REST_NS 400000		/* a sample: 4,096 pages in some 20 ms */
#define REST_IN_A_ROW_NS 200000 /* a look at everything: 16 GiB of small pages in some 4 s */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t rest(long rest_ns)
{
	struct timespec duration = {.tv_nsec = rest_ns};

	nanosleep(&duration, NULL);
	return now_ns();
}

/* Counts pages by node and errno: those listed, or from an address on, so many bytes apart. */
int64_t gm_scan_foreign(int pid, uint64_t address, uint64_t step, const uint64_t *listed,
			uint64_t pages, struct gm_scan *out)
{
	struct scan scan = {.out = out};
	uint64_t addresses[FOREIGN_BATCH], done, count, i;
	int status[FOREIGN_BATCH];
	int64_t result, rested = now_ns();

	memset(out, 0, sizeof(*out));
	for (done = 0; done < pages; done += count) {
		if (now_ns() - rested >= HOLD_NS)
			rested = rest(listed ? REST_NS : REST_IN_A_ROW_NS);
		count = pages - done < FOREIGN_BATCH ? pages - done : FOREIGN_BATCH;
		for (i = 0; i < count; i++)
			addresses[i] = listed ? listed[done + i] : address + (done + i) * step;
		result = gm_move_pages(pid, count, addresses, NULL, status);
		if (result < 0)
			return result;
		for (i = 0; i < count; i++)
			count_page(&scan, done + i, (int16_t)status[i]);
	}
	return 0;
}

/* --- scan of huge pages --------------------------------------------------------------------- */

/*
 * hugetlbfs answers neither cachestat nor (for unmapped pages) mincore, and populating makes
 * holes into pages. UFFDIO_CONTINUE fails with EFAULT for a hole.
 */
static int64_t look_at_huge(struct scan *scan, uint64_t page, uint64_t place)
{
	uint64_t address = scan->address + page * scan->page_size;
	int64_t found = map_existing(scan->uffd, address, scan->page_size), result;
	int16_t node = (int16_t)found;

	if (found == -EFAULT)
		return 0;
	if (found > 0 || found == -EEXIST) {
		result = query_batch(address, 1, scan->page_size, &node);
		if (result < 0)
			return result;
	} else if (found != -EHWPOISON) {
		return found;
	}
	count_page(scan, place, node);
	return 0;
}

/* Those listed, by their numbers in the range; without a list, all. */
int64_t gm_scan_huge(int fd, uint64_t offset, uint64_t length, uint64_t page_size,
		     const uint64_t *listed, uint64_t count, int16_t *nodes, struct gm_scan *out)
{
	struct scan scan = {.fd = fd, .offset = offset, .page_size = page_size, .nodes = nodes,
			    .out = out};
	uint64_t pages = listed ? count : length / page_size, i;
	int64_t address, result;

	memset(out, 0, sizeof(*out));
	for (i = 0; nodes && i < pages; i++)
		nodes[i] = GM_ABSENT;
	address = gm_mmap(fd, offset, length, PROT_READ, 1);
	if (address < 0)
		return address;
	scan.address = (uint64_t)address;
	result = open_minor_faults(scan.address, length, UFFD_FEATURE_MINOR_HUGETLBFS);
	if (result >= 0) {
		scan.uffd = (int)result;
		for (i = 0; result >= 0 && i < pages; i++)
			result = look_at_huge(&scan, listed ? listed[i] : i, i);
		close(scan.uffd);
	}
	gm_munmap(scan.address, length);
	return result < 0 ? result : 0;
}
