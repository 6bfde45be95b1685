/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that stay open: each carries its bytes both ways and then waits.
 *
 * live ADDRESS PORT CONNECTIONS OUT IN
 */
#include "net.h"
#include <linux/sockios.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
	long count = count_of(argc, argv, 3, 1);
	int held_back, fds[64];

	if (argc != 6 || count > 64)
		fail("live ADDRESS PORT CONNECTIONS OUT IN");
	for (long i = 0; i < count; i++) {
		int fd = connected(argv[1], argv[2], 0);

		tell_socket("opened", fd);
		order(fd, count_of(argc, argv, 5, 0));
		send_filler(fd, count_of(argc, argv, 4, 0));
		read_exactly(fd, count_of(argc, argv, 5, 0));
		do /* until the peer has acknowledged all of it */
			if (ioctl(fd, SIOCOUTQ, &held_back))
				fail("SIOCOUTQ");
		while (held_back && !usleep(1000));
		fds[i] = fd;
	}
	tell_self("done");
	hold();
	for (long i = 0; i < count; i++) { /* and is over before the process is */
		if (shutdown(fds[i], SHUT_WR))
			fail("shutdown");
		read_to_end(fds[i]);
	}
	return 0;
}
