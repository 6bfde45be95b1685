/* SPDX-License-Identifier: Apache-2.0 */
/* fork_exec N PATH ARG...: N children, one after the other, each runs PATH; one that cannot ends with 127. */
#include "facts.h"

int main(int argc, char **argv)
{
	long count = count_of(argc, argv, 1, 1);

	if (argc < 3)
		return 2;
	for (long i = 0; i < count; i++) {
		pid_t pid = fork_or_fail();

		if (pid == 0) {
			execv(argv[2], argv + 2);
			_exit(127);
		}
		fact("child", "\"pid\":%d", pid);
		reap(pid);
	}
	fact("children", "\"count\":%ld", count);
	hold();
	return 0;
}
