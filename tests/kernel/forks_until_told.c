/* SPDX-License-Identifier: Apache-2.0 */
/* A child that stays, a daemon that nobody's ppid leads to, then short children until a line comes on stdin. */
#include <stdio.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	unsigned long children = 3;
	char byte;
	int gate[2];

	if (pipe(gate))
		return 1;
	if (fork() == 0) {
		close(gate[1]);
		return read(gate[0], &byte, 1) != 0;
	}
	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			close(gate[1]);
			return read(gate[0], &byte, 1) != 0;
		}
		return 0;
	}
	wait(NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct timeval now = {0, 0};
		fd_set set;

		FD_ZERO(&set);
		FD_SET(0, &set);
		if (select(1, &set, NULL, NULL, &now) > 0)
			break;
		if (fork() == 0)
			_exit(0);
		wait(NULL);
		children++;
	}
	close(gate[1]);
	while (wait(NULL) > 0)
		;
	printf("%lu\n", children);
	return 0;
}
