/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: so many bytes out by one way of the kernel, so many in by another.
 *
 * stream ADDRESS PORT SEND OUT RECEIVE IN [tcp|mptcp]
 */
#include "uring.h"
#include <linux/errqueue.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

enum { CHUNK = 24001 }; /* odd, so that no boundary of the kernel is met by design */

static char chunk[CHUNK];
static struct uring ring;
static int spare[2]; /* a pipe */

static ssize_t by_writev(int fd, size_t length)
{
	struct iovec parts[2] = {{chunk, length / 2}, {chunk, length - length / 2}};

	return writev(fd, parts, 2);
}

static ssize_t by_sendmsg(int fd, size_t length)
{
	struct iovec parts[2] = {{chunk, length / 3}, {chunk, length - length / 3}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	return sendmsg(fd, &message, MSG_NOSIGNAL);
}

static ssize_t by_sendmmsg(int fd, size_t length)
{
	struct iovec parts[2] = {{chunk, length / 2}, {chunk, length - length / 2}};
	struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
				      {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}};
	int sent = sendmmsg(fd, messages, 2, MSG_NOSIGNAL);

	if (sent < 0)
		return -1;
	return (sent > 0 ? messages[0].msg_len : 0) + (sent > 1 ? messages[1].msg_len : 0);
}

static ssize_t by_sendfile(int fd, size_t length)
{
	static int file = -1;
	off_t offset = 0;

	if (file < 0) {
		file = memfd_create("payload", 0);
		if (file < 0 || write(file, chunk, CHUNK) != CHUNK)
			fail("memfd");
	}
	return sendfile(fd, file, &offset, length);
}

static ssize_t by_splice(int fd, size_t length)
{
	ssize_t filled = write(spare[1], chunk, length);

	return filled < 0 ? -1 : splice(spare[0], NULL, fd, NULL, filled, SPLICE_F_MOVE);
}

/* Sends by reference; the kernel's notice that it is done is taken from the error queue. */
static ssize_t by_zerocopy(int fd, size_t length)
{
	static int asked;
	char control[256];
	struct msghdr notice = {.msg_control = control, .msg_controllen = sizeof(control)};
	struct pollfd ready = {.fd = fd};
	ssize_t sent;
	int on = 1;

	if (!asked++ && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)))
		fail("SO_ZEROCOPY");
	sent = send(fd, chunk, length, MSG_ZEROCOPY | MSG_NOSIGNAL);
	if (sent > 0 && (poll(&ready, 1, -1) != 1 || recvmsg(fd, &notice, MSG_ERRQUEUE) < 0))
		fail("error queue");
	return sent;
}

static ssize_t send_by(const char *how, int fd, size_t length)
{
	if (!strcmp(how, "write"))
		return write(fd, chunk, length);
	if (!strcmp(how, "send"))
		return send(fd, chunk, length, MSG_NOSIGNAL);
	if (!strcmp(how, "sendto"))
		return sendto(fd, chunk, length, MSG_NOSIGNAL, NULL, 0);
	if (!strcmp(how, "writev"))
		return by_writev(fd, length);
	if (!strcmp(how, "sendmsg"))
		return by_sendmsg(fd, length);
	if (!strcmp(how, "sendmmsg"))
		return by_sendmmsg(fd, length);
	if (!strcmp(how, "sendfile"))
		return by_sendfile(fd, length);
	if (!strcmp(how, "splice"))
		return by_splice(fd, length);
	if (!strcmp(how, "zerocopy"))
		return by_zerocopy(fd, length);
	if (!strcmp(how, "uring") || !strcmp(how, "uring_sqpoll"))
		return uring_do(&ring, IORING_OP_SEND, fd, chunk, length, 0);
	if (!strcmp(how, "uring_async"))
		return uring_do(&ring, IORING_OP_SEND, fd, chunk, length, IOSQE_ASYNC);
	errno = EINVAL;
	fail("way to send");
}

static ssize_t receive_by(const char *how, int fd)
{
	struct iovec parts[2] = {{chunk, CHUNK / 2}, {chunk, CHUNK - CHUNK / 2}};
	struct mmsghdr message = {.msg_hdr = {.msg_iov = parts, .msg_iovlen = 2}};

	if (!strcmp(how, "read"))
		return read(fd, chunk, CHUNK);
	if (!strcmp(how, "recv"))
		return recv(fd, chunk, CHUNK, 0);
	if (!strcmp(how, "readv"))
		return readv(fd, parts, 2);
	if (!strcmp(how, "recvmsg"))
		return recvmsg(fd, &message.msg_hdr, 0);
	if (!strcmp(how, "recvmmsg"))
		return recvmmsg(fd, &message, 1, 0, NULL) == 1 ? (ssize_t)message.msg_len : -1;
	if (!strcmp(how, "peek")) /* looking at bytes is not receiving them */
		return recv(fd, chunk, CHUNK, MSG_PEEK) < 0 ? -1 : recv(fd, chunk, CHUNK, 0);
	if (!strcmp(how, "discard")) /* received, and thrown away in the kernel */
		return recv(fd, NULL, CHUNK, MSG_TRUNC);
	if (!strcmp(how, "splice")) {
		ssize_t got = splice(fd, NULL, spare[1], NULL, CHUNK, SPLICE_F_MOVE);

		return got > 0 ? read(spare[0], chunk, got) : got;
	}
	if (!strncmp(how, "uring", 5))
		return uring_do(&ring, IORING_OP_RECV, fd, chunk, CHUNK, 0);
	errno = EINVAL;
	fail("way to receive");
}

int main(int argc, char **argv)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);
	int fd, multipath = argc > 7 && !strcmp(argv[7], "mptcp");
	long out = 0, in = 0, wanted = count_of(argc, argv, 4, 0);
	ssize_t got;

	if (argc < 7 || pipe(spare))
		fail("stream ADDRESS PORT SEND OUT RECEIVE IN [tcp|mptcp]");
	if (!strncmp(argv[3], "uring", 5) || !strncmp(argv[5], "uring", 5))
		uring_open(&ring, strcmp(argv[3], "uring_sqpoll") ? 0 : IORING_SETUP_SQPOLL);
	fd = connected(argv[1], argv[2], multipath ? IPPROTO_MPTCP : 0);
	tell_socket("opened", fd);
	order(fd, count_of(argc, argv, 6, 0));
	while (out < wanted) {
		ssize_t sent = send_by(argv[3], fd, wanted - out < CHUNK ? (size_t)(wanted - out) : CHUNK);

		if (sent < 0)
			fail(argv[3]);
		out += sent;
	}
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	while ((got = receive_by(argv[5], fd)) > 0)
		in += got;
	if (got < 0)
		fail(argv[5]);
	/* The peer may have ended while the last of ours is still on its way. */
	do {
		if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length))
			fail("TCP_INFO");
	} while (!multipath && (info.tcpi_unacked || info.tcpi_notsent_bytes) && !usleep(1000));
	/* The kernel's own count of segments, those that it bundled included. */
	fact("done", "\"out\":%ld,\"in\":%ld,\"segments_out\":%u,\"segments_in\":%u", out + 8, in, info.tcpi_segs_out,
	     info.tcpi_segs_in);
	hold();
	close(fd);
	return 0;
}
