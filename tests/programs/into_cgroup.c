/* SPDX-License-Identifier: Apache-2.0 */
/* into_cgroup DIRECTORY: the root has a child that is born in another cgroup; it stays until stdin ends. */
#include "facts.h"
#include <linux/sched.h>

int main(int argc, char **argv)
{
	int directory = argc > 1 ? open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	struct clone_args arguments = {
	    .flags = CLONE_INTO_CGROUP,
	    .exit_signal = SIGCHLD,
	    .cgroup = directory,
	};
	long pid;

	if (directory < 0)
		fail("open");
	pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (pid < 0)
		fail("clone3");
	if (pid == 0) {
		fact("child", "\"pid\":%d", getpid());
		hold();
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
