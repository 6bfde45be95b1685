/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The hooks of a process's life: fork, exec, exit, and cgroups that come and go. Each starts with the question that
 * lets everybody else go at once.
 */
#ifndef KINWATCH_PROC_BPF_H
#define KINWATCH_PROC_BPF_H

#include "enforce.bpf.h"
#include "image.h"
#include "kin.h"
#include "match.h"
#include <bpf/bpf_tracing.h>

/* A stranger made a process while the task walk runs: its parent may turn out to be kin. */
__noinline int edge_keep(uint32_t pid, uint64_t start_ns, uint32_t parent_pid, uint64_t parent_start_ns, uint32_t flags)
{
	struct kw_edge edge = {.start_ns = start_ns, .parent_start_ns = parent_start_ns, .parent_pid = parent_pid};

	if (bpf_map_update_elem(&edges, &pid, &edge, flags) == -E2BIG)
		lose_and_tell(KW_TABLE_FULL);
	return 0;
}

static __always_inline const struct kw_verdict *verdict_on(const struct kw_kin *row)
{
	struct kw_id id;

	id_fill(&id, row->undecided_pid, row->undecided_start_ns);
	return bpf_map_lookup_elem(&decided, &id);
}

/* The child of a process that a command line still decides about: provisional as its parent is, or what the verdict
 * says. */
static __noinline int fork_undecided(const struct kw_kin *above, struct kw_kin *row)
{
	const struct kw_verdict *verdict = verdict_on(above);

	if (verdict) {
		row->watches |= verdict->watches;
		return 0;
	}
	row->undecided_pid = above->undecided_pid;
	row->undecided_start_ns = above->undecided_start_ns;
	row->undecided_depth = above->undecided_depth + 1;
	return 0;
}

static __noinline int fork_tell_undecided(struct task_struct *child, const struct kw_kin *row)
{
	struct kw_fork *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);

	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	header_fill(&record->header, sizeof(*record), KW_FORK,
		    KW_HAS_PARENT | KW_HAS_ROOT | KW_HAS_CREDENTIALS | KW_UNDECIDED, row->start_ns, row);
	record->header.watches = 0;
	id_fill(&record->process, BPF_CORE_READ(child, tgid), row->start_ns);
	id_fill(&record->parent, row->parent_pid, row->parent_start_ns);
	id_fill(&record->root, row->undecided_pid, row->undecided_start_ns);
	record->depth = row->undecided_depth;
	record->uid = BPF_CORE_READ(child, cred, uid.val);
	comm_fill(record->comm, child);
	submit(record, row->start_ns, false, 0);
	return 0;
}

/* Make a process a root of the watches in `fresh`, in its row or with a new one; `row` becomes a copy of the row.
 * False: there are too many kin, or another hook was quicker. */
static __noinline bool root_add(struct task_struct *task, uint64_t fresh, struct kw_kin *row)
{
	uint32_t pid = BPF_CORE_READ(task, tgid);
	uint64_t start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	struct kw_kin *known = kin_of(pid, start_ns);

	if (known) {
		uint64_t before = __sync_fetch_and_or(&known->watches, fresh);

		fresh &= ~before; /* less what another hook was quicker with */
		if (!fresh)
			return false;
		__sync_fetch_and_or(&known->roots, fresh);
		if (!before) { /* it was provisional */
			known->root_pid = pid;
			known->root_start_ns = start_ns;
			known->depth = 0;
		}
		*row = *known;
	} else {
		__builtin_memset(row, 0, sizeof(*row));
		row->start_ns = start_ns;
		row->watches = row->roots = fresh;
		row->root_pid = pid;
		row->root_start_ns = start_ns;
		row->parent_pid = BPF_CORE_READ(task, real_parent, tgid);
		row->parent_start_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
		row->flags = KW_HAS_PARENT;
		/* Counted before it is there: a hook that finds no kin alive looks for none. */
		__sync_fetch_and_add(&control.activity, 1);
		if (!kin_add(pid, row)) {
			__sync_fetch_and_add(&control.activity, -1);
			return false;
		}
	}
	if (fresh && !bpf_map_delete_elem(&pids, &pid)) { /* a pid names one process, and this was it */
		__sync_fetch_and_add(&control.pid_rules, -1);
		__sync_fetch_and_add(&control.rules, -1);
	}
	count(fresh, CELL_ROOTS, (1 << KW_PACKED_BITS) + 1);
	return true;
}

/* A child that begins its life in another cgroup than its parent's (CLONE_INTO_CGROUP): no exec, no move, yet it is a
 * member. */
