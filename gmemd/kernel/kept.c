/*
 * Windows that stay mapped: what fell out of them is found by the page tables, and only that is
 * looked at again. This continues scan.c, whose scan it is made of.
 *
 * It tells the truth of memory whose pages can't move (guest_memfd): a page that is still mapped was
 * neither punched nor made anew since it was looked at, so it is where it was.
 */

#define GM_PAGEMAP_SCAN_RUNS 256 /* told by one call */

struct gm_page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct gm_pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

_Static_assert(sizeof(struct gm_page_region) == 24, "page_region");
_Static_assert(sizeof(struct gm_pm_scan_arg) == 96, "pm_scan_arg");

#define GM_PAGEMAP_SCAN _IOWR('f', 16, struct gm_pm_scan_arg)
#define GM_PAGE_IS_PRESENT (1ULL << 3)

struct rescan {
	struct scan scan;    /* counts what was read anew */
	struct gm_scan *lost;
	uint64_t *runs;      /* first page and number of pages, in turn */
	uint64_t most_runs;
	uint64_t n_runs;
};

/* Ranges of the window, from an address on, that no page table entry maps: how many. */
static int64_t find_unmapped(int pagemap, uint64_t start, uint64_t end,
			     struct gm_page_region *regions, uint64_t *walked_to)
{
	struct gm_pm_scan_arg request = {
		.size = sizeof(request),
		.start = start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = GM_PAGEMAP_SCAN_RUNS,
		.category_inverted = GM_PAGE_IS_PRESENT,
		.category_mask = GM_PAGE_IS_PRESENT,
		.return_mask = GM_PAGE_IS_PRESENT,
	};
	int64_t result;

	do {
		result = result_of(TRY("PAGEMAP_SCAN", ioctl(pagemap, GM_PAGEMAP_SCAN, &request)));
	} while (result == -EINTR);
	*walked_to = request.walk_end;
	return result;
}

static void add_run(struct rescan *rescan, uint64_t page, uint64_t count)
{
	if (rescan->n_runs < rescan->most_runs) {
		rescan->runs[2 * rescan->n_runs] = page;
		rescan->runs[2 * rescan->n_runs + 1] = count;
	}
	rescan->n_runs++;
}

/* Runs of pages that are there, of those just looked at; one that was punched meanwhile isn't. */
static void note_runs(struct rescan *rescan, uint64_t page, uint64_t end)
{
	int16_t *nodes = rescan->scan.nodes;
	uint64_t start = page;

	for (; page < end; page++) {
		if (nodes[page] == -ENOENT)
			nodes[page] = GM_ABSENT;
		if (nodes[page] != GM_ABSENT)
			continue;
		if (page > start)
			add_run(rescan, start, page - start);
		start = page + 1;
	}
	if (end > start)
		add_run(rescan, start, end - start);
}

/* Forgets what was known of pages that aren't mapped any more, and looks at them. */
static int64_t look_again(struct rescan *rescan, uint64_t first, uint64_t end)
{
	struct scan known = {.out = rescan->lost};
	int16_t *nodes = rescan->scan.nodes;
	uint64_t page, count;
	int64_t result;

	for (page = first; page < end; page++) {
		if (nodes[page] != GM_ABSENT)
			count_page(&known, page, nodes[page]);
		nodes[page] = GM_ABSENT;
	}
	result = cached_pages(&rescan->scan, first, end - first);
	if (result <= 0)
		return result;
	for (page = first; page < end; page += count) {
		count = end - page < BATCH ? end - page : BATCH;
		result = scan_range(&rescan->scan, page, count);
		if (result < 0)
			return result;
	}
	note_runs(rescan, first, end);
	return 0;
}

static int64_t rescan_all(struct rescan *rescan, int pagemap, uint64_t length)
{
	struct gm_page_region regions[GM_PAGEMAP_SCAN_RUNS];
	uint64_t base = rescan->scan.address, at = base, step = rescan->scan.page_size;
	int64_t found, i;

	while (at < base + length) {
		found = find_unmapped(pagemap, at, base + length, regions, &at);
		for (i = 0; i < found; i++) {
			int64_t result = look_again(rescan, (regions[i].start - base) / step,
						    (regions[i].end - base) / step);

			if (result < 0)
				return result;
		}
		if (found < 0)
			return found;
	}
	return 0;
}

/*
 * Looks again at a window whose pages' nodes are known: what isn't mapped any more is counted in
 * lost, as it was known, and read anew into nodes and found. How many runs of pages were read anew,
 * the first of which are told.
 */
int64_t gm_rescan(int pagemap, int fd, uint64_t offset, uint64_t address, uint64_t length,
		  int16_t *nodes, uint64_t *runs, uint64_t most_runs, struct gm_scan *lost,
		  struct gm_scan *found)
{
	struct rescan rescan = {
		.scan = {.fd = fd, .offset = offset, .address = address,
			 .page_size = base_page_size(), .use_cachestat = 1, .uffd = -1,
			 .nodes = nodes, .out = found},
		.lost = lost, .runs = runs, .most_runs = most_runs};
	int64_t result;

	memset(lost, 0, sizeof(*lost));
	memset(found, 0, sizeof(*found));
	result = rescan_all(&rescan, pagemap, length);
	return result < 0 ? result : (int64_t)rescan.n_runs;
}
