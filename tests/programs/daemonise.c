/* SPDX-License-Identifier: Apache-2.0 */
/* As daemons do: fork, setsid, chdir, fork; the middle ends at once. */
#include "facts.h"

int main(void)
{
	pid_t middle = fork_or_fail();

	if (middle == 0) {
		pid_t maker = getpid();

		if (setsid() < 0 || chdir("/"))
			fail("setsid");
		if (fork_or_fail())
			_exit(0);
		while (getppid() == maker)
			sched_yield();
		fact("daemon", "\"pid\":%d,\"middle\":%d,\"ppid\":%d,\"sid\":%d", getpid(), maker, getppid(),
		     getsid(0));
		hold();
		_exit(0);
	}
	reap(middle);
	hold();
	return 0;
}
