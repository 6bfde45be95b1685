/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine has to know before it is told of records that an earlier daemon left in the ring: who was kin when
 * the oldest of them was written. Refuses to read the records for what happened: drain.c does.
 *
 * The kernel's table says who is kin now. Who began before the oldest record and is kin now was kin then; so was who
 * began before it and ends in one of the records. With these known, a limit is judged at each record as it was when the
 * record was new, and an alarm that the earlier daemon took from the ring and could not deliver is raised again.
 */
#define _GNU_SOURCE
#include <string.h>

#include "loader_parts.h"

struct past {
	struct kw_engine *engine;
	uint64_t begun_ns;  /* time of the oldest record, 0: there is none */
	uint64_t adopted;   /* watches that took in what ran while these records were written: nobody was kin before */
	uint64_t mentioned; /* watches that a record speaks of */
};

static void past_survey(struct past *past, struct ring ring)
{
	const struct kw_header *header;
	uint32_t size;

	while ((header = ring_next(&ring, &size))) {
		if (size < sizeof(*header))
			continue;
		if (!past->begun_ns || header->time_ns < past->begun_ns)
			past->begun_ns = header->time_ns;
		past->mentioned |= header->watches;
		if (size >= sizeof(struct kw_image) && (header->kind == KW_ADOPT || header->kind == KW_EXEC)) {
			uint64_t fresh = ((const struct kw_image *)header)->fresh;

			past->mentioned |= fresh;
			if (header->kind == KW_ADOPT)
				past->adopted |= fresh & ~header->roots;
		} else if (size >= sizeof(struct kw_forget) && header->kind == KW_FORGET) {
			past->mentioned |= ((const struct kw_forget *)header)->gone;
		}
	}
}

static void past_tell(struct past *past, struct kw_sync row)
{
	if (row.process.start_ns >= past->begun_ns)
		return;
	row.header.size = sizeof(row);
	row.header.kind = KW_SYNC;
	row.header.time_ns = past->begun_ns;
	row.header.watches &= ~past->adopted;
	row.header.roots &= row.header.watches;
	row.phase = 1;
	if (row.header.watches)
		kw_engine_ingest(past->engine, (const uint8_t *)&row, sizeof(row));
}

static int past_rows(void *context, const uint8_t *bytes, uint64_t length)
{
	for (; length >= sizeof(struct kw_sync); bytes += sizeof(struct kw_sync), length -= sizeof(struct kw_sync)) {
		struct kw_sync row;

		memcpy(&row, bytes, sizeof(row));
		past_tell(context, row);
	}
	return 0;
}

static void past_ended(struct past *past, struct ring ring)
{
	const struct kw_exit *record;
	uint32_t size;

	while ((record = ring_next(&ring, &size))) {
		struct kw_sync row = {0};

		if (size < sizeof(*record) || record->header.kind != KW_EXIT || record->header.flags & KW_UNDECIDED)
			continue;
		row.header = record->header;
		row.header.flags &= KW_HAS_ROOT | KW_HAS_CREDENTIALS;
		row.process = record->process;
		row.root = record->root;
		row.depth = record->depth;
		row.uid = record->uid;
		memcpy(row.comm, record->comm, sizeof(row.comm));
		past_tell(past, row);
	}
}

int64_t kw_loader_resume(struct kw_loader *loader, struct kw_engine *engine)
{
	struct past past = {.engine = engine};
	struct ring old = {0};
	struct kw_sync edge = {.header = {.size = sizeof(edge), .kind = KW_SYNC}};
	int64_t result = loader->overlap ? swap_old_ring(loader, &old) : 0;

	if (!result) {
		past_survey(&past, loader->ring);
		if (old.data) {
			past.adopted = 0; /* in our own ring: of those whom the old programs knew nobody is adopted */
			past_survey(&past, old);
		}
	}
	if (!result && past.begun_ns) {
		drain_tell_clock(loader, engine);
		edge.header.time_ns = past.begun_ns;
		kw_engine_ingest(engine, (const uint8_t *)&edge, sizeof(edge));
		result = iterator_run(loader->set.links[LINK_DUMP], past_rows, &past);
		past_ended(&past, loader->ring);
		if (old.data)
			past_ended(&past, old);
		edge.phase = 2;
		kw_engine_ingest(engine, (const uint8_t *)&edge, sizeof(edge));
		if (result < 0)
			loader_fail(loader, result, "cannot read the lineage map: %s", strerror(-result));
	}
	ring_close(&old);
	return result < 0 ? result : (int64_t)past.mentioned;
}
