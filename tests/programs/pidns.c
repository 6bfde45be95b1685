/* SPDX-License-Identifier: Apache-2.0 */
/* The root makes a pid namespace; its child is number 1 there, and the child's child number 2. */
#include "facts.h"

/* /proc belongs to the namespace we came from, so its "self" is the number that outsiders see. */
static int outside_pid(void)
{
	char text[32] = {0};

	if (readlink("/proc/self", text, sizeof(text) - 1) < 0)
		fail("readlink");
	return atoi(text);
}

int main(void)
{
	pid_t child;

	if (unshare(CLONE_NEWPID))
		fail("unshare");
	child = fork_or_fail();
	if (child == 0) {
		fact("inner", "\"pid\":%d,\"inner_pid\":%d", outside_pid(), getpid());
		if (fork_or_fail() == 0) {
			fact("inmost", "\"pid\":%d,\"inner_pid\":%d", outside_pid(), getpid());
			hold();
			_exit(0);
		}
		hold();
		wait(NULL);
		_exit(0);
	}
	hold();
	reap(child);
	return 0;
}
