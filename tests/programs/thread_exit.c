/* SPDX-License-Identifier: Apache-2.0 */
/* In a child a thread ends and the process goes on. */
#include "facts.h"
#include <pthread.h>

static void *thread(void *unused)
{
	fact("thread", "\"pid\":%d,\"tid\":%ld", getpid(), syscall(SYS_gettid));
	return unused;
}

int main(void)
{
	pid_t pid = fork_or_fail();

	if (pid == 0) {
		pthread_t id;

		if (pthread_create(&id, NULL, thread, NULL) || pthread_join(id, NULL))
			fail("pthread");
		fact("goes_on", "\"pid\":%d", getpid());
		hold();
		_exit(0);
	}
	hold();
	reap(pid);
	return 0;
}
