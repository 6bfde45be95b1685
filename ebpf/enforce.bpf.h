/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What is done about a fork or exec that breaks an expectation: nothing, a record (dry run), or SIGKILL before the first
 * instruction. Decided here, from maps and control cells. Owns limits, the breaker and the kill. Refuses to know files
 * (judge.h) and who is kin.
 *
 * Only descendants are killed, on behalf of the watches they descend from: whoever is a root of a watch is never killed
 * for it. A process that a command line still decides about is in none of these masks.
 */
#ifndef KINWATCH_ENFORCE_BPF_H
#define KINWATCH_ENFORCE_BPF_H

#include "image.h"
#include "kin.h"

enum {
	MINUTE_BITS = 32, /* of a cell that counts within a minute, the minute from this bit on */
	WINDOW_RACES = 8, /* lost races for such a cell that are made up for */
};

static const uint64_t MINUTE_NS = 60000000000;
static const uint64_t SPARED_SPACING_NS = 100000000; /* between two records about processes that the breaker spared */

/* What is broken, by which watches' rules. */
struct breach {
	uint64_t kill;	/* slots that kill for it */
	uint64_t would; /* slots that only say so */
	uint32_t kill_reason;
	uint32_t would_reason;
};

static __always_inline void breach_add(struct breach *breach, uint64_t slots, uint32_t reason)
{
	uint64_t kill, would;

	slots &= control.enforced[reason];
	kill = slots & control.killing;
	would = slots & ~kill;
	if (kill && !breach->kill)
		breach->kill_reason = reason;
	if (would && !breach->would)
		breach->would_reason = reason;
	breach->kill |= kill;
	breach->would |= would;
}

/*
 * One more in the present minute of the boot clock; returns how many that makes. Minutes are fixed, so that one word
 * holds all: within any 60 s there may be twice as many as in one minute.
 */
static __noinline uint32_t window_add(uint64_t *cell, uint32_t minute)
{
	for (int i = 0; i < WINDOW_RACES; i++) {
		uint64_t seen = *(volatile uint64_t *)cell;
		uint64_t next = seen + 1;

		if (seen >> MINUTE_BITS < minute) /* a later one: another CPU's clock was read later */
			next = (uint64_t)minute << MINUTE_BITS | 1;
		if (__sync_val_compare_and_swap(cell, seen, next) == seen)
			return next;
	}
	return __sync_fetch_and_add(cell, 1) + 1;
}

/* May somebody be killed now? Counts him, and trips the breaker. */
static __always_inline bool breaker_closed(uint64_t now_ns)
{
	if (control.stopped & KW_STOP_BREAKER)
		return false;
	if (window_add(&control.kills, now_ns / MINUTE_NS) <= control.max_kills)
		return true;
	__sync_fetch_and_or(&control.stopped, KW_STOP_BREAKER);
	return false;
}

static __noinline int enforced_emit(const struct task_struct *task, const struct kw_kin *row, const struct breach *breach,
				    uint16_t action)
{
	struct kw_enforced *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	uint64_t now_ns = bpf_ktime_get_boot_ns();

	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	header_fill(&record->header, sizeof(*record), KW_ENFORCED, KW_HAS_ROOT | KW_HAS_CREDENTIALS, now_ns, row);
	id_fill(&record->process, BPF_CORE_READ(task, tgid), row->start_ns);
	id_fill(&record->root, row->root_pid, row->root_start_ns);
	record->slots = action == KW_ACTION_WOULD ? breach->would : breach->kill;
	record->depth = row->depth;
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	record->reason = action == KW_ACTION_WOULD ? breach->would_reason : breach->kill_reason;
	record->action = action;
	record->reserved = 0;
	comm_fill(record->comm, task);
	submit(record, now_ns, true, 0);
	return 0;
}

/* What comes of a breach: an action to take, and counts. 0: nobody is to be told. */
static __noinline uint32_t breach_decide(const struct breach *breach)
{
	uint64_t now_ns;

	if (control.stopped & KW_STOP_ORPHANED)
		return 0;
	if (breach->would)
		count(breach->would, CELL_WOULD_ENFORCE, 1);
	if (!breach->kill)
		return breach->would ? KW_ACTION_WOULD : 0;
	now_ns = bpf_ktime_get_boot_ns();
	if (breaker_closed(now_ns)) {
		count(breach->kill, CELL_ENFORCED, 1);
		return KW_ACTION_KILL;
	}
	count(breach->kill, CELL_WOULD_ENFORCE, 1);
	if (now_ns - control.spared_told_ns < SPARED_SPACING_NS)
		return 0;
	control.spared_told_ns = now_ns;
	return KW_ACTION_SPARED;
}

/* Kill a child that has not run. False: this kernel cannot. */
static __always_inline bool child_kill(struct task_struct *child)
{
	return bpf_send_signal_task && !bpf_send_signal_task(child, SIGKILL, KERNEL_PIDTYPE_TGID, 0);
}

/* A descendant's row changes: it is killed, or will be. */
static __always_inline void row_doom(const struct kw_kin *row, uint32_t pid, bool killed)
{
	struct kw_kin *known = kin_of(pid, row->start_ns);

	if (!known)
		return;
	if (!killed) {
		__sync_fetch_and_or(&known->fate, KW_FATE_DOOMED);
		return;
	}
	/* It makes no room that another could miss: from here on it is alive for nobody's limit. */
	__sync_fetch_and_or(&known->ended, (uint32_t)row->watches);
	count(row->watches, CELL_CHILDREN, -1);
}

