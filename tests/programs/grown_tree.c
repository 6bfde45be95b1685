/* SPDX-License-Identifier: Apache-2.0 */
/* A tree that stands before anybody looks: child, grandchild, and an orphan whose maker has gone; the root leads the
 * session of all. */
#include "facts.h"

int main(void)
{
	pid_t root = getpid(), middle;

	if (getsid(0) != root && setsid() < 0)
		fail("setsid");
	if (fork_or_fail() == 0) {
		fact("child", "\"pid\":%d,\"parent\":%d", getpid(), getppid());
		if (fork_or_fail() == 0) {
			fact("grandchild", "\"pid\":%d,\"parent\":%d", getpid(), getppid());
			hold();
			_exit(0);
		}
		hold();
		wait(NULL);
		_exit(0);
	}
	middle = fork_or_fail();
	if (middle == 0) {
		pid_t maker = getpid();

		if (fork_or_fail())
			_exit(0);
		while (getppid() == maker)
			sched_yield();
		fact("orphan", "\"pid\":%d,\"ppid\":%d", getpid(), getppid());
		hold();
		_exit(0);
	}
	reap(middle);
	hold();
	while (wait(NULL) > 0)
		;
	return 0;
}
