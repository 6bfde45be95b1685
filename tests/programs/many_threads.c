/* SPDX-License-Identifier: Apache-2.0 */
/* many_threads N: threads come and go, N of them; the process stays one process. */
#include "facts.h"
#include <pthread.h>

static void *thread(void *unused)
{
	return unused;
}

int main(int argc, char **argv)
{
	long count = count_of(argc, argv, 1, 100);

	for (long i = 0; i < count; i++) {
		pthread_t id;

		if (pthread_create(&id, NULL, thread, NULL) || pthread_join(id, NULL))
			fail("pthread");
	}
	fact("threads", "\"count\":%ld", count);
	hold();
	return 0;
}
