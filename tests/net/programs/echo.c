/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A UDP server: sends so many datagrams back to where they come from.
 *
 * echo ADDRESS PORT COUNT
 */
#include "net.h"

int main(int argc, char **argv)
{
	union address address;
	char bytes[8192];
	long total = 0;
	int fd;

	if (argc != 4)
		fail("echo ADDRESS PORT COUNT");
	address = address_of(argv[1], argv[2]);
	fd = socket(address.any.sa_family, SOCK_DGRAM, 0);
	if (fd < 0 || bind(fd, &address.any, length_of(&address)))
		fail("bind");
	tell_socket("listening", fd);
	for (long i = 0; i < count_of(argc, argv, 3, 1); i++) {
		union address from;
		socklen_t length = sizeof(from);
		ssize_t got = recvfrom(fd, bytes, sizeof(bytes), 0, &from.any, &length);

		if (got < 0 || sendto(fd, bytes, got, 0, &from.any, length) != got)
			fail("echo");
		total += got;
	}
	fact("done", "\"in\":%ld,\"out\":%ld", total, total);
	hold();
	close(fd);
	return 0;
}
