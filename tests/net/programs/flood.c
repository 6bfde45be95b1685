/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hands all its bytes to the kernel at once, far more than the wire takes, and ends without waiting for anything.
 *
 * flood ADDRESS PORT OUT
 */
#include "net.h"

int main(int argc, char **argv)
{
	int room = 16 << 20;
	int fd;

	if (argc != 4)
		fail("flood ADDRESS PORT OUT");
	fd = connected(argv[1], argv[2], 0);
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)))
		fail("SO_SNDBUFFORCE");
	tell_socket("opened", fd);
	order(fd, 0);
	send_filler(fd, count_of(argc, argv, 3, 0));
	return 0;
}
