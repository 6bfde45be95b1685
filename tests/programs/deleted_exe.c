/* SPDX-License-Identifier: Apache-2.0 */
/* deleted_exe COPY: a child runs a file that has just been unlinked. */
#include "facts.h"

extern char **environ;

int main(int argc, char **argv)
{
	char *arguments[] = {argv[0], NULL};
	pid_t pid;

	if (argc < 2) {
		fact("image", "\"pid\":%d", getpid());
		hold();
		return 0;
	}
	pid = fork_or_fail();
	if (pid == 0) {
		int file = open(argv[1], O_RDONLY | O_CLOEXEC);

		if (file < 0 || unlink(argv[1]))
			fail("unlink");
		fexecve(file, arguments, environ);
		fail("fexecve");
	}
	hold();
	reap(pid);
	return 0;
}
