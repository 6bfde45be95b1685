/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child connects, and ends at once.
 *
 * spawned ADDRESS PORT
 */
#include "net.h"

int main(int argc, char **argv)
{
	pid_t child;

	if (argc != 3)
		fail("spawned ADDRESS PORT");
	tell_self("parent");
	child = fork_or_fail();
	if (child == 0) {
		int fd = connected(argv[1], argv[2], 0);

		tell_socket("opened", fd);
		order(fd, 0);
		return 0;
	}
	reap(child);
	hold();
	return 0;
}
