/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server with workers: the parent listens, each child accepts one connection and serves it.
 *
 * serve ADDRESS PORT IN OUT WORKERS
 */
#include "net.h"

int main(int argc, char **argv)
{
	long workers = count_of(argc, argv, 5, 1);
	int fd;

	if (argc != 6)
		fail("serve ADDRESS PORT IN OUT WORKERS");
	fd = listening(argv[1], argv[2]);
	tell_socket("listening", fd);
	for (long i = 0; i < workers; i++)
		if (fork_or_fail() == 0) {
			int served = accept(fd, NULL, NULL);

			if (served < 0)
				fail("accept");
			close(fd);
			tell_socket("accepted", served);
			read_exactly(served, count_of(argc, argv, 3, 0));
			send_filler(served, count_of(argc, argv, 4, 0));
			if (shutdown(served, SHUT_WR) || read_to_end(served) != 0)
				fail("shutdown");
			fact("served", "\"pid\":%d", getpid());
			hold();
			return 0;
		}
	for (long i = 0; i < workers; i++)
		if (wait(NULL) < 0)
			fail("wait");
	hold();
	close(fd);
	tell_self("done");
	return 0;
}