static __noinline int fork_into_cgroup(struct task_struct *child)
{
	uint64_t fresh = match_cgroup((uint64_t)BPF_CORE_READ(child, cgroups, dfl_cgrp));
	const struct kw_kin *known;
	struct kw_kin row;

	if (!fresh)
		return 0;
	known = kin_of(BPF_CORE_READ(child, tgid), BPF_CORE_READ(child, start_boottime));
	if (known)
		fresh &= ~known->watches;
	if (fresh && root_add(child, fresh, &row))
		adopt_emit(child, &row, fresh, KW_CAUSE_MOVED);
	return 0;
}

/* The child of kin is kin. */
static __noinline int fork_follow(struct task_struct *parent, struct task_struct *child, bool again)
{
	const struct kw_kin *above;
	struct kw_fork *record;
	struct kw_kin row;
	uint64_t parent_start_ns, over;
	uint32_t pid, parent_pid;

	pid = child->pid;
	if (pid != (uint32_t)child->tgid)
		return 0;
	parent_pid = parent->tgid;
	above = row_of(parent_pid);
	if (!above && !control.bootstrapping)
		return 0;
	parent_start_ns = parent->group_leader->start_boottime;
	if (!above || above->start_ns != parent_start_ns) {
		if (control.bootstrapping)
			edge_keep(pid, child->start_boottime, parent_pid, parent_start_ns,
				  again ? BPF_NOEXIST : BPF_ANY);
		return 0;
	}
	if (again && kin_of(pid, child->start_boottime))
		return 0;

	row.start_ns = child->start_boottime;
	row.watches = above->watches;
	row.roots = 0;
	row.parent_start_ns = parent_start_ns;
	row.root_start_ns = above->root_start_ns;
	row.parent_pid = parent_pid;
	row.root_pid = above->root_pid;
	row.depth = above->depth + 1;
	row.flags = KW_HAS_PARENT;
	row.image = 0;
	row.ended = row.fate = 0;
	row.undecided_start_ns = 0;
	row.undecided_pid = 0;
	row.undecided_depth = 0;
	if (above->undecided_pid)
		fork_undecided(above, &row);
	/* Neither: a command line did not match, or its watch is being removed this moment. */
	if (!row.watches && !row.undecided_pid)
		return 0;
	if (!kin_add(pid, &row)) {
		if (control.enforcing & row.watches)
			untracked_enforce(child, &row);
		return 0;
	}
	if (row.undecided_pid)
		fork_tell_undecided(child, &row);
	if (!row.watches) {
		__sync_fetch_and_add(&control.activity, 1);
		return 0;
	}

	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	over = count_children(row.watches, CHILD_FORKED);
	if (!record) {
		__sync_fetch_and_add(&control.activity, 1);
		lose(KW_RING_FULL);
		goto enforce;
	}
	/* The time is the child's own start, taken in copy_process() a moment ago: a clock read less. */
	header_fill(&record->header, sizeof(*record), KW_FORK, KW_HAS_PARENT | KW_HAS_ROOT | KW_HAS_CREDENTIALS,
		    row.start_ns, &row);
	id_fill(&record->process, pid, row.start_ns);
	id_fill(&record->parent, parent_pid, parent_start_ns);
	id_fill(&record->root, row.root_pid, row.root_start_ns);
	record->depth = row.depth;
	record->uid = child->cred->uid.val;
	comm_copy(record->comm, child);
	submit(record, row.start_ns, over >> JUST_OVER, 1);
enforce:
	if (control.enforcing & row.watches)
		fork_enforce(child, &row, over);
	return 0;
}

static __always_inline int fork_hook(struct task_struct *parent, struct task_struct *child, bool again)
{
	if (kin_alive() || control.bootstrapping)
		fork_follow(parent, child, again);
	if (control.cgroup_rules && child->cgroups != parent->cgroups && child->pid == child->tgid)
		fork_into_cgroup(child);
	return 0;
}

/*
 * Fork. The tracepoint fires after copy_process() has succeeded and before the child is woken, so the row exists before
 * the child's first instruction. Its first argument is the forker, whatever CLONE_PARENT did to real_parent. Threads
 * pass through too; io_uring workers do not (create_io_thread() bypasses kernel_clone()), and need not: they are
 * threads.
 */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return fork_hook(parent, child, false);
}

/*
 * An image whose command line user space has to look at: the process is provisional until then, and so is whom it
 * forks. The record goes out with KW_UNDECIDED, after the one for the watches that are decided.
 */
