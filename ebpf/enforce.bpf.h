/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What is done about a fork or exec that breaks an expectation: nothing, a record (dry run), or SIGKILL before the
 * first instruction. Decided here, from maps and control cells. Owns limits, the breaker and the kill. Refuses to know
 * files (judge.h) and who is kin.
 *
 * Only descendants are killed, on behalf of the watches they descend from: whoever is a root of a watch is never killed
 * for it. A process that a command line still decides about is in none of these masks.
 */
#ifndef KINWATCH_ENFORCE_BPF_H
#define KINWATCH_ENFORCE_BPF_H

#include "image.h"
#include "kin.h"
#include "match.h"

enum {
	MINUTE_UNIT_BITS = 20, /* ns in the unit of time of a cell that counts within a minute, as a power of two */
	MINUTE_UNITS = 57221,  /* in a minute, to a millisecond */
	WINDOW_RACES = 8,      /* lost races for such a cell that are made up for */
};

static const uint64_t SPARED_SPACING_NS = 100000000; /* between two records about processes that the breaker spared */

/*
 * A breach: what is broken, by which watches' rules, in one number, so that functions can be global (verified once, not
 * once per caller and state): from the lowest bit on, slots that kill for it, slots that only say so, and the first
 * reason of each. 0: nothing is broken.
 */
enum {
	BREACH_WOULD = 24,
	BREACH_KILL_REASON = 48,
	BREACH_WOULD_REASON = 52,
	BREACH_SLOTS = (1 << KW_WATCHES) - 1,
	BREACH_REASON = 15,
};

/* Slots whose breach of that kind is acted on. */
static __always_inline uint64_t enforced_for(uint32_t reason)
{
	return control.enforced[reason - KW_REASON_CHILDREN];
}

static __always_inline uint64_t breach_add(uint64_t breach, uint64_t slots, uint32_t reason)
{
	uint64_t kill, would;

	slots &= enforced_for(reason);
	kill = slots & control.killing & BREACH_SLOTS;
	would = slots & ~kill & BREACH_SLOTS;
	if (kill && !(breach & BREACH_SLOTS))
		breach |= (uint64_t)reason << BREACH_KILL_REASON;
	if (would && !(breach >> BREACH_WOULD & BREACH_SLOTS))
		breach |= (uint64_t)reason << BREACH_WOULD_REASON;
	return breach | kill | would << BREACH_WOULD;
}

/*
 * One more within a minute; returns how many that makes. A minute begins with the first after the last one's end, so
 * that one word holds all: more than so many in any 60 s may pass, but nobody is counted out who is not one too many in
 * the 60 s before him.
 */
__noinline uint32_t window_add(uint64_t *cell, uint64_t now_ns)
{
	uint64_t now = now_ns >> MINUTE_UNIT_BITS;

	if (!cell) /* what the verifier wants to see */
		return 0;
	for (int i = 0; i < WINDOW_RACES; i++) {
		uint64_t seen = *(volatile uint64_t *)cell;
		uint64_t next = seen + 1;

		if (!seen || now >= (seen >> KW_PACKED_BITS) + MINUTE_UNITS)
			next = now << KW_PACKED_BITS | 1;
		if (__sync_val_compare_and_swap(cell, seen, next) == seen)
			return next & KW_PACKED_MASK;
	}
	return (__sync_fetch_and_add(cell, 1) + 1) & KW_PACKED_MASK;
}

/* May somebody be killed now? Counts him, and trips the breaker. */
static __always_inline bool breaker_closed(uint64_t now_ns)
{
	if (control.stopped & KW_STOP_BREAKER)
		return false;
	if (window_add(&control.kills, now_ns) <= control.max_kills)
		return true;
	__sync_fetch_and_or(&control.stopped, KW_STOP_BREAKER);
	return false;
}

