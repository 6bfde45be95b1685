/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every program here shares: it tells its facts on stdout, one JSON object a line and one write each, and it stays
 * as it is until stdin ends, so a test that dies takes its processes with it. Knows nothing of kinwatch.
 */
#ifndef FACTS_H
#define FACTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* {"fact": NAME, ...}; `format` is the rest, JSON already. */
__attribute__((format(printf, 2, 3))) static inline void fact(const char *name, const char *format, ...)
{
	char line[512];
	int length = snprintf(line, sizeof(line), "{\"fact\":\"%s\"", name);
	va_list arguments;

	if (*format) {
		line[length++] = ',';
		va_start(arguments, format);
		length += vsnprintf(line + length, sizeof(line) - length, format, arguments);
		va_end(arguments);
	}
	length += snprintf(line + length, sizeof(line) - length, "}\n");
	if (write(STDOUT_FILENO, line, length) != length)
		_exit(99);
}

__attribute__((noreturn, unused)) static void fail(const char *what)
{
	fact("failed", "\"what\":\"%s\",\"errno\":%d", what, errno);
	_exit(98);
}

/* Returns when the test lets go. */
__attribute__((unused)) static void hold(void)
{
	char byte;
	ssize_t got;

	do
		got = read(STDIN_FILENO, &byte, 1);
	while (got > 0 || (got < 0 && errno == EINTR));
}

/* Collect a child and tell how it ended. */
__attribute__((unused)) static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, __WALL) != pid)
		fail("waitpid");
	fact("ended", "\"pid\":%d,\"status\":%d", pid, status);
}

__attribute__((unused)) static pid_t fork_or_fail(void)
{
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	return pid;
}

/* A count from the command line. */
__attribute__((unused)) static long count_of(int argc, char **argv, int index, long otherwise)
{
	return argc > index ? strtol(argv[index], NULL, 10) : otherwise;
}

#endif
