/* SPDX-License-Identifier: Apache-2.0 */
/* The child forks and ends at once; the grandchild, re-parented, stays, then runs a new image. */
#include "facts.h"

int main(int argc, char **argv)
{
	pid_t middle;

	if (argc > 1) {
		fact("image", "\"pid\":%d,\"ppid\":%d", getpid(), getppid());
		hold();
		return 6;
	}
	middle = fork_or_fail();
	if (middle == 0) {
		pid_t maker = getpid();

		if (fork_or_fail())
			_exit(0);
		while (getppid() == maker)
			sched_yield();
		fact("grandchild", "\"pid\":%d,\"middle\":%d,\"ppid\":%d", getpid(), maker, getppid());
		execl("/proc/self/exe", argv[0], "again", NULL);
		_exit(127);
	}
	reap(middle);
	hold();
	return 0;
}
