/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends messages, given in hexadecimal, to port 53 and waits for an answer to each.
 *
 * ask ADDRESS udp|unconnected|tcp|split HEX... [then PORT]: and connects to that port of the same address, at the end.
 */
#include "net.h"

static size_t bytes_of(const char *text, unsigned char *out, size_t most)
{
	size_t length = strlen(text) / 2;

	if (length > most)
		fail("message too long");
	for (size_t i = 0; i < length; i++) {
		char pair[3] = {text[2 * i], text[2 * i + 1], 0};

		out[i] = strtoul(pair, NULL, 16);
	}
	return length;
}

/* Over TCP each message follows its length. split: the length leaves alone, as some resolvers do it. */
static ssize_t over_tcp(int fd, unsigned char *message, size_t length, int split)
{
	unsigned char framed[2 + 4096] = {length >> 8, length & 255}, head[2];

	memcpy(framed + 2, message, length);
	if (split) {
		send_all(fd, framed, 2);
		send_all(fd, framed + 2, length);
	} else {
		send_all(fd, framed, length + 2);
	}
	if (recv(fd, head, 2, MSG_WAITALL) != 2)
		fail("length");
	read_exactly(fd, head[0] << 8 | head[1]);
	return head[0] << 8 | head[1];
}

int main(int argc, char **argv)
{
	struct timeval patience = {.tv_sec = 5};
	unsigned char message[4096];
	union address server;
	int fd, stream, on = 1;

	if (argc < 4)
		fail("ask ADDRESS udp|unconnected|tcp|split HEX...");
	server = address_of(argv[1], "53");
	stream = !strcmp(argv[2], "tcp") || !strcmp(argv[2], "split");
	fd = socket(server.any.sa_family, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		fail("socket");
	if (strcmp(argv[2], "unconnected") && connect(fd, &server.any, length_of(&server)))
		fail("connect");
	if (stream && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		fail("TCP_NODELAY");
	for (int i = 3; i < argc && strcmp(argv[i], "then"); i++) {
		size_t length = bytes_of(argv[i], message, sizeof(message));
		ssize_t got;

		if (stream) {
			got = over_tcp(fd, message, length, !strcmp(argv[2], "split"));
		} else {
			if (sendto(fd, message, length, 0, strcmp(argv[2], "unconnected") ? NULL : &server.any,
				   strcmp(argv[2], "unconnected") ? 0 : length_of(&server)) != (ssize_t)length)
				fail("sendto");
			got = recv(fd, message, sizeof(message), 0);
		}
		if (got < 0)
			fail("an answer");
		fact("answered", "\"bytes\":%zd", got);
	}
	if (argc > 5 && !strcmp(argv[argc - 2], "then"))
		close(connected(argv[1], argv[argc - 1], 0));
	tell_socket("done", fd);
	hold();
	close(fd);
	return 0;
}
