/* SPDX-License-Identifier: Apache-2.0 */
/* Two children, one after the other, with the same pid: the second asks for the first one's number by clone3. A byte on
 * stdin ends the first, the end of stdin the second. */
#include "facts.h"
#include <linux/sched.h>
#include <time.h>

static uint64_t boot_ticks(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 100 + now.tv_nsec / 10000000;
}

static pid_t clone_as(pid_t wanted)
{
	struct clone_args arguments = {
	    .exit_signal = SIGCHLD,
	    .set_tid = (uint64_t)(uintptr_t)&wanted,
	    .set_tid_size = 1,
	};

	return syscall(SYS_clone3, &arguments, sizeof(arguments));
}

int main(void)
{
	uint64_t born = boot_ticks();
	pid_t first = fork_or_fail(), second;
	char byte;

	if (first == 0) {
		fact("first", "\"pid\":%d", getpid());
		if (read(STDIN_FILENO, &byte, 1) != 1)
			_exit(1);
		_exit(11);
	}
	reap(first);
	/* A process id counts in ticks: two processes of one tick could not be told apart, by anybody. */
	while (boot_ticks() < born + 2)
		sched_yield();
	do
		second = clone_as(first);
	while (second < 0 && errno == EEXIST); /* somebody else has the number just now */
	if (second < 0)
		fail("clone3");
	if (second == 0) {
		fact("second", "\"pid\":%d", getpid());
		hold();
		_exit(12);
	}
	reap(second);
	return 0;
}
