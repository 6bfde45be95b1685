/* SPDX-License-Identifier: Apache-2.0 */
/* The root takes in orphans: its grandchild becomes its child, yet was forked by the dead middle. */
#include "facts.h"
#include <sys/prctl.h>

int main(void)
{
	pid_t root = getpid(), middle;

	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail("prctl");
	middle = fork_or_fail();
	if (middle == 0) {
		if (fork_or_fail())
			_exit(0);
		while (getppid() != root)
			sched_yield();
		fact("grandchild", "\"pid\":%d,\"ppid\":%d", getpid(), getppid());
		hold();
		_exit(0);
	}
	fact("middle", "\"pid\":%d", middle);
	reap(middle);
	hold();
	while (wait(NULL) > 0)
		;
	return 0;
}
