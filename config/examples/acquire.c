/*
 * A client of gmemd in C, with no library: all there is to the protocol.
 *
 *     cc -Wall -Wextra -o acquire acquire.c
 *     ./acquire VM [SOCKET]
 *
 * It acquires the memory of a VM, maps every region, prints where the layout wants it, and holds it
 * until its standard input ends. A reply is JSON that ends with a NUL byte; the file descriptors
 * come with its first bytes.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FDS 253 /* what one message carries, by the kernel's own limit */

struct reply {
	char *text; /* JSON, with the NUL */
	int fds[MAX_FDS];
	size_t n_fds;
};

/* ---- JSON, as far as it takes: the text is the daemon's, and well-formed ---- */

static const char *space(const char *at)
{
	while (isspace((unsigned char)*at))
		at++;
	return at;
}

/* The end of the value that begins at `at`. */
static const char *skip(const char *at)
{
	int depth = 0;

	do {
		if (*at == '"') {
			for (at++; *at != '"'; at++)
				if (*at == '\\')
					at++;
		} else if (*at == '{' || *at == '[') {
			depth++;
		} else if (*at == '}' || *at == ']') {
			depth--;
		} else if (depth == 0) { /* a number, true, false or null */
			return at + strcspn(at, ",]} \t\r\n");
		}
		at++;
	} while (depth > 0);
	return at;
}

/* The value of a member of the object at `at`; NULL if it has none, or null. */
static const char *member(const char *at, const char *name)
{
	size_t length = strlen(name);

	for (at = space(at + 1); *at != '}'; at = space(at)) {
		const char *key = at + 1;
		const char *value = space(skip(at));

		value = space(value + 1); /* behind the colon */
		if (!strncmp(key, name, length) && key[length] == '"')
			return *value == 'n' ? NULL : value;
		at = space(skip(value));
		at += *at == ',';
	}
	return NULL;
}

/* The first element of the array at `at`, or the one behind an element; NULL at the end. */
static const char *first(const char *at)
{
	at = space(at + 1);
	return *at == ']' ? NULL : at;
}

static const char *next(const char *at)
{
	at = space(skip(at));
	return *at == ',' ? space(at + 1) : NULL;
}

static int64_t number(const char *object, const char *name)
{
	const char *value = member(object, name);

	if (!value)
		errx(1, "a region without %s", name);
	return strtoll(value, NULL, 10);
}

/* ---- varlink: a call, and its reply with file descriptors ---- */

static int call(const char *path, const char *vm)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char *request;
	int length;

	if (strlen(path) >= sizeof(address.sun_path))
		errx(2, "%s: too long", path);
	strcpy(address.sun_path, path);
	if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof(address)))
		err(4, "%s", path);
	length = asprintf(&request,
			  "{\"method\":\"io.gmemd.Acquire\",\"parameters\":{\"vm\":\"%s\"}}", vm);
	if (length < 0)
		err(1, "calling");
	for (int sent = 0; sent <= length;) { /* with the NUL at its end */
		ssize_t more = send(connection, request + sent, length + 1 - sent, MSG_NOSIGNAL);

		if (more < 0)
			err(4, "%s", path);
		sent += more;
	}
	free(request);
	return connection;
}

static struct reply receive(int connection)
{
	struct reply reply = { 0 };
	size_t length = 0, room = 0;

	do {
		union { /* aligned as control messages must be */
			char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
			struct cmsghdr align;
		} control;
		struct iovec data;
		struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
					  .msg_controllen = sizeof(control) };
		ssize_t more;

		if (length == room && !(reply.text = realloc(reply.text, room += 1 << 16)))
			err(1, "receiving");
		data = (struct iovec){ reply.text + length, room - length };
		more = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
		if (more <= 0)
			errx(4, "the daemon closed the connection");
		if (message.msg_flags & MSG_CTRUNC) /* RLIMIT_NOFILE is too low */
			errx(3, "file descriptors were lost");
		for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
			size_t size = head->cmsg_len - CMSG_LEN(0);

			if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
				continue;
			if (reply.n_fds + size / sizeof(int) > MAX_FDS)
				errx(1, "too many file descriptors");
			memcpy(reply.fds + reply.n_fds, CMSG_DATA(head), size);
			reply.n_fds += size / sizeof(int);
		}
		length += more;
	} while (reply.text[length - 1]);
	return reply;
}

/* ---- the memory ---- */

static void map(const char *region, const struct reply *reply)
{
	int64_t size = number(region, "size"), offset = number(region, "offset");
	size_t index = number(region, "fd_index");
	const char *extents = member(region, "extents");
	char *address;

	if (index >= reply->n_fds || !extents)
		errx(1, "a region without memory");
	address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, reply->fds[index], offset);
	if (address == MAP_FAILED)
		err(1, "mapping %" PRId64 " bytes", size);
	for (const char *extent = first(extents); extent; extent = next(extent)) {
		/* Here a VMM makes a memslot. An extent's offset is one in the file, as the region's. */
		char *there = address + (number(extent, "offset") - offset);

		printf("guest node %" PRId64 ": 0x%" PRIx64 " + 0x%" PRIx64 " is memory at %p\n",
		       number(region, "guest_node"), number(extent, "gpa"), number(extent, "size"),
		       (void *)there);
	}
}

int main(int argc, char **argv)
{
	const char *path = argc > 2 ? argv[2] : "/run/gmemd/io.gmemd";
	const char *error, *parameters, *regions;
	struct reply reply;
	int connection;

	if (argc < 2 || strspn(argv[1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				       "0123456789._-") != strlen(argv[1]))
		errx(2, "usage: acquire VM [SOCKET]");
	connection = call(path, argv[1]);
	reply = receive(connection);
	error = member(reply.text, "error");
	if (error) /* by its name a program tells what it is; its parameters have the details */
		errx(3, "%.*s", (int)(skip(error) - error), error);
	parameters = member(reply.text, "parameters");
	regions = parameters ? member(parameters, "regions") : NULL;
	if (!regions)
		errx(1, "a reply without regions");
	for (const char *region = first(regions); region; region = next(region))
		map(region, &reply);
	free(reply.text);
	for (size_t i = 0; i < reply.n_fds; i++)
		close(reply.fds[i]); /* the mappings stay */
	close(connection);	     /* so does the hold on the memory: it is this process's */
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
