/* SPDX-License-Identifier: Apache-2.0 */
/* A child runs an image with 1 MiB of arguments. */
#include "facts.h"

enum { ARGUMENTS = 16, ARGUMENT_BYTES = 65536 };

static long cmdline_bytes(void)
{
	char chunk[65536];
	int file = open("/proc/self/cmdline", O_RDONLY);
	long all = 0;
	ssize_t got;

	while ((got = read(file, chunk, sizeof(chunk))) > 0)
		all += got;
	close(file);
	return all;
}

int main(int argc, char **argv)
{
	pid_t pid;

	if (argc > 1) {
		fact("image", "\"pid\":%d,\"argc\":%d,\"argv_bytes\":%ld", getpid(), argc, cmdline_bytes());
		hold();
		return 0;
	}
	pid = fork_or_fail();
	if (pid == 0) {
		char *arguments[ARGUMENTS + 2] = {argv[0]};

		for (int i = 1; i <= ARGUMENTS; i++) {
			arguments[i] = malloc(ARGUMENT_BYTES);
			memset(arguments[i], 'a' + i - 1, ARGUMENT_BYTES - 1);
			arguments[i][ARGUMENT_BYTES - 1] = 0;
		}
		execv("/proc/self/exe", arguments);
		_exit(127);
	}
	hold();
	reap(pid);
	return 0;
}
