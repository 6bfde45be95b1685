/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Fork, exec and exit a second time, for kernels that skip a hook. Owns how the second hook knows that the first has
 * been there. Loaded only where hooks can be preempted.
 *
 * A program that is running on a processor is not run there for anybody else: the kernel skips it, and the event is
 * gone. That was for recursion alone, until tracepoints could be preempted (a46023d5616e, "tracing: Guard
 * __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast", in 7.0): since then a program may wait on a processor on
 * which others fork and execute. The second hooks are where nobody is preempted: a new task is woken with interrupts
 * off, and programs at trace events, which perf calls, run with preemption off. What both skip is counted
 * (KW_HOOK_MISSED).
 *
 * Fork and exit are known from the row that the first hook made or removed; an exec from the row's `image`.
 */
#ifndef KINWATCH_AGAIN_BPF_H
#define KINWATCH_AGAIN_BPF_H

#include "proc.bpf.h"

/*
 * A child is woken for the first time, by who forked it. A signal for it leaves when interrupts are on again, a moment
 * later, when the child may have begun on another processor.
 */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_fork_again, struct task_struct *child)
{
	if (kin_alive() >= control.max_kin) /* there is no row to know it from: the first has told that it is full */
		return 0;
	return fork_hook(bpf_get_current_task_btf(), child, true);
}

/* The name of a script cannot be told from that of an image here: the line does without. */
SEC("tp/sched/sched_process_exec")
int on_exec_again(struct trace_event_raw_sched_process_exec *event)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const void *context = event;
	const char *address;
	struct kw_kin *known;

	if (!kin_alive() && !control.rules && !control.cmdline)
		return 0;
	known = kin_of(task->tgid, task->group_leader->start_boottime);
	if (known ? known->image == image_of(task) : kin_alive() >= control.max_kin)
		return 0;
	bpf_probe_read_kernel(&address, sizeof(address), &context); /* the same address, as a number */
	exec_follow(task, known, address + (event->__data_loc_filename & 0xffff), NULL);
	return exec_mark(task);
}

SEC("tp/sched/sched_process_exit")
int on_exit_again(void *event)
{
	return exit_hook(bpf_get_current_task_btf());
}

#endif
