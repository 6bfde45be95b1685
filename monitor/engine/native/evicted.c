/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a bounded set of distinct things had to drop: known by hash, so that a window can still count it. Knows neither
 * the set nor the things.
 */
#include "internal.h"

uint64_t kw_hash(const uint8_t *bytes, uint64_t length)
{
	uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

	for (uint64_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3;
	return hash;
}

/* Something had to go, or found no room: noted with its last mark; beyond EVICTED_KEPT the oldest is forgotten. */
void kw_evicted_note(struct kw_evictions *evictions, uint64_t hash, uint64_t mark)
{
	struct kw_evicted *place = &evictions->cells[0];

	for (uint32_t i = 0; i < evictions->count; i++) {
		struct kw_evicted *cell = &evictions->cells[i];

		if (cell->hash == hash) {
			cell->mark = mark;
			return;
		}
		if (cell->mark < place->mark)
			place = cell;
	}
	if (evictions->count == EVICTED_KEPT) {
		evictions->forgotten++;
		evictions->forgotten_mark = place->mark;
	} else {
		place = &evictions->cells[evictions->count++];
	}
	*place = (struct kw_evicted){hash, mark};
}

/* It came back. */
void kw_evicted_remove(struct kw_evictions *evictions, uint64_t hash)
{
	for (uint32_t i = 0; i < evictions->count; i++) {
		if (evictions->cells[i].hash == hash) {
			evictions->cells[i] = evictions->cells[--evictions->count];
			return;
		}
	}
}

/* Distinct things used after mark that are not in the set. Exact for EVICTED_KEPT of them, an upper bound beyond (one
 * that was forgotten and came again counts twice). */
uint64_t kw_evicted_since(const struct kw_evictions *evictions, uint64_t mark)
{
	uint64_t missed = mark < evictions->forgotten_mark ? evictions->forgotten : 0;

	for (uint32_t i = 0; i < evictions->count; i++)
		missed += evictions->cells[i].mark > mark;
	return missed;
}
