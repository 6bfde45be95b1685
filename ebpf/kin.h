/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Who is kin, and the counters that follow: find, add, remove. Knows nothing of hooks or records.
 */
#ifndef KINWATCH_KIN_H
#define KINWATCH_KIN_H

#include "emit.h"
#include "quirk.h"

/* A cheap no for almost everybody. A yes means: ask the hash. */
static __always_inline bool may_be_kin(uint32_t pid)
{
	uint32_t word = pid >> 6;
	const uint64_t *bits = bpf_map_lookup_elem(&filter, &word);

	return !bits || (*bits >> (pid & 63)) & 1;
}

static __always_inline void filter_add(uint32_t pid)
{
	uint32_t word = pid >> 6;
	uint64_t *bits = bpf_map_lookup_elem(&filter, &word);

	if (bits)
		__sync_fetch_and_or(bits, 1ULL << (pid & 63));
}

static __always_inline void filter_remove(uint32_t pid)
{
	uint32_t word = pid >> 6;
	uint64_t *bits = bpf_map_lookup_elem(&filter, &word);

	if (bits)
		__sync_fetch_and_and(bits, ~(1ULL << (pid & 63)));
}

/* The row of a process, NULL for a stranger. The start time tells a reused pid from the process that had it before. */
static __always_inline struct kw_kin *kin_of(uint32_t pid, uint64_t start_ns)
{
	struct kw_kin *row;

	if (!may_be_kin(pid))
		return NULL;
	row = bpf_map_lookup_elem(&kin, &pid);
	return row && row->start_ns == start_ns ? row : NULL;
}

/* What happened, as the cells it moves: added without a branch, for the verifier's sake (and the branch predictor's). */
enum kw_count {
	ALIVE_UP = 1,
	ALIVE_DOWN = 2,
	SPAWNED_UP = 4,
	ADOPTED_UP = 8,
	EXECS_UP = 16,
	EXITS_UP = 32,
	ROOT_STARTED = 64,
	ROOT_EXITED = 128,

	COUNT_FORK = ALIVE_UP | SPAWNED_UP,
	COUNT_ADOPT = ALIVE_UP | ADOPTED_UP,
	COUNT_EXIT = ALIVE_DOWN | EXITS_UP,
};

#define MOVED(what, bit) (((what) & (bit)) / (bit))

/* Both for numbers below 2^63. */
static __always_inline uint64_t larger(uint64_t a, uint64_t b)
{
	uint64_t more = a - b;

	return b + (more & ~((int64_t)more >> 63));
}

static __always_inline uint64_t is_zero(uint64_t a)
{
	return ((a - 1) & ~a) >> 63;
}

/* Not 0: this pushed the watch over its limit of children. */
static __always_inline uint32_t count_one(uint32_t slot, uint64_t what)
{
	struct kw_counters_row *row = bpf_map_lookup_elem(&counters, &slot);
	struct kw_counters *cells;
	uint64_t alive;

	if (!row)
		return 0;
	cells = &row->cells;
	bpf_spin_lock(&row->lock);
	alive = cells->alive + MOVED(what, ALIVE_UP) - MOVED(what, ALIVE_DOWN);
	cells->alive = alive;
	cells->spawned += MOVED(what, SPAWNED_UP);
	cells->adopted += MOVED(what, ADOPTED_UP);
	cells->execs += MOVED(what, EXECS_UP);
	cells->exits += MOVED(what, EXITS_UP);
	cells->roots += MOVED(what, ROOT_STARTED) - MOVED(what, ROOT_EXITED);
	cells->root_starts += MOVED(what, ROOT_STARTED);
	cells->root_exits += MOVED(what, ROOT_EXITED);
	cells->peak = larger(alive, cells->peak);
	for (int reader = 0; reader < KW_READERS; reader++)
		cells->window_peak[reader] = larger(alive, cells->window_peak[reader]);
	bpf_spin_unlock(&row->lock);
	barrier_var(slot); /* its address was taken: the verifier has forgotten the bound, clang has not */
	slot &= KW_SLOTS - 1;
	return what & (control.limited >> slot) & is_zero(alive ^ (control.limits[slot] + 1)) & ALIVE_UP;
}

/*
 * Count one thing for each watch in the mask. Not 0: a watch went over its limit of children. A global function, as those
 * in match.h: the verifier looks at it once, and not once per caller and state.
 */
__noinline uint32_t count(uint64_t watches, uint32_t what)
{
	uint32_t breach = control.nothing;

	for (uint32_t slot = 0; slot < KW_SLOTS && watches; slot++, watches >>= 1)
		if (watches & 1)
			breach |= count_one(slot, what);
	return breach;
}

/* A new row. False: the map is full, and that is counted. Replaces the row of an earlier process with this pid, whose exit
 * must have been missed: it is counted out. */
static __always_inline bool kin_add(uint32_t pid, const struct kw_kin *row)
{
	long error = bpf_map_update_elem(&kin, &pid, row, BPF_NOEXIST);

	if (error == -EEXIST) {
		struct kw_kin *old = bpf_map_lookup_elem(&kin, &pid);

		if (old && old->start_ns == row->start_ns)
			return false; /* another hook was quicker: the process is counted already */
		if (old) {
			lose(KW_HOOK_MISSED);
			count(old->watches & ~old->roots, COUNT_EXIT);
			count(old->roots, ROOT_EXITED);
		}
		if (bpf_map_update_elem(&kin, &pid, row, BPF_ANY) == 0)
			return true;
		lose(KW_TABLE_FULL);
		return false;
	}
	if (error) {
		lose(KW_TABLE_FULL);
		return false;
	}
	filter_add(pid);
	__sync_fetch_and_add(&control.kin, 1);
	return true;
}

/* False: somebody else removed it, and has counted it. */
static __always_inline bool kin_remove(uint32_t pid)
{
	if (bpf_map_delete_elem(&kin, &pid))
		return false;
	filter_remove(pid);
	__sync_fetch_and_add(&control.kin, -1);
	return true;
}

#endif
