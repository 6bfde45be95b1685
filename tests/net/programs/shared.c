/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection made by the parent, which sends and closes its own descriptor; the child sends more and closes last.
 *
 * shared ADDRESS PORT BYTES_OF_PARENT BYTES_OF_CHILD
 */
#include "net.h"

int main(int argc, char **argv)
{
	int fd;
	pid_t child;

	if (argc != 5)
		fail("shared ADDRESS PORT BYTES_OF_PARENT BYTES_OF_CHILD");
	fd = connected(argv[1], argv[2], 0);
	tell_socket("opened", fd);
	order(fd, 0);
	send_filler(fd, count_of(argc, argv, 3, 0));
	child = fork_or_fail();
	if (child == 0) {
		tell_self("child");
		send_filler(fd, count_of(argc, argv, 4, 0));
		if (shutdown(fd, SHUT_WR))
			fail("shutdown");
		read_to_end(fd);
		fact("done", "\"pid\":%d", getpid());
		hold();
		return 0;
	}
	close(fd);
	reap(child);
	return 0;
}