static __noinline int exec_undecided(struct task_struct *task, const char *script)
{
	uint32_t pid = BPF_CORE_READ(task, tgid);
	uint64_t start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	struct kw_kin *known = kin_of(pid, start_ns);
	uint64_t pending = control.cmdline;
	struct kw_kin row;

	if (known) {
		pending &= ~known->watches;
		if (!pending)
			return 0;
		known->undecided_start_ns = start_ns;
		known->undecided_depth = 0;
		__sync_lock_test_and_set(&known->undecided_pid, pid);
		row = *known;
	} else {
		__builtin_memset(&row, 0, sizeof(row));
		row.start_ns = row.undecided_start_ns = row.root_start_ns = start_ns;
		row.undecided_pid = row.root_pid = pid;
		row.parent_pid = BPF_CORE_READ(task, real_parent, tgid);
		row.parent_start_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
		row.flags = KW_HAS_PARENT;
		__sync_fetch_and_add(&control.activity, 1);
		if (!kin_add(pid, &row)) {
			__sync_fetch_and_add(&control.activity, -1);
			return 0;
		}
	}
	row.flags |= KW_UNDECIDED;
	row.watches = row.roots = 0;
	exec_emit(task, &row, pending, script, 0);
	return 0;
}

/* Which of its execs a process is at: a number that is not zero, and another for the next one. */
static __always_inline uint16_t image_of(const struct task_struct *task)
{
	return (uint16_t)task->self_exec_id | 1U << 15;
}

/* This exec is told, for the second hook to know. */
static __noinline int exec_mark(struct task_struct *task)
{
	struct kw_kin *known = kin_of(task->tgid, task->group_leader->start_boottime);

	if (known)
		known->image = image_of(task);
	return 0;
}

/* `script`: what an interpreter is to run, which is `filename` then; NULL: none. Kernel memory, both. */
static __noinline int exec_follow(struct task_struct *task, struct kw_kin *known, const char *filename,
				  const char *script)
{
	struct kw_kin row;
	uint64_t fresh = 0, judgement = 0;

	if (control.rules) {
		fresh = match_base_name((uint64_t)filename) | match_process(bpf_get_current_task());
		if (known)
			fresh &= ~known->watches; /* kinship beats matching */
	}
	if (fresh && !root_add(task, fresh, &row)) {
		fresh = 0; /* no room, or the walk was quicker: then it is known now */
		known = kin_of(task->tgid, task->group_leader->start_boottime);
	}
	if (!fresh) {
		row.watches = 0;
		if (known)
			row = *known;
	}
	if (!row.watches)
		goto undecided;
	count(row.watches & ~row.roots, CELL_EXECS, 1);
	if ((control.enforcing | control.judged | control.located) & row.watches)
		judgement = judge_image(task, row.watches);
	exec_emit(task, &row, fresh, script, judgement);
	if (control.enforcing & row.watches)
		exec_enforce(task, &row, judgement);
undecided:
	if (control.cmdline)
		exec_undecided(task, script);
	return 0;
}

/*
 * Exec. Fires only on success, with the new image in place and all other threads gone, before its first instruction.
 * The survivor of an exec from another thread has the leader's pid and start time, so its row is found as before.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	const char *filename;

	if (!kin_alive() && !control.rules && !control.cmdline)
		return 0;
	filename = BPF_CORE_READ(bprm, filename);
	exec_follow(task, kin_of(task->tgid, task->group_leader->start_boottime), filename,
		    BPF_CORE_READ(bprm, interp) != filename ? filename : NULL);
	if (control.paired)
		exec_mark(task);
	return 0;
}

/* A provisional process is gone before it was decided about. It was not counted: the verdict will. */
static __noinline int exit_tell_undecided(struct task_struct *task, const struct kw_kin *row, uint32_t pid)
{
	const struct kw_verdict *verdict = verdict_on(row);
	struct kw_exit *record;

	if (verdict && !verdict->watches)
		return 0;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	header_fill(&record->header, sizeof(*record), KW_EXIT,
		    KW_HAS_ROOT | KW_HAS_STATUS | KW_HAS_CREDENTIALS | KW_UNDECIDED, bpf_ktime_get_boot_ns(), row);
	record->header.watches = record->header.roots = 0;
	id_fill(&record->process, pid, row->start_ns);
	id_fill(&record->root, row->undecided_pid, row->undecided_start_ns);
	record->depth = row->undecided_depth;
	record->status = group_status(task);
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	record->reserved = 0;
	comm_fill(record->comm, BPF_CORE_READ(task, group_leader));
	submit(record, record->header.time_ns, false, 0);
	return 0;
}

/* Out of the counts. A record that wants what only the task knows; NULL: there is no room for it. */
static __always_inline struct kw_exit *exit_begin(const struct kw_kin *row, uint32_t pid)
{
	struct kw_exit *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);

	count_out(row);
	if (!record) {
		__sync_fetch_and_add(&control.activity, -1);
		lose(KW_RING_FULL);
		return NULL;
	}
	header_fill(&record->header, sizeof(*record), KW_EXIT, KW_HAS_ROOT | KW_HAS_STATUS | KW_HAS_CREDENTIALS,
		    bpf_ktime_get_boot_ns(), row);
	id_fill(&record->process, pid, row->start_ns);
	id_fill(&record->root, row->root_pid, row->root_start_ns);
	record->depth = row->depth;
	record->reserved = 0;
	return record;
}

