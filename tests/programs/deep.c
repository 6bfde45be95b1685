/* SPDX-License-Identifier: Apache-2.0 */
/* deep N: a chain of N descendants, each the child of the one before, all alive at once. */
#include "facts.h"

int main(int argc, char **argv)
{
	long levels = count_of(argc, argv, 1, 1);

	for (long depth = 1; depth <= levels; depth++) {
		pid_t pid = fork_or_fail();

		if (pid) {
			hold();
			waitpid(pid, NULL, 0);
			_exit(0);
		}
		fact("level", "\"depth\":%ld,\"pid\":%d,\"parent\":%d", depth, getpid(), getppid());
	}
	fact("bottom", "\"pid\":%d", getpid());
	hold();
	return 0;
}
