/* SPDX-License-Identifier: Apache-2.0 */
/* clone_into DIRECTORY: a child that begins its life in another cgroup and never runs an image; it has a child itself.
 */
#include "facts.h"
#include <linux/sched.h>

int main(int argc, char **argv)
{
	struct clone_args arguments = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD};
	long pid;

	if (argc < 2)
		return 2;
	arguments.cgroup = open(argv[1], O_RDONLY | O_DIRECTORY);
	pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (pid < 0)
		fail("clone3");
	if (pid == 0) {
		fact("member", "\"pid\":%d", getpid());
		if (fork_or_fail() == 0) {
			fact("child", "\"pid\":%d", getpid());
			hold();
			_exit(0);
		}
		hold();
		wait(NULL);
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
