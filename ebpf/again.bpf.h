/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The hooks of fork, exec and exit a second time, for kernels that skip a hook. Owns how the second knows that the
 * first has been there. Loaded only where hooks can be preempted.
 *
 * A program that is running on a processor is not run there for anybody else: the kernel skips it, and the event is
 * gone. That was for recursion alone, until tracepoints could be preempted (a46023d5616e, "tracing: Guard
 * __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast", in 7.0): since then a program may wait on a processor on
 * which others fork and execute. A second program is skipped by its own runs only, and those are over at once wherever
 * the first was not skipped. What both skip is counted (KW_HOOK_MISSED).
 *
 * Fork and exit are known from the row that the first made or removed; an exec from the row's `image`.
 */
#ifndef KINWATCH_AGAIN_BPF_H
#define KINWATCH_AGAIN_BPF_H

#include "proc.bpf.h"

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork_again, struct task_struct *parent, struct task_struct *child)
{
	if (kin_alive() >= control.max_kin) /* there is no row to know it from: the first has told that it is full */
		return 0;
	return fork_hook(parent, child, true);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec_again, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct kw_kin *known;

	if (!kin_alive() && !control.rules && !control.cmdline)
		return 0;
	known = kin_of(task->tgid, task->group_leader->start_boottime);
	if (known ? known->image == image_of(task) : kin_alive() >= control.max_kin)
		return 0;
	exec_follow(task, bprm, known);
	return exec_mark(task);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit_again, struct task_struct *task)
{
	return exit_hook(task);
}

#endif
