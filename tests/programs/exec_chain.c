/* SPDX-License-Identifier: Apache-2.0 */
/* exec_chain N: one child, N images one after the other, no fork between them; the test sends a byte for each. */
#include "facts.h"

int main(int argc, char **argv)
{
	long left = count_of(argc, argv, 1, 3);
	char number[32], byte;
	pid_t pid;

	if (argc > 2) {
		fact("image", "\"pid\":%d,\"left\":%ld", getpid(), left);
		if (left && read(STDIN_FILENO, &byte, 1) == 1) {
			snprintf(number, sizeof(number), "%ld", left - 1);
			execl("/proc/self/exe", argv[0], number, "image", NULL);
			_exit(127);
		}
		hold();
		return 0;
	}
	pid = fork_or_fail();
	if (pid == 0) {
		snprintf(number, sizeof(number), "%ld", left - 1);
		execl("/proc/self/exe", argv[0], number, "image", NULL);
		_exit(127);
	}
	reap(pid);
	return 0;
}
