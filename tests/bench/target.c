/*
 * A process to look at: so many MiB of touched anonymous memory, like a guest's, in 4 KiB pages.
 * It measures how long its own mmap + touch + munmap takes, over and over, and prints on SIGUSR1 what
 * it measured since the last one: count, median, 99th and 99.9th percentile, worst, in nanoseconds.
 *
 *   target … -m MIB …      (it is given a VMM's command line)
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

enum { BUCKET_NS = 1000, BUCKETS = 1 << 20, PIECE = 64 << 10 };

static volatile sig_atomic_t asked;
static uint32_t histogram[BUCKETS];

static void ask(int signal)
{
	(void)signal;
	asked = 1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t percentile(uint64_t total, double part)
{
	uint64_t wanted = (uint64_t)((double)total * part), seen = 0;
	uint64_t bucket;

	for (bucket = 0; bucket < BUCKETS - 1; bucket++) {
		seen += histogram[bucket];
		if (seen > wanted)
			break;
	}
	return bucket * BUCKET_NS;
}

static void report(uint64_t total, uint64_t worst)
{
	printf("%lu %lu %lu %lu %lu\n", total, percentile(total, 0.5), percentile(total, 0.99),
	       percentile(total, 0.999), worst);
	fflush(stdout);
	memset(histogram, 0, sizeof(histogram));
}

int main(int argc, char **argv)
{
	struct timespec pause = {.tv_nsec = 50000};
	uint64_t total = 0, worst = 0;
	size_t mib = 0;
	char *memory;

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "-m"))
			mib = strtoul(argv[i + 1], NULL, 10);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	memory = mmap(NULL, (mib << 20) + (4 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory = (char *)(((uintptr_t)memory + (2 << 20)) & ~(uintptr_t)((2 << 20) - 1));
	if (mmap(memory, mib << 20, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return 1;
	madvise(memory, mib << 20, MADV_NOHUGEPAGE);
	if (madvise(memory, mib << 20, MADV_POPULATE_WRITE) != 0)
		return 1;
	signal(SIGUSR1, ask);
	puts("ready");
	fflush(stdout);
	for (;;) {
		uint64_t start = now_ns(), took;
		char *piece = mmap(NULL, PIECE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (piece == MAP_FAILED)
			return 1;
		*piece = 1;
		munmap(piece, PIECE);
		took = now_ns() - start;
		histogram[took / BUCKET_NS < BUCKETS ? took / BUCKET_NS : BUCKETS - 1]++;
		total++;
		if (took > worst)
			worst = took;
		if (asked) {
			asked = 0;
			report(total, worst);
			total = worst = 0;
		}
		nanosleep(&pause, NULL);
	}
}
