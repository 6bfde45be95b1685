/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Iterators, run by user space: the task walk that takes in running processes, the dump of the lineage map, and the
 * snapshot of the counters.
 */
#ifndef KINWATCH_WALK_BPF_H
#define KINWATCH_WALK_BPF_H

#include "proc.bpf.h"

enum { EDGE_CHAIN = 32 };

/*
 * The nearest creator that is kin, along the edges kept since the hooks went live; 0: none. A creator that is alive
 * needs no chain: it is walked itself, and if it becomes kin this process is found in the next run.
 */
__noinline uint32_t kin_along_edges(uint32_t pid, uint64_t start_ns)
{
	for (int i = 0; i < EDGE_CHAIN; i++) {
		struct kw_edge *edge = bpf_map_lookup_elem(&edges, &pid);

		if (!edge || edge->start_ns != start_ns)
			return 0;
		pid = edge->parent_pid;
		start_ns = edge->parent_start_ns;
		if (kin_of(pid, start_ns))
			return pid;
	}
	return 0;
}

/* Who above a running process is kin? 0: nobody. */
static __always_inline uint32_t kin_above(struct task_struct *task, uint32_t pid, uint64_t start_ns, bool *inferred)
{
	uint32_t above = BPF_CORE_READ(task, real_parent, tgid);

	*inferred = false;
	if (kin_of(above, BPF_CORE_READ(task, real_parent, group_leader, start_boottime)))
		return above;
	above = kin_along_edges(pid, start_ns);
	if (above)
		return above;
	/* A session id is its first process's pid and is inherited by fork alone: whose session leader is kin was made
	 * by kin, even if all between them have gone. */
	*inferred = true;
	above = BPF_CORE_READ(task, signal, pids[KERNEL_PIDTYPE_SID], numbers[0].nr);
	return above != pid ? above : 0;
}

/* Take a running process in as a descendant. */
static __noinline uint64_t descendant_add(struct task_struct *task, uint32_t pid, uint64_t start_ns, struct kw_kin *row)
{
	struct kw_kin *known = kin_of(pid, start_ns), *above;
	bool inferred;
	uint32_t above_pid = kin_above(task, pid, start_ns, &inferred);
	uint64_t fresh;

	if (!above_pid)
		return 0;
	above = row_of(above_pid);
	if (!above)
		return 0;
	fresh = above->watches & control.adopt_watches;
	if (known) {
		fresh &= ~known->watches;
		if (fresh)
			fresh &= ~__sync_fetch_and_or(&known->watches, fresh);
		if (!fresh)
			return 0;
		*row = *known;
	} else {
		if (!fresh)
			return 0;
		__builtin_memset(row, 0, sizeof(*row));
		row->start_ns = start_ns;
		row->watches = fresh;
		row->root_pid = above->root_pid;
		row->root_start_ns = above->root_start_ns;
		row->depth = above->depth + 1; /* inferred: at least that deep */
		row->flags = inferred ? KW_INFERRED : KW_HAS_PARENT;
		if (!inferred) {
			row->parent_pid = above_pid;
			row->parent_start_ns = above->start_ns;
		}
		__sync_fetch_and_add(&control.activity, 1);
		if (!kin_add(pid, row)) {
			__sync_fetch_and_add(&control.activity, -1);
			return 0;
		}
	}
	count_children(fresh, CHILD_ALIVE);
	count(fresh, CELL_ADOPTED, 1);
	return fresh;
}

/* Put a row in place as an earlier version's programs knew it: no record, the engine knows the process. */
static __noinline bool seed_add(struct task_struct *task, uint32_t pid, uint64_t start_ns, struct kw_kin *row)
{
	const struct kw_kin *handed = bpf_map_lookup_elem(&seed, &pid);

	if (!handed || handed->start_ns != start_ns)
		return false;
	*row = *handed;
	__sync_fetch_and_add(&control.activity, 1);
	if (!kin_add(pid, row)) {
		__sync_fetch_and_add(&control.activity, -1);
		return false;
	}
	count(row->watches & ~(row->roots | row->ended), CELL_CHILDREN, 1);
	count(row->roots, CELL_ROOTS, 1);
	return true;
}

