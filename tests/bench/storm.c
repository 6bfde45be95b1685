/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worst an application can do: N times a child that ends at once, by vfork(), the cheapest way there is. With
 * "exec" the child first executes this program again. Prints one line, its own time and CPU time. Knows nothing of who
 * watches.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* CPU time of this process and of the children it has waited for. */
static long long cpu_us(void)
{
	static const int whose[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
	long long total = 0;

	for (int i = 0; i < 2; i++) {
		struct rusage usage;

		getrusage(whose[i], &usage);
		total += (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL;
		total += usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	}
	return total;
}

static void child(char **argv)
{
	if (argv)
		execv("/proc/self/exe", argv);
	_exit(argv != NULL);
}

int main(int argc, char **argv)
{
	char end[] = "end", *again[] = {argv[0], end, NULL};
	long long start_ns, start_us;
	long children;

	if (argc == 2 && strcmp(argv[1], "end") == 0)
		return 0;
	children = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	if (children <= 0) {
		fprintf(stderr, "usage: %s CHILDREN [exec]\n", argv[0]);
		return 2;
	}
	start_us = cpu_us();
	start_ns = now_ns();
	for (long i = 0; i < children; i++) {
		int status;
		pid_t pid = vfork();

		if (pid == 0)
			child(argc > 2 ? again : NULL);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			fprintf(stderr, "storm: child %ld: %s\n", i, strerror(errno));
			return 1;
		}
	}
	printf("{\"children\": %ld, \"elapsed_ns\": %lld, \"cpu_us\": %lld}\n", children, now_ns() - start_ns,
	       cpu_us() - start_us);
	return 0;
}
