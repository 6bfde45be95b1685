/* SPDX-License-Identifier: Apache-2.0 */
/* At a byte on stdin the root ends while its child lives on; then the orphan has a child of its own. */
#include "facts.h"

int main(void)
{
	pid_t root = getpid(), pid;
	int gate[2]; /* the child reads its end when the root has gone */
	char byte;

	if (pipe(gate))
		fail("pipe");
	pid = fork_or_fail();
	if (pid) {
		fact("root", "\"pid\":%d,\"child\":%d", root, pid);
		if (read(STDIN_FILENO, &byte, 1) != 1)
			fail("read");
		_exit(0);
	}
	close(gate[1]);
	if (read(gate[0], &byte, 1) != 0)
		fail("gate");
	while (getppid() == root)
		sched_yield();
	fact("orphan", "\"pid\":%d,\"root\":%d,\"ppid\":%d", getpid(), root, getppid());
	pid = fork_or_fail();
	if (pid == 0) {
		fact("child", "\"pid\":%d,\"parent\":%d", getpid(), getppid());
		hold();
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