__noinline int enforced_emit(const struct kw_kin *row, uint64_t task_address, uint64_t breach, uint32_t action)
{
	const struct task_struct *task = (const struct task_struct *)task_address;
	struct kw_enforced *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	uint64_t now_ns = bpf_ktime_get_boot_ns();

	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	if (!row) { /* what the verifier wants to see */
		bpf_ringbuf_discard(record, 0);
		return 0;
	}
	header_fill(&record->header, sizeof(*record), KW_ENFORCED, KW_HAS_ROOT | KW_HAS_CREDENTIALS, now_ns, row);
	id_fill(&record->process, BPF_CORE_READ(task, tgid), row->start_ns);
	id_fill(&record->root, row->root_pid, row->root_start_ns);
	if (action == KW_ACTION_WOULD) {
		record->slots = breach >> BREACH_WOULD & BREACH_SLOTS;
		record->reason = breach >> BREACH_WOULD_REASON & BREACH_REASON;
	} else {
		record->slots = breach & BREACH_SLOTS;
		record->reason = breach >> BREACH_KILL_REASON & BREACH_REASON;
	}
	record->depth = row->depth;
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	record->action = action;
	record->reserved = 0;
	comm_fill(record->comm, task);
	submit(record, now_ns, true, 0);
	return 0;
}