/*
 * The task walk, run by user space until a run takes in nobody. Hooks are live all the while, so a process forked by
 * kin is kin already; one forked by a process that becomes kin during this run is found in the next.
 */
SEC("iter/task")
int walk(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct kw_kin *known, row;
	uint64_t start_ns, fresh;
	uint32_t pid;

	if (!task || task->pid != task->tgid || (task->flags & PF_KTHREAD) || group_is_dead(task))
		return 0;
	pid = task->tgid;
	start_ns = task->start_boottime;
	known = kin_of(pid, start_ns);
	if (control.seeding) {
		if (!known && seed_add(task, pid, start_ns, &row)) {
			__sync_fetch_and_add(&control.adopted, 1);
			bury_if_dead((uint64_t)BPF_CORE_READ(task, group_leader), &row, pid);
		}
		return 0;
	}
	fresh = descendant_add(task, pid, start_ns, &row);
	if (!fresh) {
		uint64_t address = (uint64_t)BPF_CORE_READ(task, group_leader); /* as a number: the task itself */

		fresh = match_process(address) & control.adopt_watches;
		if (known)
			fresh &= ~known->watches;
		fresh = match_outermost(address, fresh);
		if (!fresh || !root_add(task, fresh, &row))
			return 0;
	}
	__sync_fetch_and_add(&control.adopted, 1);
	adopt_emit(task, &row, fresh, KW_CAUSE_RUNNING);
	bury_if_dead((uint64_t)BPF_CORE_READ(task, group_leader), &row, pid);
	return 0;
}

/* Put verdicts on command lines into the rows they are about. */
SEC("iter/task")
int settle(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	const struct kw_verdict *verdict;
	uint64_t watches, roots = 0, fresh;
	struct kw_kin *row;
	uint32_t pid, undecided;

	if (!task || task->pid != task->tgid)
		return 0;
	pid = task->tgid;
	row = kin_of(pid, task->start_boottime);
	if (!row)
		return 0;
	undecided = row->undecided_pid;
	if (!undecided)
		return 0;
	verdict = verdict_on(row);
	if (!verdict || !verdict->watches)
		return 0;
	watches = verdict->watches;
	if (pid == undecided)
		roots = verdict->roots;
	fresh = __sync_fetch_and_or(&row->watches, watches);
	if (!fresh && pid != undecided) {
		row->root_pid = undecided;
		row->root_start_ns = row->undecided_start_ns;
		row->depth = row->undecided_depth;
	}
	fresh = watches & ~fresh;
	__sync_fetch_and_or(&row->roots, roots & fresh);
	/* Whoever takes the mark away, this or the exit hook, speaks for the process. */
	if (__sync_val_compare_and_swap(&row->undecided_pid, undecided, 0) != undecided)
		return 0;
	count_children(fresh & ~roots, CHILD_FORKED);
	count(fresh & roots, CELL_ROOTS, (1 << KW_PACKED_BITS) + 1);
	__sync_fetch_and_add(&control.adopted, 1);
	return 0;
}

/* Take memberships away: a watch was removed. Run until a run finds none, because children inherit meanwhile. */
SEC("iter/task")
int forget(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct kw_forget *record;
	struct kw_kin *known, row;
	uint64_t gone, now_ns;
	uint32_t pid;

	if (!task || task->pid != task->tgid)
		return 0;
	pid = task->tgid;
	known = kin_of(pid, task->start_boottime);
	if (!known)
		return 0;
	gone = known->watches & control.forget_watches;
	if (!gone)
		return 0;
	__sync_fetch_and_add(&control.adopted, 1);
	__sync_fetch_and_and(&known->watches, ~gone);
	__sync_fetch_and_and(&known->roots, ~gone);
	row = *known;
	if (!row.watches && kin_remove(pid))
		__sync_fetch_and_add(&control.activity, -1);
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	now_ns = bpf_ktime_get_boot_ns();
	header_fill(&record->header, sizeof(*record), KW_FORGET, 0, now_ns, &row);
	id_fill(&record->process, pid, row.start_ns);
	record->gone = gone;
	submit(record, now_ns, false, 0);
	return 0;
}

