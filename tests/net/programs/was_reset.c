/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connects, sends and is reset by the peer.
 *
 * was_reset ADDRESS PORT OUT
 */
#include "net.h"

int main(int argc, char **argv)
{
	char byte;
	int fd;

	if (argc != 4)
		fail("was_reset ADDRESS PORT OUT");
	fd = connected(argv[1], argv[2], 0);
	tell_socket("opened", fd);
	send_filler(fd, count_of(argc, argv, 3, 0));
	if (read(fd, &byte, 1) >= 0 || errno != ECONNRESET)
		fail("a reset");
	close(fd);
	tell_self("done");
	hold();
	return 0;
}
