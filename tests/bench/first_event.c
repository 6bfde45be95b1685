/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long from fork() to the line that tells of it, or with "alarm" to its alarm, after a time of quiet. stdin is the event log, a pipe of JSON
 * Lines; the program is the watched application too, so that one clock sees both ends. Prints one latency in ns a line,
 * or ends with 1 when a line does not come. Knows the keys "event", "pid" and "process_ids" of a line.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { QUIET_MS = 20, PATIENCE_MS = 5000, LOG_BYTES = 1 << 16 };

/* A line, by what stands in it; `key` is a format for the child's pid. */
struct sought {
	const char *event;
	const char *key;
};

static const struct sought fork_line = {"\"event\":\"fork\"", "\"pid\":%d,"};
static const struct sought alarm_line = {"\"event\":\"alarm\"", "\"process_ids\":[\"%d-"};

static char heard[LOG_BYTES + 1];
static size_t heard_bytes;

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* More of the log, within timeout_ms. False: nothing came. */
static int hear(int timeout_ms)
{
	struct pollfd log = {.fd = STDIN_FILENO, .events = POLLIN};
	ssize_t bytes;

	if (poll(&log, 1, timeout_ms) <= 0 || heard_bytes == LOG_BYTES)
		return 0;
	bytes = read(STDIN_FILENO, heard + heard_bytes, LOG_BYTES - heard_bytes);
	if (bytes <= 0)
		return 0;
	heard_bytes += (size_t)bytes;
	heard[heard_bytes] = '\0';
	return 1;
}

/* Is the whole line there that tells of this child? */
static int told(const struct sought *sought, pid_t pid)
{
	char key[32];
	char *line = heard;

	snprintf(key, sizeof(key), sought->key, pid);
	for (char *end; (end = strchr(line, '\n')); line = end + 1) {
		*end = '\0';
		int found = strstr(line, sought->event) && strstr(line, key);
		*end = '\n';
		if (found)
			return 1;
	}
	return 0;
}

/* Wait until nothing has come for QUIET_MS, and forget what came. */
static void be_quiet(void)
{
	do
		heard_bytes = 0;
	while (hear(QUIET_MS));
	heard_bytes = 0;
	heard[0] = '\0';
}

static long long sample(const struct sought *sought)
{
	long long start_ns = now_ns(), spent_ns;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	if (pid < 0)
		return -1;
	while (!told(sought, pid))
		if (!hear(PATIENCE_MS))
			return -1;
	spent_ns = now_ns() - start_ns;
	return waitpid(pid, NULL, 0) == pid ? spent_ns : -1;
}

int main(int argc, char **argv)
{
	long samples = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	const struct sought *sought = argc > 2 && strcmp(argv[2], "alarm") == 0 ? &alarm_line : &fork_line;

	if (samples <= 0) {
		fprintf(stderr, "usage: %s SAMPLES [alarm] <EVENT-LOG\n", argv[0]);
		return 2;
	}
	for (long i = 0; i < samples; i++) {
		long long spent_ns;

		be_quiet();
		spent_ns = sample(sought);
		if (spent_ns < 0) {
			fprintf(stderr, "first_event: sample %ld: no line within %d ms\n", i, PATIENCE_MS);
			return 1;
		}
		printf("%lld\n", spent_ns);
	}
	return 0;
}
