/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attempts WAY COUNT [FILE]: starts COUNT processes in one way. Each writes one byte to the pipe it was given, at once
 * (ways of forking) or as its image FILE does, and ends. Tells how many bytes came, how many processes were killed, and
 * how many could not be started or failed.
 */
#include "facts.h"
#include <linux/sched.h>
#include <pthread.h>
#include <spawn.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>

enum { BYTE_FD = 9, AT_ONCE = 16, STACK_BYTES = 65536 };

extern char **environ;

static const char *file;
static char *arguments[] = {"mark", NULL};

static void mark(void)
{
	if (write(BYTE_FD, "x", 1) != 1)
		_exit(97);
}

static void execute(void)
{
	execve(file, arguments, environ);
	_exit(127);
}

/* -------- ways of forking -------- */

static pid_t by_fork(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		mark();
		_exit(0);
	}
	return pid;
}

static pid_t by_vfork(void)
{
	pid_t pid = vfork();

	if (pid == 0) {
		mark();
		_exit(0);
	}
	return pid;
}

static int marked(void *nothing)
{
	(void)nothing;
	mark();
	return 0;
}

/* A process of its own in our memory. */
static pid_t by_clone_vm(void)
{
	static char stacks[AT_ONCE][STACK_BYTES] __attribute__((aligned(16)));
	static int next;
	char *stack = stacks[next++ % AT_ONCE];

	return clone(marked, stack + STACK_BYTES, CLONE_VM | CLONE_FS | SIGCHLD, NULL);
}

static pid_t by_clone3(void)
{
	struct clone_args how = {.flags = 0, .exit_signal = SIGCHLD};
	pid_t pid = syscall(SYS_clone3, &how, sizeof(how));

	if (pid == 0) {
		mark();
		_exit(0);
	}
	return pid;
}

/* The first process of a new pid namespace: no ordinary signal would end it. */
static pid_t by_namespace(void)
{
	struct clone_args how = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD};
	pid_t pid = syscall(SYS_clone3, &how, sizeof(how));

	if (pid == 0) {
		mark();
		_exit(0);
	}
	return pid;
}

static void *forked(void *pid)
{
	*(pid_t *)pid = by_fork();
	return NULL;
}

static pid_t by_thread(void)
{
	pthread_t thread;
	pid_t pid = -1;

	if (pthread_create(&thread, NULL, forked, &pid) || pthread_join(thread, NULL))
		fail("thread");
	return pid;
}

/* -------- ways of executing -------- */

static pid_t exec_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		execute();
	return pid;
}

static pid_t exec_vfork(void)
{
	pid_t pid = vfork();

	if (pid == 0)
		execute();
	return pid;
}

static pid_t exec_spawn(void)
{
	pid_t pid;

	return posix_spawn(&pid, file, NULL, NULL, arguments, environ) ? -1 : pid;
}

static void *executed(void *nothing)
{
	(void)nothing;
	execute();
	return NULL;
}

/* From a thread that is not the leader. */
static pid_t exec_thread(void)
{
	pthread_t thread;
	pid_t pid = fork();

	if (pid)
		return pid;
	if (pthread_create(&thread, NULL, executed, NULL))
		_exit(96);
	pause();
	_exit(95);
}

static int copy_in_memory(void)
{
	int from = open(file, O_RDONLY | O_CLOEXEC), to = memfd_create("hid", MFD_CLOEXEC);

	while (sendfile(to, from, NULL, 1 << 20) > 0)
		;
	close(from);
	return to;
}

static pid_t exec_memory(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		fexecve(copy_in_memory(), arguments, environ);
		_exit(127);
	}
	return pid;
}

/* A copy that has no name any more when it is executed. */
static pid_t exec_deleted(void)
{
	pid_t pid = fork();
	char path[512];
	int from, to;

	if (pid)
		return pid;
	snprintf(path, sizeof(path), "%s.%d", file, getpid());
	from = open(file, O_RDONLY | O_CLOEXEC);
	to = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	while (sendfile(to, from, NULL, 1 << 20) > 0)
		;
	close(to);
	to = open(path, O_PATH | O_CLOEXEC);
	unlink(path);
	syscall(SYS_execveat, to, "", arguments, environ, AT_EMPTY_PATH);
	_exit(127);
}

/* By the C library's own way: a shell that is replaced by the program. */
static pid_t exec_shell(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/sh", "sh", "-c", file, NULL);
		_exit(127);
	}
	return pid;
}

/* Traced by its parent: the stop at its exec comes before its first instruction, too. */
static pid_t exec_traced(void)
{
	siginfo_t seen = {0};
	pid_t pid = fork();

	if (pid == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execute();
	}
	if (pid > 0 && waitid(P_PID, pid, &seen, WEXITED | WSTOPPED | WNOWAIT) == 0 && seen.si_code == CLD_TRAPPED)
		ptrace(PTRACE_CONT, pid, 0, 0);
	return pid;
}

/* Not a child of ours any more when it executes. */
static pid_t exec_orphan(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		if (fork() == 0)
			execute();
		_exit(0);
	}
	return pid;
}

static const struct {
	const char *name;
	pid_t (*start)(void);
} ways[] = {
    {"fork", by_fork},
    {"vfork", by_vfork},
    {"clone_vm", by_clone_vm},
    {"clone3", by_clone3},
    {"namespace", by_namespace},
    {"thread", by_thread},
    {"exec_fork", exec_fork},
    {"exec_vfork", exec_vfork},
    {"exec_spawn", exec_spawn},
    {"exec_thread", exec_thread},
    {"exec_memory", exec_memory},
    {"exec_deleted", exec_deleted},
    {"exec_shell", exec_shell},
    {"exec_traced", exec_traced},
    {"exec_orphan", exec_orphan},
};

static pid_t (*way_of(const char *name))(void)
{
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		if (strcmp(name, ways[i].name) == 0)
			return ways[i].start;
	errno = EINVAL;
	fail(name);
}

int main(int argc, char **argv)
{
	pid_t (*start)(void) = way_of(argc > 1 ? argv[1] : "");
	long count = count_of(argc, argv, 2, 1), bytes = 0, killed = 0, failed = 0;
	char buffer[4096];
	ssize_t got;
	int pipe_fds[2];

	file = argc > 3 ? argv[3] : NULL;
	if (pipe2(pipe_fds, O_CLOEXEC) || dup2(pipe_fds[1], BYTE_FD) != BYTE_FD || close(pipe_fds[1]))
		fail("pipe");
	for (long done = 0; done < count; done += AT_ONCE) {
		pid_t pids[AT_ONCE];

		for (long i = 0; i < AT_ONCE && done + i < count; i++) {
			pids[i] = start();
			failed += pids[i] < 0;
		}
		for (long i = 0; i < AT_ONCE && done + i < count; i++) {
			int status;

			if (pids[i] < 0)
				continue;
			if (waitpid(pids[i], &status, __WALL) != pids[i])
				fail("waitpid");
			killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
			failed += WIFEXITED(status) && WEXITSTATUS(status) != 0;
		}
	}
	close(BYTE_FD);
	while ((got = read(pipe_fds[0], buffer, sizeof(buffer))) > 0) /* ends with the last of them */
		bytes += got;
	fact("attempts", "\"bytes\":%ld,\"killed\":%ld,\"failed\":%ld", bytes, killed, failed);
	hold();
	return 0;
}
