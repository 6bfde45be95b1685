/* SPDX-License-Identifier: Apache-2.0 */
/* A child runs an image with arguments made to break a log: newlines, escapes, quotes, bytes that are no UTF-8. */
#include "facts.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	static char *odd[] = {
	    "odd_argv",
	    "",
	    "a\n{\"event\":\"fork\"}",
	    "\x1b[31mred\x07",
	    "\"quoted\\\" 'single'",
	    "\xff\xfe not utf-8",
	    "\xe2\x80\xa8 sep",
	    "\xc0\xaf overlong",
	    "\xed\xa0\x80 half",
	    "\xf0\x9f\x90\x91 sheep",
	    "\x7f\xc2\x9b"
	    "32m",
	    NULL,
	};
	pid_t pid;

	(void)argv;
	if (argc > 1) {
		fact("image", "\"pid\":%d,\"argc\":%d", getpid(), argc);
		prctl(PR_SET_NAME, "\xff\n\"\\\x1b");
		if (fork_or_fail() == 0) {
			fact("odd_comm", "\"pid\":%d", getpid());
			hold();
			_exit(0);
		}
		hold();
		wait(NULL);
		return 0;
	}
	pid = fork_or_fail();
	if (pid == 0) {
		execv("/proc/self/exe", odd);
		_exit(127);
	}
	hold();
	reap(pid);
	return 0;
}
