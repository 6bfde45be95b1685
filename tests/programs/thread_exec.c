/* SPDX-License-Identifier: Apache-2.0 */
/* In a child a thread that is not the leader executes a new image: the process keeps its pid, the thread takes it over.
 */
#include "facts.h"
#include <pthread.h>

static void *image(void *unused)
{
	fact("before", "\"pid\":%d,\"tid\":%ld", getpid(), syscall(SYS_gettid));
	execl("/proc/self/exe", "thread_exec", "after", NULL);
	return unused;
}

int main(int argc, char **argv)
{
	pid_t pid;

	(void)argv;
	if (argc > 1) {
		pid_t child = fork_or_fail();

		if (child == 0) {
			fact("child", "\"pid\":%d,\"parent\":%d", getpid(), getppid());
			hold();
			_exit(0);
		}
		fact("after", "\"pid\":%d,\"tid\":%ld", getpid(), syscall(SYS_gettid));
		hold();
		reap(child);
		return 4;
	}
	pid = fork_or_fail();
	if (pid == 0) {
		pthread_t id;

		if (pthread_create(&id, NULL, image, NULL))
			fail("pthread");
		for (;;)
			pause();
	}
	hold();
	reap(pid);
	return 0;
}
