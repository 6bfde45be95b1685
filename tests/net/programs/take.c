/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes a connection from somebody over a unix socket, sends on it and closes it.
 *
 * take PATH BYTES
 */
#include "net.h"

int main(int argc, char **argv)
{
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	char byte;
	struct iovec part = {&byte, 1};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = {
	    .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int fd, giver, door = socket(AF_UNIX, SOCK_STREAM, 0);

	if (argc != 3 || door < 0)
		fail("take PATH BYTES");
	snprintf(path.sun_path, sizeof(path.sun_path), "%s", argv[1]);
	if (bind(door, (struct sockaddr *)&path, sizeof(path)) || listen(door, 1))
		fail("bind");
	tell_self("waiting");
	giver = accept(door, NULL, NULL);
	memset(&control, 0, sizeof(control));
	if (giver < 0 || recvmsg(giver, &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
		fail("recvmsg");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	close(giver);
	send_filler(fd, count_of(argc, argv, 2, 0));
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	fact("done", "\"in\":%ld,\"port\":%d", read_to_end(fd), local_port(fd));
	close(fd);
	hold();
	return 0;
}