/* What comes of a breach: an action to take, and counts. 0: nothing, and nobody is to be told. */
__noinline uint32_t breach_decide(uint64_t breach)
{
	uint64_t kill = breach & BREACH_SLOTS, would = breach >> BREACH_WOULD & BREACH_SLOTS;
	uint64_t now_ns;

	if (control.stopped & KW_STOP_ORPHANED)
		return 0;
	if (would)
		count(would, CELL_WOULD_ENFORCE, 1);
	if (!kill)
		return would ? KW_ACTION_WOULD : 0;
	now_ns = bpf_ktime_get_boot_ns();
	if (breaker_closed(now_ns)) {
		count(kill, CELL_ENFORCED, 1);
		return KW_ACTION_KILL;
	}
	count(kill, CELL_WOULD_ENFORCE, 1);
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

/* A descendant's row changes: it was killed before it ran, or it will be when it can be. */
__noinline int row_doom(uint32_t pid, uint64_t start_ns, uint64_t watches, uint32_t killed)
{
	struct kw_kin *known = kin_of(pid, start_ns);

	if (!known)
		return 0;
	if (!killed) {
		__sync_fetch_and_or(&known->fate, KW_FATE_DOOMED);
		return 0;
	}
	/* It takes no room that another is killed for: from here on it is alive for nobody's limit. */
	__sync_fetch_and_or(&known->ended, (uint32_t)watches);
	count(watches, CELL_CHILDREN, -1);
	return 0;
}

/* Of these slots, those whose users are not both of them; real in the lower half, effective in the upper. */
__noinline uint64_t strangers_to(uint64_t slots, uint64_t users)
{
	uint32_t real = users, effective = users >> 32;
	uint64_t right = mask_of(&uids, &real);

	if (effective != real)
		right &= mask_of(&uids, &effective);
	return slots & ~right;
}

/* Is he the one user that most watches expect? Then nothing needs to be looked up. */
static __always_inline bool is_first_user(const struct kw_slot_limits *limits, uint64_t users)
{
	return limits->has_uid && limits->uid == (uint32_t)users && limits->uid == users >> 32;
}

__noinline uint64_t wrong_users(uint64_t slots, uint64_t users)
{
	uint64_t wrong = control.nothing;

	for (uint32_t slot = 0; slot < KW_WATCHES && slots; slot++, slots >>= 1)
		if (slots & 1 && !is_first_user(&control.limits[slot & (KW_SLOTS - 1)], users))
			wrong |= 1ULL << slot ^ control.nothing;
	return wrong ? strangers_to(wrong, users) : 0;
}

static __always_inline uint64_t users_of(const struct task_struct *task)
{
	const struct cred *cred = task->cred;

	return (uint64_t)cred->euid.val << 32 | cred->uid.val;
}

/*
 * What a fork breaks; `over`: slots that have more children than their limit. One loop for all that stands with the
 * limits, and all that is done about a breach behind it: what a fork pays for is the lines of code and data it meets.
 */
__noinline uint64_t fork_breach(uint64_t slots, uint64_t over, uint64_t users, uint32_t depth, uint64_t start_ns)
{
	uint64_t deep = enforced_for(KW_REASON_DEPTH) & slots;
	uint64_t counted = enforced_for(KW_REASON_RATE) & slots;
	uint64_t owned = enforced_for(KW_REASON_UID) & slots;
	uint64_t left = deep | counted | owned, too_deep = control.nothing, too_many = control.nothing,
		 wrong = control.nothing, breach;

	for (uint32_t slot = 0; slot < KW_WATCHES && left; slot++, left >>= 1) {
		const struct kw_slot_limits *limits = &control.limits[slot & (KW_SLOTS - 1)];
		uint64_t bit = 1ULL << slot;
		uint32_t key = slot;
		struct kw_counters_row *cells;

		if (!(left & 1))
			continue;
		if ((deep & bit) && depth > limits->depth)
			too_deep |= bit ^ control.nothing; /* not a bit that the verifier knows: states merge */
		if ((owned & bit) && !is_first_user(limits, users))
			wrong |= bit ^ control.nothing;
		if (!(counted & bit))
			continue;
		cells = bpf_map_lookup_elem(&counters, &key);
		if (cells && window_add(&cells->rate, start_ns) > limits->rate)
			too_many |= bit ^ control.nothing;
	}
	over &= slots;
	if (!(over | too_deep | too_many | wrong))
		return 0;
	breach = breach_add(0, over, KW_REASON_CHILDREN);
	breach = breach_add(breach, too_deep, KW_REASON_DEPTH);
	breach = breach_add(breach, too_many, KW_REASON_RATE);
	return breach_add(breach, strangers_to(wrong, users), KW_REASON_UID);
}

__noinline uint64_t exec_breach(uint64_t slots, uint64_t judgement, uint64_t users)
{
	uint64_t breach = 0, owned = slots & enforced_for(KW_REASON_UID);
	uint32_t flags = judgement >> JUDGEMENT_FLAGS;

	if (slots & (uint32_t)judgement)
		breach = breach_add(breach, slots & (uint32_t)judgement, KW_REASON_EXECUTABLE);
	if (flags & KW_MEMFD)
		breach = breach_add(breach, slots, KW_REASON_MEMFD);
	if (flags & KW_DELETED)
		breach = breach_add(breach, slots, KW_REASON_DELETED);
	if (flags & KW_TEMPORARY)
		breach = breach_add(breach, slots, KW_REASON_TEMPORARY);
	if (owned)
		breach = breach_add(breach, wrong_users(owned, users), KW_REASON_UID);
	return breach;
}

/* Act on what a child's fork breaks, before the child has run. */
static __noinline int fork_act(struct task_struct *child, const struct kw_kin *row, uint64_t breach)
{
	uint32_t action = breach_decide(breach);

	if (action == KW_ACTION_KILL) {
		bool killed = child_kill(child);

		row_doom(child->tgid, row->start_ns, row->watches, killed);
		if (!killed)
			action = KW_ACTION_DELEGATE;
	}
	if (action) /* as a number: the child itself */
		enforced_emit(row, (uint64_t)BPF_CORE_READ(child, group_leader), breach, action);
	return 0;
}

/* A child of a watch that enforces. */
static __always_inline void fork_enforce(struct task_struct *child, const struct kw_kin *row, uint64_t over)
{
	uint64_t breach =
	    fork_breach(control.enforcing & row->watches, over, users_of(child), row->depth, row->start_ns);

	if (breach)
		fork_act(child, row, breach);
}

/* There was no room for the row of a child. */
static __always_inline void untracked_enforce(struct task_struct *child, const struct kw_kin *row)
{
	uint64_t breach = breach_add(0, control.enforcing & row->watches, KW_REASON_UNTRACKED);

	if (breach && !kin_of(child->tgid, row->start_ns)) /* or the task walk was quicker */
		fork_act(child, row, breach);
}

/* The current task has executed an image and not begun it. */
static __always_inline void exec_enforce(struct task_struct *task, const struct kw_kin *row, uint64_t judgement)
{
	uint64_t slots = control.enforcing & row->watches & ~row->roots, breach;
	uint32_t action;

	if (row->fate & KW_FATE_DOOMED && slots & control.killing && !control.stopped) {
		bpf_send_signal(SIGKILL); /* told and counted when it was forked */
		return;
	}
	breach = exec_breach(slots, judgement, users_of(task));
	if (!breach)
		return;
	action = breach_decide(breach);
	if (action == KW_ACTION_KILL && bpf_send_signal(SIGKILL)) {
		row_doom(task->tgid, row->start_ns, row->watches, false);
		action = KW_ACTION_DELEGATE;
	}
	if (action)
		enforced_emit(row, bpf_get_current_task(), breach, action);
}

/* The daemon, perhaps: who enforces for it stops. */
static __noinline int daemon_exit(struct task_struct *task)
{
	if (task->group_leader->start_boottime == control.daemon_start_ns && group_is_dead(task))
		__sync_fetch_and_or(&control.stopped, KW_STOP_ORPHANED);
	return 0;
}

#endif
