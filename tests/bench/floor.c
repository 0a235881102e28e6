/*
 * The least that a look at a guest_memfd's pages costs: the system calls alone, in C.
 *
 *   floor scan FD BYTES          every page, of memory that is all there: 2 MiB after 2 MiB
 *   floor sample FD BYTES PAGES  so many pages at random, by their numbers on standard input
 *   floor mapped FD BYTES        maps all of it, then waits for lines on standard input and reads
 *                                numa_maps once for each
 *
 * Each look prints a line: the CPU time that it took in nanoseconds, and the pages whose node it saw.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

enum { PAGE = 4096, BATCH = 512, WINDOW = 32 << 20 };

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void fail(const char *call)
{
	perror(call);
	exit(1);
}

static char *map(int fd, uint64_t offset, uint64_t length)
{
	char *address = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)offset);

	if (address == MAP_FAILED)
		fail("mmap");
	return address;
}

static uint64_t cached(int fd, uint64_t offset, uint64_t length)
{
	uint64_t range[2] = {offset, length}, counts[5];

	if (syscall(SYS_cachestat, fd, range, counts, 0U) < 0)
		fail("cachestat");
	return counts[0];
}

static uint64_t query(void **addresses, uint64_t pages)
{
	static int status[BATCH];
	uint64_t seen = 0;

	if (syscall(SYS_move_pages, 0, pages, addresses, NULL, status, 0) < 0)
		fail("move_pages");
	for (uint64_t i = 0; i < pages; i++)
		seen += status[i] >= 0;
	return seen;
}

static uint64_t scan(int fd, uint64_t bytes)
{
	static void *addresses[BATCH];
	uint64_t seen = 0;

	for (uint64_t offset = 0; offset < bytes; offset += WINDOW) {
		uint64_t length = bytes - offset < WINDOW ? bytes - offset : WINDOW;
		char *window = map(fd, offset, length);

		for (uint64_t at = 0; at < length; at += BATCH * PAGE) {
			if (cached(fd, offset + at, BATCH * PAGE) != BATCH)
				fail("a hole");
			if (madvise(window + at, BATCH * PAGE, MADV_POPULATE_READ) < 0)
				fail("madvise");
			for (uint64_t i = 0; i < BATCH; i++)
				addresses[i] = window + at + i * PAGE;
			seen += query(addresses, BATCH);
		}
		munmap(window, length);
	}
	return seen;
}

static uint64_t sample(int fd, uint64_t bytes, const uint64_t *pages, uint64_t count)
{
	static void *addresses[BATCH];
	uint64_t seen = 0, found = 0;
	char *window = map(fd, 0, bytes);

	for (uint64_t i = 0; i < count; i++) {
		char *page = window + pages[i] * PAGE;

		if (!cached(fd, pages[i] * PAGE, PAGE))
			continue;
		if (madvise(page, PAGE, MADV_POPULATE_READ) < 0)
			fail("madvise");
		addresses[found++] = page;
		if (found == BATCH) {
			seen += query(addresses, found);
			found = 0;
		}
	}
	if (found)
		seen += query(addresses, found);
	munmap(window, bytes);
	return seen;
}

/* The kernel counts the pages while it is read. */
static uint64_t read_numa_maps(uint64_t address)
{
	static char text[1 << 20];
	char start[32], *line, *node;
	uint64_t seen = 0;
	size_t filled = 0;
	ssize_t got;
	int fd = open("/proc/self/numa_maps", O_RDONLY);

	while ((got = read(fd, text + filled, sizeof(text) - 1 - filled)) > 0)
		filled += (size_t)got;
	close(fd);
	text[filled] = 0;
	snprintf(start, sizeof(start), "\n%lx ", address);
	line = strstr(text, start);
	if (!line)
		fail("numa_maps");
	*strchrnul(line + 1, '\n') = 0;
	for (node = strstr(line + 1, " N"); node; node = strstr(node + 1, " N"))
		seen += strtoul(strchr(node, '=') + 1, NULL, 10);
	return seen;
}

static void report(uint64_t started, uint64_t seen)
{
	printf("%lu %lu\n", now_ns() - started, seen);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int fd = argc > 3 ? atoi(argv[2]) : -1;
	uint64_t bytes = argc > 3 ? strtoull(argv[3], NULL, 10) : 0, started;
	char line[64];

	if (argc == 4 && !strcmp(argv[1], "scan")) {
		started = now_ns();
		report(started, scan(fd, bytes));
	} else if (argc == 5 && !strcmp(argv[1], "sample")) {
		uint64_t count = strtoull(argv[4], NULL, 10);
		uint64_t *pages = calloc(count, sizeof(*pages));

		if (fread(pages, sizeof(*pages), count, stdin) != count)
			fail("fread");
		started = now_ns();
		report(started, sample(fd, bytes, pages, count));
	} else if (argc == 4 && !strcmp(argv[1], "mapped")) {
		char *all = map(fd, 0, bytes);

		if (madvise(all, bytes, MADV_POPULATE_READ) < 0)
			fail("madvise");
		puts("ready");
		fflush(stdout);
		while (fgets(line, sizeof(line), stdin)) {
			started = now_ns();
			report(started, read_numa_maps((uint64_t)(uintptr_t)all));
		}
	} else {
		return 2;
	}
	return 0;
}
