/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Who is kin, and the counters that follow: find, add, remove, count. Knows nothing of hooks or records.
 *
 * The number of kin alive (control.activity) is moved by the callers: with the record where there is one.
 */
#ifndef KINWATCH_KIN_H
#define KINWATCH_KIN_H

#include "emit.h"
#include "quirk.h"

static __always_inline uint32_t row_index(uint32_t pid)
{
	return pid & control.row_mask;
}

/* The row of a pid, NULL for a stranger's. One load for almost everybody. */
static __always_inline struct kw_kin *row_of(uint32_t pid)
{
	uint32_t index = row_index(pid);
	const uint64_t *tag = bpf_map_lookup_elem(&tags, &index);

	if (tag && *(volatile const uint64_t *)tag == pid)
		return bpf_map_lookup_elem(&rows, &index);
	if (control.overflowed)
		return bpf_map_lookup_elem(&overflow, &pid);
	return NULL;
}

/* The same, for one process: the start time tells a reused pid from the process that had it before. */
static __always_inline struct kw_kin *kin_of(uint32_t pid, uint64_t start_ns)
{
	struct kw_kin *row = row_of(pid);

	return row && row->start_ns == start_ns ? row : NULL;
}

/* Lift a peak. The loop ends because every lost race means that somebody else lifted it. */
static __always_inline void raise(uint64_t *peak, uint64_t value)
{
	for (int i = 0; i < 8; i++) {
		uint64_t seen = *(volatile uint64_t *)peak;

		if (value <= seen || __sync_val_compare_and_swap(peak, seen, value) == seen)
			return;
	}
}

/*
 * Functions that are not static are verified once, not once per caller and state; those here and in match.h are made so
 * for the time it takes to load.
 */
__noinline int raise_peaks(uint32_t slot, uint64_t alive)
{
	struct kw_counters_row *row = bpf_map_lookup_elem(&counters, &slot);

	if (!row)
		return 0;
	raise(&row->peak, alive);
	for (int reader = 0; reader < KW_READERS; reader++)
		raise(&row->window_peak[reader], alive);
	return 0;
}

enum {
	CHILD_ALIVE = 1,
	CHILD_FORKED = (1 << KW_PACKED_BITS) + 1,
};

enum { JUST_OVER = 32 }; /* of what count_children() returns, from this bit on */

/* One more descendant alive, in each watch of the mask. Returns the slots that are over their limit of children, and
 * those that are over it by one: of these the reader should hear at once. */
__noinline uint64_t count_children(uint64_t watches, uint32_t what)
{
	uint64_t over = control.nothing;

	for (uint32_t slot = 0; slot < KW_SLOTS && watches; slot++, watches >>= 1) {
		uint32_t key = slot;
		struct kw_counters_row *row;
		uint64_t alive, lower, spare;

		if (!(watches & 1))
			continue;
		row = bpf_map_lookup_elem(&counters, &key);
		if (!row)
			return 0;
		alive = (__sync_fetch_and_add(&row->children, (uint64_t)what) + 1) & KW_PACKED_MASK;
		spare = control.limits[slot & (KW_SLOTS - 1)].children - alive;
		lower = row->peak - alive;
		for (int reader = 0; reader < KW_READERS; reader++)
			lower |= row->window_peak[reader] - alive;
		if (lower >> 63) /* one of them is: rare, and one branch for all five */
			raise_peaks(slot, alive);
		if (spare >> 63)
			over |= (1 | (uint64_t) !~spare << JUST_OVER) << slot;
	}
	return over;
}

/* The cell of a counters row, as the index of its word, and by how much it moves. */
enum kw_cell {
	CELL_CHILDREN = __builtin_offsetof(struct kw_counters_row, children) / 8,
	CELL_ROOTS = __builtin_offsetof(struct kw_counters_row, roots) / 8,
	CELL_ADOPTED = __builtin_offsetof(struct kw_counters_row, adopted) / 8,
	CELL_EXECS = __builtin_offsetof(struct kw_counters_row, execs) / 8,
	CELL_ENFORCED = __builtin_offsetof(struct kw_counters_row, enforced) / 8,
	CELL_WOULD_ENFORCE = __builtin_offsetof(struct kw_counters_row, would_enforce) / 8,
	CELLS = sizeof(struct kw_counters_row) / 8, /* a power of two */
};

__noinline int count(uint64_t watches, uint32_t cell, int64_t by)
{
	for (uint32_t slot = 0; slot < KW_SLOTS && watches; slot++, watches >>= 1) {
		uint32_t key = slot;
		uint64_t *cells;

		if (!(watches & 1))
			continue;
		cells = bpf_map_lookup_elem(&counters, &key);
		if (!cells)
			return 0;
		__sync_fetch_and_add(&cells[cell & (CELLS - 1)], by);
	}
	return 0;
}

/* The row's process is gone: out of the counts with it. */
static __always_inline void count_out(const struct kw_kin *row)
{
	uint64_t children = row->watches & ~(row->roots | row->ended);

	if (children)
		count(children, CELL_CHILDREN, -1);
	if (row->roots)
		count(row->roots, CELL_ROOTS, -1);
}

/* Where a row goes whose place is taken. */
static __noinline bool overflow_add(uint32_t pid, const struct kw_kin *row)
{
	if (bpf_map_update_elem(&overflow, &pid, row, BPF_NOEXIST))
		return false;
	__sync_fetch_and_add(&control.overflowed, 1);
	return true;
}

/* A new row. False: there are max_kin already, which is counted, or another hook was quicker. */
static __always_inline bool kin_add(uint32_t pid, const struct kw_kin *row)
{
	uint32_t index = row_index(pid);
	uint64_t *tag = bpf_map_lookup_elem(&tags, &index);
	struct kw_kin *place = bpf_map_lookup_elem(&rows, &index);
	uint64_t owner;

	if (!tag || !place)
		return false;
	if (kin_alive() >= control.max_kin)
		goto full;
	owner = __sync_val_compare_and_swap(tag, 0, TAG_BUSY | (uint64_t)pid);
	if (owner == 0) {
		*place = *row;
		__sync_lock_test_and_set(tag, (uint64_t)pid);
		return true;
	}
	if (owner == pid && place->start_ns != row->start_ns) {
		/* The row of an earlier process with this pid, whose exit no hook saw. */
		lose_and_tell(KW_HOOK_MISSED);
		count_out(place);
		__sync_fetch_and_add(&control.activity, -1);
		*place = *row;
		return true;
	}
	if ((uint32_t)(owner & ~TAG_BUSY) == pid)
		return false;
	if (overflow_add(pid, row))
		return true;
full:
	lose_and_tell(KW_TABLE_FULL);
	return false;
}

/* False: somebody else removed it, and has counted it. */
static __always_inline bool kin_remove(uint32_t pid)
{
	uint32_t index = row_index(pid);
	uint64_t *tag = bpf_map_lookup_elem(&tags, &index);

	if (tag && __sync_val_compare_and_swap(tag, (uint64_t)pid, 0) == pid)
		return true;
	if (!control.overflowed || bpf_map_delete_elem(&overflow, &pid))
		return false;
	__sync_fetch_and_add(&control.overflowed, -1);
	return true;
}

#endif