static __always_inline void fork_act(struct task_struct *child, const struct kw_kin *row, const struct breach *breach,
				     bool tracked)
{
	uint32_t action = breach_decide(breach);

	if (!action)
		return;
	if (action == KW_ACTION_KILL) {
		bool killed = child_kill(child);

		if (tracked)
			row_doom(row, child->tgid, killed);
		if (!killed)
			action = KW_ACTION_DELEGATE;
	}
	enforced_emit(child, row, breach, action);
}

/* Slots whose limit of depth a fork breaks, and from bit 32 on those whose limit of forks in a minute. */
__noinline uint64_t over_numbers(uint64_t slots, uint32_t depth, uint64_t start_ns)
{
	uint64_t deep = control.enforced[KW_REASON_DEPTH] & slots;
	uint64_t counted = control.enforced[KW_REASON_RATE] & slots;
	uint64_t over = control.nothing;

	for (uint32_t slot = 0; slot < KW_WATCHES; slot++) {
		uint64_t bit = 1ULL << slot;
		uint32_t key = slot;
		struct kw_counters_row *cells;

		if ((deep & bit) && depth > control.depths[slot])
			over |= bit;
		if (!(counted & bit))
			continue;
		cells = bpf_map_lookup_elem(&counters, &key);
		if (cells && window_add(&cells->rate, start_ns / MINUTE_NS) > control.rates[slot])
			over |= bit << 32;
	}
	return over;
}

/* Of these slots, those whose users it runs as none of, really or effectively. */
static __always_inline uint64_t wrong_user(const struct task_struct *task, uint64_t slots)
{
	uint32_t uid = BPF_CORE_READ(task, cred, uid.val), euid = BPF_CORE_READ(task, cred, euid.val);
	const uint64_t *really = bpf_map_lookup_elem(&uids, &uid);
	const uint64_t *effectively = bpf_map_lookup_elem(&uids, &euid);

	return really && effectively ? slots & ~(*really & *effectively) : slots;
}

/* A child of a watch that enforces, before it has run. `over`: slots that have more children than their limit. */
static __noinline int fork_enforce(struct task_struct *child, const struct kw_kin *row, uint64_t over)
{
	uint64_t slots = control.enforcing & row->watches;
	struct breach breach = {};

	breach_add(&breach, slots & over, KW_REASON_CHILDREN);
	if (slots & (control.enforced[KW_REASON_DEPTH] | control.enforced[KW_REASON_RATE])) {
		uint64_t numbers = over_numbers(slots, row->depth, row->start_ns);

		breach_add(&breach, (uint32_t)numbers, KW_REASON_DEPTH);
		breach_add(&breach, numbers >> 32, KW_REASON_RATE);
	}
	if (slots & control.enforced[KW_REASON_UID])
		breach_add(&breach, wrong_user(child, slots), KW_REASON_UID);
	if (breach.kill | breach.would)
		fork_act(child, row, &breach, true);
	return 0;
}

/* There was no room for the row of a child. */
static __noinline int untracked_enforce(struct task_struct *child, const struct kw_kin *row)
{
	struct breach breach = {};

	if (kin_of(child->tgid, row->start_ns))
		return 0; /* the task walk was quicker */
	breach_add(&breach, control.enforcing & row->watches, KW_REASON_UNTRACKED);
	if (breach.kill | breach.would)
		fork_act(child, row, &breach, false);
	return 0;
}

/* The current task has executed an image and not begun it. */
static __noinline int exec_enforce(struct task_struct *task, const struct kw_kin *row, uint64_t judgement)
{
	uint64_t slots = control.enforcing & row->watches & ~row->roots;
	uint32_t flags = judgement >> JUDGEMENT_FLAGS, action;
	struct breach breach = {};

	if (row->fate & KW_FATE_DOOMED && slots & control.killing && !control.stopped) {
		bpf_send_signal(SIGKILL); /* told and counted when it was forked */
		return 0;
	}
	breach_add(&breach, slots & (uint32_t)judgement, KW_REASON_EXECUTABLE);
	if (flags & KW_MEMFD)
		breach_add(&breach, slots, KW_REASON_MEMFD);
	if (flags & KW_DELETED)
		breach_add(&breach, slots, KW_REASON_DELETED);
	if (flags & KW_TEMPORARY)
		breach_add(&breach, slots, KW_REASON_TEMPORARY);
	if (slots & control.enforced[KW_REASON_UID])
		breach_add(&breach, wrong_user(task, slots), KW_REASON_UID);
	if (!(breach.kill | breach.would))
		return 0;
	action = breach_decide(&breach);
	if (action == KW_ACTION_KILL && bpf_send_signal(SIGKILL)) {
		row_doom(row, task->tgid, false);
		action = KW_ACTION_DELEGATE;
	}
	if (action)
		enforced_emit(task, row, &breach, action);
	return 0;
}

/* The daemon, perhaps: who enforces for it stops. */
static __noinline int daemon_exit(struct task_struct *task)
{
	if (task->group_leader->start_boottime == control.daemon_start_ns && group_is_dead(task))
		__sync_fetch_and_or(&control.stopped, KW_STOP_ORPHANED);
	return 0;
}

#endif