static __always_inline void exit_emit(const struct task_struct *task, const struct kw_kin *row, uint32_t pid)
{
	struct kw_exit *record = exit_begin(row, pid);

	if (!record)
		return;
	record->status = group_status(task);
	record->uid = task->cred->uid.val;
	comm_copy(record->comm, task->group_leader);
	submit(record, record->header.time_ns, false, -1);
}

static __noinline int exit_follow(struct task_struct *task)
{
	uint32_t pid = task->tgid;
	struct kw_kin *known = row_of(pid), row;

	if (!known && !control.bootstrapping)
		return 0;
	if (!group_is_dead(task))
		return 0;
	if (!known || known->start_ns != task->group_leader->start_boottime) {
		/* A fork's edge is better: it knows the creator, this only the parent of now. */
		if (control.bootstrapping)
			edge_keep(pid, task->group_leader->start_boottime, task->group_leader->real_parent->tgid,
				  task->group_leader->real_parent->group_leader->start_boottime, BPF_NOEXIST);
		return 0;
	}
	if (known->undecided_pid) {
		uint32_t undecided =
		    __sync_lock_test_and_set(&known->undecided_pid, 0); /* or the verdict was quicker */

		row = *known;
		row.undecided_pid = undecided;
	} else {
		row = *known;
	}
	if (!kin_remove(pid))
		return 0;
	if (row.undecided_pid)
		exit_tell_undecided(task, &row, pid);
	if (row.watches)
		exit_emit(task, &row, pid);
	else
		__sync_fetch_and_add(&control.activity, -1);
	return 0;
}

static __always_inline int exit_hook(struct task_struct *task)
{
	if ((uint32_t)task->tgid == control.daemon_pid)
		daemon_exit(task);
	return kin_alive() || control.bootstrapping ? exit_follow(task) : 0;
}

/*
 * Exit. Fires per thread in the dying task; a process ends with its last thread, not with its leader (which may be a
 * zombie for long). Two threads may both find the group dead: the one that removes the row speaks for it.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	return exit_hook(task);
}

/*
 * A row made for a process that is not current: it may have died in between, its exit hook finding no row. The task is
 * a number, so that the function is verified once: in each path of the task walk it took the verifier 70 ms.
 */
__noinline int bury_if_dead(uint64_t task_address, const struct kw_kin *row, uint32_t pid)
{
	const struct task_struct *task = (const struct task_struct *)task_address;
	struct kw_exit *record;

	if (!row || BPF_CORE_READ(task, signal, live.counter) != 0 || !kin_remove(pid))
		return 0;
	record = exit_begin(row, pid);
	if (!record)
		return 0;
	record->status = group_status_read(task);
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	comm_fill(record->comm, BPF_CORE_READ(task, group_leader));
	submit(record, record->header.time_ns, false, -1);
	return 0;
}

/* A process is moved into a cgroup: no exec happens, yet it may become a root. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_cgroup_attach, struct cgroup *cgroup, const char *path, struct task_struct *task)
{
	struct kw_kin *known, row;
	uint64_t fresh, id;

	if (!control.cgroup_rules)
		return 0;
	id = cgroup->kn->id;
	fresh = mask_of(&cgroups, &id) | match_cgroup((uint64_t)BPF_CORE_READ(cgroup, self.parent));
	if (!fresh)
		return 0;
	known = kin_of(task->tgid, task->group_leader->start_boottime);
	if (known)
		fresh &= ~known->watches;
	if (!fresh || !root_add(task, fresh, &row))
		return 0;
	adopt_emit(task, &row, fresh, KW_CAUSE_MOVED);
	bury_if_dead((uint64_t)BPF_CORE_READ(task, group_leader), &row, task->tgid);
	return 0;
}

/* A watched cgroup is made, perhaps for the tenth time (a unit starts anew): its new id joins the table before a
 * process can enter it. */
SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(on_cgroup_mkdir, struct cgroup *cgroup, const char *path)
{
	struct kw_cgroup_path key = {};
	uint64_t *mask, id;

	if (!control.cgroup_rules || cgroup->root->hierarchy_id != 0) /* 0: cgroup2 */
		return 0;
	if (bpf_probe_read_kernel_str(key.path, sizeof(key.path), path) <= 0)
		return 0;
	mask = bpf_map_lookup_elem(&cgroup_paths, &key);
	if (!mask)
		return 0;
	id = cgroup->kn->id;
	if (bpf_map_update_elem(&cgroups, &id, mask, BPF_ANY))
		lose_and_tell(KW_TABLE_FULL);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(on_cgroup_rmdir, struct cgroup *cgroup, const char *path)
{
	uint64_t id;

	if (!control.cgroup_rules)
		return 0;
	id = cgroup->kn->id;
	bpf_map_delete_elem(&cgroups, &id);
	return 0;
}

#endif
