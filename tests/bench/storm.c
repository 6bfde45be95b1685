/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worst an application can do: N times a child that ends at once, by vfork(), the cheapest way there is.
 * With "exec" the child first executes this program again. With "turns" there is a storm for every byte on stdin.
 * Prints one line a storm, with the time it took. Knows nothing of who watches.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A function of its own: what the child does to its frame does not matter, nobody returns into it. */
static __attribute__((noinline)) pid_t child(char **argv)
{
	pid_t pid = vfork();

	if (pid)
		return pid;
	if (argv)
		execv("/proc/self/exe", argv);
	_exit(argv != NULL);
}

static int storm(long children, char **again)
{
	long long start_ns = now_ns();

	for (long i = 0; i < children; i++) {
		pid_t pid = child(again);
		int status;

		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			fprintf(stderr, "storm: child %ld: %s\n", i, strerror(errno));
			return 1;
		}
	}
	printf("{\"children\": %ld, \"elapsed_ns\": %lld}\n", children, now_ns() - start_ns);
	fflush(stdout);
	return 0;
}

int main(int argc, char **argv)
{
	char end[] = "end", *again[] = {argv[0], end, NULL};
	const char *mode = argc > 2 ? argv[2] : "";
	long children = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	char byte;

	if (argc == 2 && strcmp(argv[1], end) == 0)
		return 0;
	if (children <= 0) {
		fprintf(stderr, "usage: %s CHILDREN [exec|turns]\n", argv[0]);
		return 2;
	}
	if (strcmp(mode, "turns") != 0)
		return storm(children, strcmp(mode, "exec") == 0 ? again : NULL);
	while (read(STDIN_FILENO, &byte, 1) == 1)
		if (storm(children, NULL))
			return 1;
	return 0;
}
