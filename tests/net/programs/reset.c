/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connects, sends, waits for a byte of the peer and resets the connection.
 *
 * reset ADDRESS PORT OUT
 */
#include "net.h"

int main(int argc, char **argv)
{
	struct linger hard = {.l_onoff = 1, .l_linger = 0};
	int fd;

	if (argc != 4)
		fail("reset ADDRESS PORT OUT");
	fd = connected(argv[1], argv[2], 0);
	tell_socket("opened", fd);
	order(fd, 1);
	send_filler(fd, count_of(argc, argv, 3, 0));
	read_exactly(fd, 1);
	step();
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)))
		fail("SO_LINGER");
	close(fd);
	tell_self("done");
	hold();
	return 0;
}
