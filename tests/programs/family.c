/* SPDX-License-Identifier: Apache-2.0 */
/* family [CHILDREN [GRANDCHILDREN]]: children that stay, each with grandchildren that stay. */
#include "facts.h"

static void grow(long children, long grandchildren, int depth)
{
	for (long i = 0; i < children; i++) {
		pid_t parent = getpid();
		pid_t pid = fork_or_fail();

		if (pid)
			continue;
		fact("child", "\"pid\":%d,\"parent\":%d,\"depth\":%d", getpid(), parent, depth);
		grow(grandchildren, 0, depth + 1);
		hold();
		while (wait(NULL) > 0)
			;
		_exit(0);
	}
}

int main(int argc, char **argv)
{
	fact("root", "\"pid\":%d", getpid());
	grow(count_of(argc, argv, 1, 0), count_of(argc, argv, 2, 0), 1);
	hold();
	while (wait(NULL) > 0)
		;
	return 0;
}
