/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One getter per difference between kernels, asked of BTF, never of a version number. Each says the commit, its
 * subject, the release in brackets, what is true since and what was true before.
 */
#ifndef KINWATCH_QUIRK_H
#define KINWATCH_QUIRK_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
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

/* The same of a task that is no pointer of the verifier's. */
static __always_inline uint32_t group_status_read(const struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(task, signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

/*
 * When an inode was last changed, ns since the epoch. "fs: rename i_ctime field to __i_ctime" (13bc24457850, in 6.6),
 * "fs: switch timespec64 fields in inode to discrete integers" (3aa63a569c64, in 6.11), and bit 31 of the nanoseconds
 * is a mark of multigrain timestamps since 4e40eff0b573 (in 6.13).
 */
struct timespec64 {
	long long tv_sec;
	long tv_nsec;
} __attribute__((preserve_access_index));

struct inode___before_6_6 {
	struct timespec64 i_ctime;
} __attribute__((preserve_access_index));

struct inode___6_6 {
	struct timespec64 __i_ctime;
} __attribute__((preserve_access_index));

struct inode___6_11 {
	long long i_ctime_sec;
	uint32_t i_ctime_nsec;
} __attribute__((preserve_access_index));

static __always_inline uint64_t ctime_of(const struct inode *inode)
{
	const struct inode___before_6_6 *old = (const void *)inode;
	const struct inode___6_6 *renamed = (const void *)inode;
	const struct inode___6_11 *split = (const void *)inode;
	uint64_t seconds, ns;

	if (bpf_core_field_exists(split->i_ctime_sec)) {
		seconds = split->i_ctime_sec;
		ns = split->i_ctime_nsec & ~(1U << 31);
	} else if (bpf_core_field_exists(renamed->__i_ctime)) {
		seconds = renamed->__i_ctime.tv_sec;
		ns = renamed->__i_ctime.tv_nsec;
	} else {
		seconds = old->i_ctime.tv_sec;
		ns = old->i_ctime.tv_nsec;
	}
	return seconds * 1000000000 + ns;
}

/*
 * A signal for another task than the current one: "bpf: implement bpf_send_signal_task() kfunc" (6280cf718db0,
 * in 6.13). Before it a child can be killed by user space, or by itself at its first exec.
 */
enum kernel_pid_type { KERNEL_PIDTYPE_TGID = 1 };

extern int bpf_send_signal_task(struct task_struct *task, int signal, enum kernel_pid_type type,
				uint64_t value) __ksym __weak;

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
