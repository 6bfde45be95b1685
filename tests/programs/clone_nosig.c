/* SPDX-License-Identifier: Apache-2.0 */
/* clone with no flags at all: a process that sends no signal to its parent when it ends. */
#include "facts.h"

int main(void)
{
	long pid = syscall(SYS_clone, 0, 0, 0, 0, 0);

	if (pid < 0)
		fail("clone");
	if (pid == 0) {
		fact("child", "\"pid\":%d", getpid());
		hold();
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
