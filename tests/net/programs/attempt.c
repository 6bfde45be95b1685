/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tries to connect, once, and tells how that ended.
 *
 * attempt ADDRESS PORT blocking|polled|abandoned
 */
#include "net.h"

int main(int argc, char **argv)
{
	union address address;
	int fd, result = 0, one = 1;
	socklen_t length = sizeof(result);

	if (argc != 4)
		fail("attempt ADDRESS PORT blocking|polled|abandoned");
	address = address_of(argv[1], argv[2]);
	fd = socket(address.any.sa_family, SOCK_STREAM | (strcmp(argv[3], "blocking") ? SOCK_NONBLOCK : 0), 0);
	/* One more SYN after the first, so that silence is told within seconds. */
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &one, sizeof(one)))
		fail("socket");
	if (connect(fd, &address.any, length_of(&address)))
		result = errno;
	if (!strcmp(argv[3], "polled") && result == EINPROGRESS) {
		struct pollfd ready = {.fd = fd, .events = POLLOUT};

		if (poll(&ready, 1, -1) != 1 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &result, &length))
			fail("poll");
	}
	tell_self("attempted");
	fact("result", "\"errno\":%d", result);
	close(fd);
	tell_self("done");
	hold();
	return 0;
}
