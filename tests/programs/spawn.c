/* SPDX-License-Identifier: Apache-2.0 */
/* posix_spawn, as libraries start programs. */
#include "facts.h"
#include <spawn.h>

int main(int argc, char **argv)
{
	char *arguments[] = {argv[0], "image", NULL}, *environment[] = {NULL};
	pid_t pid;

	if (argc > 1) {
		fact("image", "\"pid\":%d", getpid());
		hold();
		return 0;
	}
	errno = posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environment);
	if (errno)
		fail("posix_spawn");
	hold();
	reap(pid);
	return 0;
}
