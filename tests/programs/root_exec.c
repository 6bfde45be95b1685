/* SPDX-License-Identifier: Apache-2.0 */
/* root_exec PATH: the root itself becomes another program, which has a child. */
#include "facts.h"

int main(int argc, char **argv)
{
	if (argc > 1) {
		fact("root", "\"pid\":%d", getpid());
		execl(argv[1], argv[1], NULL);
		fail("execl");
	}
	if (fork_or_fail() == 0) {
		fact("child", "\"pid\":%d,\"parent\":%d", getpid(), getppid());
		hold();
		_exit(0);
	}
	hold();
	wait(NULL);
	return 0;
}
