/* SPDX-License-Identifier: Apache-2.0 */
/* vfork, then a new image: until then the child borrows its parent's memory. */
#include "facts.h"

int main(int argc, char **argv)
{
	pid_t pid;

	if (argc > 1) {
		fact("image", "\"pid\":%d", getpid());
		hold();
		return 0;
	}
	pid = vfork();
	if (pid == 0) {
		execl("/proc/self/exe", argv[0], "image", NULL);
		_exit(127);
	}
	if (pid < 0)
		fail("vfork");
	hold();
	reap(pid);
	return 0;
}
