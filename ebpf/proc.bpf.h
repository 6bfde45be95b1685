/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The hooks of a process's life: fork, exec, exit, and cgroups that come and go. Each starts with the question that lets
 * everybody else go at once.
 */
#ifndef KINWATCH_PROC_BPF_H
#define KINWATCH_PROC_BPF_H

#include "image.h"
#include "kin.h"
#include "match.h"
#include <bpf/bpf_tracing.h>

/* A stranger made a process while the task walk runs: its parent may turn out to be kin. */
__noinline int edge_keep(uint32_t pid, uint64_t start_ns, uint32_t parent_pid, uint64_t parent_start_ns, uint32_t flags)
{
	struct kw_edge edge = {.start_ns = start_ns, .parent_start_ns = parent_start_ns, .parent_pid = parent_pid};

	if (bpf_map_update_elem(&edges, &pid, &edge, flags) == -E2BIG)
		lose(KW_TABLE_FULL);
	return 0;
}

/*
 * Fork. The tracepoint fires after copy_process() has succeeded and before the child is woken, so the row exists before the
 * child's first instruction. Its first argument is the forker, whatever CLONE_PARENT did to real_parent. Threads pass
 * through too; io_uring workers do not (create_io_thread() bypasses kernel_clone()), and need not: they are threads.
 */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	const struct kw_kin *above;
	struct kw_fork *record;
	struct kw_kin row;
	uint64_t parent_start_ns;
	uint32_t pid, parent_pid, breach;

	if (!kin_alive() && !control.bootstrapping)
		return 0;
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
			edge_keep(pid, child->start_boottime, parent_pid, parent_start_ns, BPF_ANY);
		return 0;
	}

	row.start_ns = child->start_boottime;
	row.watches = above->watches;
	row.roots = 0;
	row.parent_start_ns = parent_start_ns;
	row.root_start_ns = above->root_start_ns;
	row.parent_pid = parent_pid;
	row.root_pid = above->root_pid;
	row.depth = above->depth + 1;
	row.flags = KW_HAS_PARENT;
	if (!row.watches || !kin_add(pid, &row)) /* no watches: its watch is being removed this moment */
		return 0;

	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	breach = count_children(row.watches, CHILD_FORKED);
	if (!record) {
		__sync_fetch_and_add(&control.activity, 1);
		lose(KW_RING_FULL);
		return 0;
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
	submit(record, row.start_ns, breach, 1);
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
		fresh &= ~__sync_fetch_and_or(&known->watches, fresh); /* less what another hook was quicker with */
		if (!fresh)
			return false;
		__sync_fetch_and_or(&known->roots, fresh);
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
	if (!bpf_map_delete_elem(&pids, &pid)) /* a pid names one process, and this was it */
		__sync_fetch_and_add(&control.rules, -1);
	count(fresh, CELL_ROOTS, (1 << KW_PACKED_BITS) + 1);
	return true;
}

/*
 * Exec. Fires only on success, with the new image in place and all other threads gone, before its first instruction. The
 * survivor of an exec from another thread has the leader's pid and start time, so its row is found as before.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct kw_kin *known, row;
	uint64_t fresh = 0;
	const char *filename;

	if (!kin_alive() && !control.rules)
		return 0;
	known = kin_of(task->tgid, task->group_leader->start_boottime);
	filename = BPF_CORE_READ(bprm, filename);
	if (control.rules) {
		fresh = match_base_name((uint64_t)filename) | match_process(bpf_get_current_task());
		if (known)
			fresh &= ~known->watches; /* kinship beats matching */
	}
	if (!known && !fresh)
		return 0;
	if (fresh) {
		if (!root_add(task, fresh, &row))
			return 0;
	} else {
		row = *known;
	}
	count(row.watches & ~row.roots, CELL_EXECS, 1);
	/* where an interpreter runs it, filename is the script */
	exec_emit(task, &row, fresh, BPF_CORE_READ(bprm, interp) != filename ? filename : NULL);
	return 0;
}

static __always_inline void exit_emit(const struct task_struct *task, const struct kw_kin *row, uint32_t pid)
{
	struct kw_exit *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	uint64_t now_ns;

	count_out(row);
	if (!record) {
		__sync_fetch_and_add(&control.activity, -1);
		lose(KW_RING_FULL);
		return;
	}
	now_ns = bpf_ktime_get_boot_ns();
	header_fill(&record->header, sizeof(*record), KW_EXIT, KW_HAS_ROOT | KW_HAS_STATUS | KW_HAS_CREDENTIALS, now_ns, row);
	id_fill(&record->process, pid, row->start_ns);
	id_fill(&record->root, row->root_pid, row->root_start_ns);
	record->depth = row->depth;
	record->status = group_status(task);
	record->uid = task->cred->uid.val;
	record->reserved = 0;
	comm_copy(record->comm, task->group_leader);
	submit(record, now_ns, false, -1);
}

/*
 * Exit. Fires per thread in the dying task; a process ends with its last thread, not with its leader (which may be a zombie
 * for long). Two threads may both find the group dead: the one that removes the row speaks for it.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	const struct kw_kin *known;
	struct kw_kin row;
	uint32_t pid;

	if (!kin_alive() && !control.bootstrapping)
		return 0;
	pid = task->tgid;
	known = row_of(pid);
	if (!known && !control.bootstrapping)
		return 0;
	if (!group_is_dead(task))
		return 0;
	if (!known || known->start_ns != task->group_leader->start_boottime) {
		if (control.bootstrapping) /* a fork's edge is better: it knows the creator, this only the parent of now */
			edge_keep(pid, task->group_leader->start_boottime, task->group_leader->real_parent->tgid,
				  task->group_leader->real_parent->group_leader->start_boottime, BPF_NOEXIST);
		return 0;
	}
	row = *known;
	if (kin_remove(pid))
		exit_emit(task, &row, pid);
	return 0;
}

/* A row made for a process that is not current: it may have died in between, its exit hook finding no row. */
static __always_inline void bury_if_dead(const struct task_struct *task, const struct kw_kin *row, uint32_t pid)
{
	if (group_is_dead(task) && kin_remove(pid))
		exit_emit(task, row, pid);
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
	bury_if_dead(task, &row, task->tgid);
	return 0;
}

/* A watched cgroup is made, perhaps for the tenth time (a unit starts anew): its new id joins the table before a process can
 * enter it. */
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
		lose(KW_TABLE_FULL);
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
