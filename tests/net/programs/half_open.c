/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer ends its side first; this one still sends, long after.
 *
 * half_open ADDRESS PORT OUT IN
 */
#include "net.h"

int main(int argc, char **argv)
{
	int fd;

	if (argc != 5)
		fail("half_open ADDRESS PORT OUT IN");
	fd = connected(argv[1], argv[2], 0);
	tell_socket("opened", fd);
	order(fd, count_of(argc, argv, 4, 0));
	fact("half", "\"in\":%ld", read_to_end(fd));
	step();
	send_filler(fd, count_of(argc, argv, 3, 0));
	close(fd);
	tell_self("done");
	hold();
	return 0;
}
