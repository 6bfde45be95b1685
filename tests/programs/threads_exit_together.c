/* SPDX-License-Identifier: Apache-2.0 */
/* threads_exit_together ROUNDS: each child has 64 threads that leave a barrier and end at the same moment. */
#include "facts.h"
#include <pthread.h>

enum { THREADS = 64 };

static pthread_barrier_t barrier;
static int by_group;

static void *leave(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&barrier);
	if (by_group)
		_exit(7);
	syscall(SYS_exit, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	long rounds = count_of(argc, argv, 1, 1);

	for (long i = 0; i < rounds; i++) {
		pid_t pid = fork_or_fail();

		if (pid == 0) {
			by_group = i & 1;
			pthread_barrier_init(&barrier, NULL, THREADS);
			for (int thread = 1; thread < THREADS; thread++) {
				pthread_t id;

				if (pthread_create(&id, NULL, leave, NULL))
					fail("pthread");
			}
			leave(NULL);
		}
		reap(pid);
	}
	fact("children", "\"count\":%ld", rounds);
	hold();
	return 0;
}
