/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a connection and gives it away over a unix socket; keeps no descriptor of it.
 *
 * give PATH ADDRESS PORT BYTES
 */
#include "net.h"

int main(int argc, char **argv)
{
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	char byte = 'f';
	struct iovec part = {&byte, 1};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = {
	    .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fd, to = socket(AF_UNIX, SOCK_STREAM, 0);

	if (argc != 5 || to < 0)
		fail("give PATH ADDRESS PORT BYTES");
	snprintf(path.sun_path, sizeof(path.sun_path), "%s", argv[1]);
	fd = connected(argv[2], argv[3], 0);
	tell_socket("opened", fd);
	order(fd, 0);
	send_filler(fd, count_of(argc, argv, 4, 0));
	memset(&control, 0, sizeof(control));
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	if (connect(to, (struct sockaddr *)&path, sizeof(path)) || sendmsg(to, &message, 0) != 1)
		fail("give");
	close(fd);
	if (read(to, &byte, 1) != 0) /* until it was taken */
		fail("taken");
	tell_self("given");
	hold();
	return 0;
}
