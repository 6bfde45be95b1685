/* SPDX-License-Identifier: Apache-2.0 */
/* When a process began, by /proc: with its pid that names it for good. */
#ifndef KINWATCH_PROCSTART_H
#define KINWATCH_PROCSTART_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { START_FIELD = 20 }; /* of proc_pid_stat(5), counted from the state, the first behind the name: 22 - 2 */

/* In ticks since boot; 0: there is no such process any more. */
static inline uint64_t start_ticks(uint32_t pid)
{
	char path[32], text[1024], *at;
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/%u/stat", pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return 0;
	length = read(file, text, sizeof(text) - 1);
	close(file);
	if (length <= 0)
		return 0;
	text[length] = 0;
	at = strrchr(text, ')'); /* a name may hold anything, parentheses too */
	for (int field = 0; at && field < START_FIELD; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : 0;
}

#endif
