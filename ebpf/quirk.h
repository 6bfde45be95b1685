/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One getter per difference between kernels, asked of BTF, never of a version number. Each says the commit, its
 * subject, the release in brackets, what is true since and what was true before.
 */
#ifndef KINWATCH_QUIRK_H
#define KINWATCH_QUIRK_H

#include "kernel.h"
#include <bpf/bpf_core_read.h>

/*
 * The last thread of the group is gone, or going.
 *
 * sched_process_exit fires once per thread. Its second argument `group_dead` (commit "exit: move and extend
 * sched_process_exit() tracepoint" (in v6.16)) would say it directly, but older kernels have no such argument.
 * signal->live is decremented before the tracepoint on all of them, so zero means that every thread has come to
 * do_exit(). Two threads on two CPUs may both read zero: the caller removes the lineage row, and who removes it is the
 * last.
 */
static __always_inline bool group_is_dead(const struct task_struct *task)
{
	return task->signal->live.counter == 0;
}

/*
 * Wait status of a group: what its parent will read from wait(2). kernel/exit.c wait_task_zombie() takes
 * signal->group_exit_code when the group was ended as one (exit_group, a fatal signal), else the leader's own code.
 */
static __always_inline uint32_t group_status(const struct task_struct *task)
{
	if (task->signal->flags & SIGNAL_GROUP_EXIT)
		return task->signal->group_exit_code;
	return task->group_leader->exit_code;
}

/*
 * bpf_loop() (e6f2dd0f8067, in 5.17) has its body verified once; 32 turns of a loop take the verifier 13 ms in each
 * program.
 */
enum bpf_func_id___loop { BPF_FUNC_loop___loop = 181 };

static __always_inline bool has_loop(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop);
}

/*
 * bpf_get_current_task_btf() in every kind of program (a396eda5517a, "bpf: Extend bpf_base_func_proto helpers with
 * bpf_get_current_task_btf()", in 5.15). BTF says what helpers there are, not where; bpf_task_pt_regs() came with it.
 * The task is then read directly, which costs a tenth of bpf_probe_read_kernel().
 */
enum bpf_func_id___task { BPF_FUNC_task_pt_regs___task = 175 };

static __always_inline bool has_task(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id___task, BPF_FUNC_task_pt_regs___task);
}

#endif
