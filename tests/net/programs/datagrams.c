/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams to an echoing peer and back, one at a time.
 *
 * datagrams ADDRESS PORT COUNT BYTES send|write|sendto|sendmsg|sendmmsg|uring
 */
#include "uring.h"

enum { LARGEST = 8192 };

static char bytes[LARGEST];
static struct uring ring;

static ssize_t sent_by(const char *how, int fd, union address *to, size_t length)
{
	struct iovec part = {bytes, length};
	struct mmsghdr message = {
	    .msg_hdr = {.msg_name = to, .msg_namelen = length_of(to), .msg_iov = &part, .msg_iovlen = 1}};

	if (!strcmp(how, "send"))
		return send(fd, bytes, length, 0);
	if (!strcmp(how, "write"))
		return write(fd, bytes, length);
	if (!strcmp(how, "uring"))
		return uring_do(&ring, IORING_OP_SEND, fd, bytes, length, 0);
	if (!strcmp(how, "sendto"))
		return sendto(fd, bytes, length, 0, &to->any, length_of(to));
	if (!strcmp(how, "sendmsg"))
		return sendmsg(fd, &message.msg_hdr, 0);
	if (!strcmp(how, "sendmmsg"))
		return sendmmsg(fd, &message, 1, 0) == 1 ? (ssize_t)message.msg_len : -1;
	errno = EINVAL;
	fail("way to send");
}

int main(int argc, char **argv)
{
	long count = count_of(argc, argv, 3, 1), length = count_of(argc, argv, 4, 1), in = 0;
	union address to;
	int fd, is_connected;

	if (argc != 6 || length > LARGEST)
		fail("datagrams ADDRESS PORT COUNT BYTES HOW");
	to = address_of(argv[1], argv[2]);
	is_connected = !strcmp(argv[5], "send") || !strcmp(argv[5], "write") || !strcmp(argv[5], "uring");
	if (!strcmp(argv[5], "uring"))
		uring_open(&ring, 0);
	fd = socket(to.any.sa_family, SOCK_DGRAM, 0);
	if (fd < 0 || (is_connected && connect(fd, &to.any, length_of(&to))))
		fail("connect");
	for (long i = 0; i < count; i++) {
		ssize_t got;

		if (sent_by(argv[5], fd, &to, length) != length)
			fail(argv[5]);
		got = recv(fd, bytes, sizeof(bytes), 0);
		if (got < 0)
			fail("recv");
		in += got;
	}
	tell_socket("opened", fd);
	fact("done", "\"out\":%ld,\"in\":%ld", count * length, in);
	hold();
	close(fd);
	return 0;
}
