/* SPDX-License-Identifier: Apache-2.0 */
/* N children that live no longer than a vfork and an _exit. */
#include "facts.h"

int main(int argc, char **argv)
{
	const volatile long count = count_of(argc, argv, 1, 1);

	for (volatile long i = 0; i < count; i++) {
		pid_t pid = vfork();

		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			fail("vfork");
	}
	fact("children", "\"count\":%ld", (long)count);
	hold();
	return 0;
}
