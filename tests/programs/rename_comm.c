/* SPDX-License-Identifier: Apache-2.0 */
/* The root calls itself a kernel thread, then has a child, which takes another name. */
#include "facts.h"
#include <sys/prctl.h>

int main(void)
{
	pid_t pid;

	prctl(PR_SET_NAME, "kworker/0:0");
	pid = fork_or_fail();
	if (pid == 0) {
		fact("child", "\"pid\":%d,\"comm\":\"kworker/0:0\"", getpid());
		hold();
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
