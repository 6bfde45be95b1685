/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loopback TCP. "stream MS": one connection, 64 KiB writes for MS milliseconds; prints bytes per second.
 * "cycles N": N times connect, accept, close of both ends; prints nanoseconds of all. Both ends are this program's.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int listener(struct sockaddr_in *address)
{
	socklen_t length = sizeof(*address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (fd < 0 || bind(fd, (struct sockaddr *)address, length) || listen(fd, 128) ||
	    getsockname(fd, (struct sockaddr *)address, &length))
		exit(1);
	return fd;
}

static int connected(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		exit(1);
	return fd;
}

static void stream(int listening, const struct sockaddr_in *address, long ms)
{
	static char buffer[65536];
	long long bytes = 0, began, until;
	pid_t reader = fork();

	if (reader == 0) {
		int fd = accept(listening, NULL, NULL);

		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
		_exit(0);
	}
	int fd = connected(address);

	began = now_ns();
	until = began + ms * 1000000LL;
	while (now_ns() < until)
		for (int i = 0; i < 16; i++) {
			ssize_t sent = write(fd, buffer, sizeof(buffer));

			if (sent < 0)
				exit(1);
			bytes += sent;
		}
	printf("%lld\n", bytes * 1000000000LL / (now_ns() - began));
	close(fd);
	waitpid(reader, NULL, 0);
}

static void cycles(int listening, const struct sockaddr_in *address, long count)
{
	struct linger at_once = {.l_onoff = 1, .l_linger = 0}; /* no port waits */
	long long began = now_ns();

	for (long i = 0; i < count; i++) {
		int fd = connected(address);
		int other = accept(listening, NULL, NULL);

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(fd);
		close(other);
	}
	printf("%lld\n", now_ns() - began);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address;
	int listening = listener(&address);

	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "stream"))
		stream(listening, &address, atol(argv[2]));
	else
		cycles(listening, &address, atol(argv[2]));
	return 0;
}
