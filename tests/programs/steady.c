/* SPDX-License-Identifier: Apache-2.0 */
/* Until stdin ends: one child after the other, each told, with a pause between them (argv[1], microseconds). */
#include "facts.h"

#include <poll.h>

int main(int argc, char **argv)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	int pause_us = argc > 1 ? atoi(argv[1]) : 100000;
	pid_t pid;

	do {
		pid = fork_or_fail();
		if (pid == 0)
			_exit(0);
		reap(pid);
		fact("child", "\"pid\":%d", pid);
	} while (poll(&input, 1, pause_us / 1000) == 0);
	return 0;
}
