/* SPDX-License-Identifier: Apache-2.0 */
/* root_exec PATH: at a byte on stdin the root itself becomes another program, which has a child. */
#include "facts.h"

int main(int argc, char **argv)
{
	if (argc > 1) {
		char byte;

		fact("root", "\"pid\":%d", getpid());
		if (read(STDIN_FILENO, &byte, 1) != 1)
			return 0;
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
