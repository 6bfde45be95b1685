/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A fork that breaks an expectation is refused (EPERM) before there is a child. For kernels that cannot kill a child
 * before it runs (no bpf_send_signal_task) and have the BPF LSM: loaded nowhere else.
 *
 * Of two processes that fork at the same moment when there is room for one child, both may pass: the hook of fork
 * counts them one after the other and dooms the second (enforce.bpf.h).
 */
#ifndef KINWATCH_DENY_BPF_H
#define KINWATCH_DENY_BPF_H

#include "enforce.bpf.h"
#include <bpf/bpf_tracing.h>

/* Slots that would have more children than their limit, and from bit 32 on those with more forks in this minute. */
__noinline uint64_t full_slots(uint64_t slots, uint64_t now_ns)
{
	uint64_t now = now_ns >> MINUTE_UNIT_BITS, counted = enforced_for(KW_REASON_RATE);
	uint64_t full = control.nothing;

	for (uint32_t slot = 0; slot < KW_WATCHES && slots; slot++, slots >>= 1) {
		const struct kw_slot_limits *limits = &control.limits[slot & (KW_SLOTS - 1)];
		const struct kw_counters_row *cells;
		uint32_t key = slot;

		if (!(slots & 1))
			continue;
		cells = bpf_map_lookup_elem(&counters, &key);
		if (!cells)
			return 0;
		if ((cells->children & KW_PACKED_MASK) >= limits->children)
			full |= 1ULL << slot;
		if (counted >> slot & 1 && now < (cells->rate >> KW_PACKED_BITS) + MINUTE_UNITS &&
		    (cells->rate & KW_PACKED_MASK) >= limits->rate)
			full |= 1ULL << slot << 32;
	}
	return full;
}

/* As fork_breach(), of a child that is not counted yet. */
__noinline uint64_t deny_breach(uint64_t slots, uint64_t users, uint32_t depth)
{
	uint64_t deep = enforced_for(KW_REASON_DEPTH) & slots, full = full_slots(slots, bpf_ktime_get_boot_ns());
	uint64_t breach = breach_add(0, full & slots, KW_REASON_CHILDREN);

	for (uint32_t slot = 0; slot < KW_WATCHES && deep; slot++) {
		if (deep >> slot & 1 && depth > control.limits[slot & (KW_SLOTS - 1)].depth)
			breach = breach_add(breach, 1ULL << slot, KW_REASON_DEPTH);
		deep &= ~(1ULL << slot);
	}
	breach = breach_add(breach, full >> 32, KW_REASON_RATE);
	if (slots & enforced_for(KW_REASON_UID))
		breach = breach_add(breach, wrong_users(slots, users), KW_REASON_UID);
	if (kin_alive() >= control.max_kin)
		breach = breach_add(breach, slots, KW_REASON_UNTRACKED);
	return breach;
}

/* The task is a copy of who forks it: his ids, and his credentials or new ones of the same user. */
SEC("lsm/task_alloc")
int BPF_PROG(on_task_alloc, struct task_struct *task, unsigned long clone_flags, int refused)
{
	uint64_t slots = control.enforcing, breach;
	const struct kw_kin *above;

	if (refused || !(slots & control.killing) || control.stopped || clone_flags & CLONE_THREAD)
		return refused;
	above = kin_of(task->tgid, task->group_leader->start_boottime);
	if (!above)
		return 0;
	slots &= above->watches;
	if (!slots)
		return 0;
	breach = deny_breach(slots, users_of(task), above->depth + 1);
	if (!(breach & BREACH_SLOTS) || !breaker_closed(bpf_ktime_get_boot_ns()))
		return 0; /* the hook of fork sees to it */
	count(breach & BREACH_SLOTS, CELL_ENFORCED, 1);
	count(breach >> BREACH_WOULD & BREACH_SLOTS, CELL_WOULD_ENFORCE, 1);
	enforced_emit(above, (uint64_t)BPF_CORE_READ(task, group_leader), breach, KW_ACTION_DENY);
	return -EPERM;
}

#endif
