/* SPDX-License-Identifier: Apache-2.0 */
/* For each byte on stdin: the time (CLOCK_REALTIME, ns), then fork() of a child that ends at once. Prints the times. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct timespec now;
	char byte;

	while (read(STDIN_FILENO, &byte, 1) == 1) {
		clock_gettime(CLOCK_REALTIME, &now);
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid < 0)
			return 1;
		waitpid(pid, NULL, 0);
		printf("%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
