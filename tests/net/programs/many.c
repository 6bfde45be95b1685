/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many short connections, one after the other, one byte out and one in each.
 *
 * many ADDRESS PORT COUNT
 */
#include "net.h"

int main(int argc, char **argv)
{
	long count = count_of(argc, argv, 3, 1);

	if (argc != 4)
		fail("many ADDRESS PORT COUNT");
	for (long i = 0; i < count; i++) {
		int fd = connected(argv[1], argv[2], 0);

		send_filler(fd, 1);
		read_exactly(fd, 1);
		if (read_to_end(fd) != 0) /* the peer closes first: its side keeps the port, not ours */
			fail("more than a byte");
		close(fd);
	}
	fact("done", "\"count\":%ld", count);
	hold();
	return 0;
}
