/* SPDX-License-Identifier: Apache-2.0 */
/* In a child the main thread ends first; another thread goes on, then ends the process with status 3. */
#include "facts.h"
#include <pthread.h>

static char leader_state(void)
{
	char path[64], text[512];
	int file;
	ssize_t got;
	const char *name_end;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	file = open(path, O_RDONLY);
	got = read(file, text, sizeof(text) - 1);
	close(file);
	text[got > 0 ? got : 0] = 0;
	name_end = strrchr(text, ')');
	return name_end ? name_end[2] : '?';
}

static void *survivor(void *unused)
{
	(void)unused;
	while (leader_state() != 'Z')
		sched_yield();
	fact("leader_gone", "\"pid\":%d,\"tid\":%ld", getpid(), syscall(SYS_gettid));
	hold();
	_exit(3);
}

int main(void)
{
	pid_t pid = fork_or_fail();

	if (pid == 0) {
		pthread_t id;

		if (pthread_create(&id, NULL, survivor, NULL))
			fail("pthread");
		pthread_exit(NULL);
	}
	hold();
	reap(pid);
	return 0;
}
