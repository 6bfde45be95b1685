/* SPDX-License-Identifier: Apache-2.0 */
/* Children that end in every way: a status, a signal sent, a fault, an abort with a core where the limits allow one. */
#include "facts.h"
#include <sys/resource.h>

static void end_by(int way)
{
	struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, none = {0, 0};

	hold();
	setrlimit(RLIMIT_CORE, way == SIGABRT ? &all : &none);
	if (way == 0)
		_exit(7);
	signal(way, SIG_DFL);
	raise(way);
	_exit(97);
}

int main(void)
{
	static const int ways[] = {0, SIGKILL, SIGSEGV, SIGTERM, SIGABRT};
	pid_t children[sizeof(ways) / sizeof(ways[0])];

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		children[i] = fork_or_fail();
		if (children[i] == 0)
			end_by(ways[i]);
		fact("child", "\"pid\":%d,\"way\":%d", children[i], ways[i]);
	}
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		reap(children[i]);
	return 0;
}
