/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection that outlives the image that made it.
 *
 * over_exec ADDRESS PORT BYTES_BEFORE BYTES_AFTER
 */
#include "net.h"

int main(int argc, char **argv)
{
	char number[16];
	int fd;

	if (argc == 3) { /* the second image: DESCRIPTOR BYTES */
		fd = count_of(argc, argv, 1, -1);
		send_filler(fd, count_of(argc, argv, 2, 0));
		if (shutdown(fd, SHUT_WR))
			fail("shutdown");
		fact("done", "\"in\":%ld", read_to_end(fd));
		hold();
		return 0;
	}
	if (argc != 5)
		fail("over_exec ADDRESS PORT BYTES_BEFORE BYTES_AFTER");
	fd = connected(argv[1], argv[2], 0);
	tell_socket("opened", fd);
	order(fd, 0);
	send_filler(fd, count_of(argc, argv, 3, 0));
	snprintf(number, sizeof(number), "%d", fd);
	execl("/proc/self/exe", argv[0], number, argv[4], NULL);
	fail("execl");
}
