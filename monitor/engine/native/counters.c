/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting: who joins a watch, who leaves it, what is lost. Knows nothing of records and lines.
 *
 * Membership counts, not records: a process counts once per watch however often it is told. One that was never told of
 * (its fork was lost) is counted in by the first record that speaks of it.
 */
#include "internal.h"

void kw_peak(struct kw_slot *slot)
{
	struct kw_counters *cells = &slot->counters;

	if (cells->alive > cells->peak)
		cells->peak = cells->alive;
	for (int reader = 0; reader < KW_READERS; reader++)
		if (cells->alive > cells->window_peak[reader])
			cells->window_peak[reader] = cells->alive;
}

/*
 * The process is kin of slot from now on. While the table is full, processes are counted without being kept
 * ("untracked"); an implied one is taken for one of those if there are any.
 */
void kw_join(struct kw_engine *engine, uint32_t slot, const struct kw_process *process, enum joining how)
{
	struct kw_slot *watch = &engine->slots[slot];
	struct kw_counters *cells = &watch->counters;
	bool root = process->roots & slot_bit(slot);

	if (how >= JOIN_IMPLIED && watch->untracked[root]) {
		watch->untracked[root]--;
		if (watch->stale[root])
			watch->stale[root]--;
	} else if (root) {
		cells->roots++;
		cells->root_starts++;
	} else {
		cells->alive++;
		if (how == JOIN_ADOPTED)
			cells->adopted++;
		else
			cells->spawned++;
	}
	if (process->flags & PROCESS_UNTRACKED)
		watch->untracked[root]++;
	if (!root && how != JOIN_SYNCED)
		kw_peak(watch);
}

/* The process is no longer kin of slot, because it ended or because it was forgotten. */
void kw_leave(struct kw_engine *engine, uint32_t slot, struct kw_process *process, bool ended)
{
	struct kw_slot *watch = &engine->slots[slot];
	bool root = process->roots & slot_bit(slot);

	if (process->breaches != NONE)
		kw_breaks_no_more(engine, slot, process, (1U << RULES) - 1);
	if (root) {
		watch->counters.roots--;
		watch->counters.root_exits += ended;
	} else {
		watch->counters.alive--;
		watch->counters.exits += ended;
	}
	if ((process->flags & PROCESS_UNTRACKED) && watch->untracked[root])
		watch->untracked[root]--;
}

/* Details are lost: counted, and told in a line at the next take. */
void kw_lose(struct kw_engine *engine, enum kw_stage stage, uint64_t count)
{
	engine->losses[stage] += count;
	engine->unsaid[stage] += count;
}