/* What the kernel knows its reader's open files by: how user space names a file as execs see it, whatever stat(2) makes
 * of device numbers (overlayfs, btrfs). */
SEC("iter/task_file")
int identify(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct kw_identity identity = {};

	if (!task || !file || (uint32_t)task->tgid != bpf_get_current_pid_tgid() >> 32)
		return 0;
	if (control.hiring) {
		control.daemon_pid = task->tgid;
		control.daemon_start_ns = task->group_leader->start_boottime;
		control.hiring = 0;
	}
	identity_fill(&identity, file);
	identity.fd = context->fd;
	bpf_seq_write(context->meta->seq, &identity, sizeof(identity));
	return 0;
}

/* Every row of the lineage map as a kw_sync record, with what only the task knows. */
SEC("iter/task")
int dump(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct kw_sync record = {};
	struct kw_kin *row;
	uint32_t pid;

	if (!task || task->pid != task->tgid)
		return 0;
	pid = task->tgid;
	row = kin_of(pid, task->start_boottime);
	if (!row)
		return 0;
	header_fill(&record.header, sizeof(record), KW_SYNC,
		    KW_HAS_ROOT | KW_HAS_CREDENTIALS | (row->flags & (KW_HAS_PARENT | KW_INFERRED)),
		    bpf_ktime_get_boot_ns(), row);
	id_fill(&record.process, pid, row->start_ns);
	id_fill(&record.parent, row->parent_pid, row->parent_start_ns);
	id_fill(&record.root, row->root_pid, row->root_start_ns);
	record.depth = row->depth;
	record.phase = 1;
	record.uid = BPF_CORE_READ(task, cred, uid.val);
	comm_fill(record.comm, task);
	bpf_seq_write(context->meta->seq, &record, sizeof(record));
	return 0;
}

/*
 * The counters, and the begin of the window of control.snapshot_reader. An iterator over maps is only the vehicle (one
 * over map elements would be apt, but some kernels refuse to load it): all is written at its first element.
 */
SEC("iter/bpf_map")
int snapshot(struct bpf_iter__bpf_map *context)
{
	uint32_t reader = control.snapshot_reader;

	if (context->meta->seq_num != 0)
		return 0;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++) {
		uint32_t key = slot;
		struct kw_counters_row *row = bpf_map_lookup_elem(&counters, &key);
		struct kw_counters cells;
		uint64_t children, roots;

		if (!row)
			return 0;
		cells.adopted = *(volatile uint64_t *)&row->adopted;
		children = *(volatile uint64_t *)&row->children;
		roots = *(volatile uint64_t *)&row->roots;
		cells.alive = children & KW_PACKED_MASK;
		cells.spawned = children >> KW_PACKED_BITS;
		cells.exits = cells.spawned + cells.adopted - cells.alive;
		cells.roots = roots & KW_PACKED_MASK;
		cells.root_starts = roots >> KW_PACKED_BITS;
		cells.root_exits = cells.root_starts - cells.roots;
		cells.execs = row->execs;
		cells.peak = row->peak;
		cells.enforced = row->enforced;
		cells.would_enforce = row->would_enforce;
		for (int i = 0; i < KW_READERS; i++)
			cells.window_peak[i] = row->window_peak[i];
		if (reader < KW_READERS) {
			/* A fork between the two steps has raised the old peak, which this window keeps. */
			cells.window_peak[reader] = __sync_lock_test_and_set(&row->window_peak[reader], cells.alive);
			raise_peaks(slot, *(volatile uint64_t *)&row->children & KW_PACKED_MASK);
		}
		bpf_seq_write(context->meta->seq, &cells, sizeof(cells));
	}
	return 0;
}

#endif
