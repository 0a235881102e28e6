/*
 * The floor of provisioning: allocates a file's pages by bare system calls, on threads that share
 * the range out in chunks, and prints the nanoseconds that it took.
 *
 *     provision FD BYTES THREADS CHUNK_BYTES fallocate|populate
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { MAX_THREADS = 64 };

static int fd;
static uint64_t size;
static uint64_t chunk;
static bool by_fallocate;
static char *window;
static atomic_ullong next;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void *work(void *unused)
{
	uint64_t offset;

	while ((offset = atomic_fetch_add(&next, chunk)) < size) {
		uint64_t length = size - offset < chunk ? size - offset : chunk;

		if (by_fallocate) {
			if (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length))
				fail("fallocate");
		} else if (madvise(window + offset, length, MADV_POPULATE_WRITE)) {
			fail("madvise");
		}
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	uint64_t begun;
	int n_threads;

	if (argc != 6)
		return 2;
	fd = atoi(argv[1]);
	size = strtoull(argv[2], NULL, 10);
	n_threads = atoi(argv[3]);
	chunk = strtoull(argv[4], NULL, 10);
	by_fallocate = !strcmp(argv[5], "fallocate");
	if (n_threads < 1 || n_threads > MAX_THREADS || !chunk)
		return 2;
	begun = now_ns();
	if (!by_fallocate) {
		window = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (window == MAP_FAILED)
			fail("mmap");
	}
	for (int n = 1; n < n_threads; n++)
		if (pthread_create(&threads[n], NULL, work, NULL))
			fail("pthread_create");
	work(NULL);
	for (int n = 1; n < n_threads; n++)
		pthread_join(threads[n], NULL);
	printf("%llu\n", (unsigned long long)(now_ns() - begun));
	return 0;
}
