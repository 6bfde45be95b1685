/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the network programs share: addresses in and out of text, connecting, and who they are. Owns no judgement of
 * what a watcher should see; knows nothing of kinwatch.
 */
#ifndef NET_H
#define NET_H

#include "../../programs/facts.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

/* One address, IPv4 or IPv6. */
union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline socklen_t length_of(const union address *address)
{
	return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}

/* "::ffff:10.0.0.1" is IPv6. */
static inline union address address_of(const char *text, const char *port)
{
	union address address;

	memset(&address, 0, sizeof(address));
	if (inet_pton(AF_INET, text, &address.v4.sin_addr) == 1) {
		address.v4.sin_family = AF_INET;
		address.v4.sin_port = htons(strtol(port, NULL, 10));
	} else if (inet_pton(AF_INET6, text, &address.v6.sin6_addr) == 1) {
		address.v6.sin6_family = AF_INET6;
		address.v6.sin6_port = htons(strtol(port, NULL, 10));
	} else {
		fail("address");
	}
	return address;
}

static inline int port_of(const union address *address)
{
	return ntohs(address->any.sa_family == AF_INET ? address->v4.sin_port : address->v6.sin6_port);
}

/* The port a socket is bound to. */
static inline int local_port(int fd)
{
	union address address;
	socklen_t length = sizeof(address);

	if (getsockname(fd, &address.any, &length))
		fail("getsockname");
	return port_of(&address);
}

/* Ticks of 1/100 s from boot to the start of this process: field 22 of its stat. */
static inline unsigned long long start_ticks(void)
{
	char text[1024];
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t length = read(fd, text, sizeof(text) - 1);
	char *at;

	if (length <= 0)
		fail("/proc/self/stat");
	close(fd);
	text[length] = 0;
	at = strrchr(text, ')'); /* ends field 2 */
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		fail("/proc/self/stat");
	return strtoull(at + 1, NULL, 10);
}

/* Tell that this process made something with a socket: who it is, and where the socket is. */
static inline void tell_socket(const char *name, int fd)
{
	fact(name, "\"pid\":%d,\"process_id\":\"%d-%llu\",\"port\":%d", getpid(), getpid(), start_ticks(),
	     local_port(fd));
}

__attribute__((unused)) static void tell_self(const char *name)
{
	fact(name, "\"pid\":%d,\"process_id\":\"%d-%llu\"", getpid(), getpid(), start_ticks());
}

/* Returns when the test says go, or has ended. */
__attribute__((unused)) static void step(void)
{
	char byte;

	if (read(STDIN_FILENO, &byte, 1) < 0)
		fail("stdin");
}

/* With GATE in the environment a program does nothing until the test says go: it is known to the watcher by then. */
__attribute__((constructor)) static void gate(void)
{
	if (getenv("GATE")) {
		unsetenv("GATE");
		step();
	}
}

/* A connected stream; the program fails when there is none. */
__attribute__((unused)) static int connected(const char *host, const char *port, int protocol)
{
	union address address = address_of(host, port);
	int fd = socket(address.any.sa_family, SOCK_STREAM, protocol);

	if (fd < 0)
		fail("socket");
	if (connect(fd, &address.any, length_of(&address)))
		fail("connect");
	return fd;
}

/* A bound TCP socket that listens. Port "0": the kernel chooses. */
__attribute__((unused)) static int listening(const char *host, const char *port)
{
	union address address = address_of(host, port);
	int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
	int on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		fail("socket");
	if (bind(fd, &address.any, length_of(&address)) || listen(fd, 128))
		fail("listen");
	return fd;
}

__attribute__((unused)) static void send_all(int fd, const void *bytes, size_t length)
{
	const char *from = bytes;

	while (length > 0) {
		ssize_t sent = send(fd, from, length, MSG_NOSIGNAL);

		if (sent < 0)
			fail("send");
		from += sent;
		length -= sent;
	}
}

/* `length` bytes of nothing in particular. */
__attribute__((unused)) static void send_filler(int fd, long length)
{
	static char filler[16384];

	for (; length > 0; length -= (long)sizeof(filler))
		send_all(fd, filler, length < (long)sizeof(filler) ? (size_t)length : sizeof(filler));
}

/* Ask the peer's exchange service for so many bytes. */
__attribute__((unused)) static void order(int fd, uint64_t wanted)
{
	unsigned char request[8];

	for (int i = 0; i < 8; i++)
		request[i] = wanted >> (56 - 8 * i);
	send_all(fd, request, sizeof(request));
}

/* Read until the peer has ended its side; the number of bytes. */
__attribute__((unused)) static long read_to_end(int fd)
{
	char bytes[16384];
	long total = 0;
	ssize_t got;

	while ((got = read(fd, bytes, sizeof(bytes))) > 0)
		total += got;
	if (got < 0)
		fail("read");
	return total;
}

/* Exactly so many bytes, or fail. */
__attribute__((unused)) static void read_exactly(int fd, long wanted)
{
	char bytes[16384];

	while (wanted > 0) {
		ssize_t got = read(fd, bytes, wanted < (long)sizeof(bytes) ? (size_t)wanted : sizeof(bytes));

		if (got <= 0)
			fail("read");
		wanted -= got;
	}
}

#endif
