/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storm: without end, a child that forks a grandchild and ends, and a grandchild that ends at once; both are told. A
 * byte on stdin pauses it, when no descendant is alive, another lets it go on. At the end of stdin it ends.
 */
#include "facts.h"
#include <inttypes.h>
#include <poll.h>
#include <sys/mman.h>
#include <time.h>

enum { TURNS = 1 << 20 };

struct turn {
	uint64_t wall_ns; /* before the first fork */
	int32_t child, grandchild;
};

static struct turn *turns;

static uint64_t wall_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Returns when both are gone: only they hold the pipe, and a process lets go of its files after its exit was seen. */
static void take_turn(struct turn *turn)
{
	int gate[2];
	pid_t child;
	char byte;

	if (pipe(gate))
		fail("pipe");
	turn->wall_ns = wall_ns();
	child = fork_or_fail();
	if (child == 0) {
		pid_t grandchild = fork();

		if (grandchild > 0)
			turn->grandchild = grandchild;
		_exit(grandchild < 0);
	}
	turn->child = child;
	close(gate[1]);
	while (read(gate[0], &byte, 1) < 0 && errno == EINTR)
		;
	close(gate[0]);
	if (waitpid(child, NULL, 0) != child)
		fail("waitpid");
}

static void tell(long from, long to)
{
	for (; from < to; from++)
		fact("turn", "\"wall_ns\":%" PRIu64 ",\"pids\":[%d,%d]", turns[from].wall_ns, turns[from].child,
		     turns[from].grandchild);
	fact("paused", "\"turns\":%ld", to);
}

int main(void)
{
	struct pollfd stop = {.fd = STDIN_FILENO, .events = POLLIN};
	const struct timespec rest = {.tv_nsec = 100000};
	long told = 0;

	turns = mmap(NULL, TURNS * sizeof(*turns), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (turns == MAP_FAILED)
		fail("mmap");
	fact("root", "\"pid\":%d", getpid());
	for (long i = 0; i < TURNS; i++) {
		char byte;

		take_turn(&turns[i]);
		nanosleep(&rest, NULL);
		if (i == 0)
			fact("begun", "\"pid\":%d", turns[i].child);
		if (poll(&stop, 1, 0) <= 0)
			continue;
		if (read(STDIN_FILENO, &byte, 1) <= 0)
			return 0;
		tell(told, i + 1);
		told = i + 1;
		if (read(STDIN_FILENO, &byte, 1) <= 0)
			return 0;
	}
	fail("too many turns");
}
