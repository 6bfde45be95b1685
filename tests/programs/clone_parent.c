/* SPDX-License-Identifier: Apache-2.0 */
/* clone_parent root|child: CLONE_PARENT makes the new process a sibling of the one that cloned it. */
#include "facts.h"

static pid_t clone_sibling(void)
{
	pid_t maker = getpid();
	long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

	if (pid < 0)
		fail("clone");
	if (pid == 0) {
		fact("sibling", "\"pid\":%d,\"cloner\":%d,\"ppid\":%d", getpid(), maker, getppid());
		hold();
		_exit(0);
	}
	return pid;
}

int main(int argc, char **argv)
{
	pid_t child;

	if (argc > 1 && strcmp(argv[1], "root") == 0) {
		clone_sibling();
		hold();
		return 0;
	}
	child = fork_or_fail();
	if (child == 0) {
		clone_sibling();
		hold();
		_exit(0);
	}
	hold();
	while (wait(NULL) > 0)
		;
	return 0;
}
