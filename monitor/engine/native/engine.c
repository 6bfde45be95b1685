/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's lifetime, its watches, and the batches it hands out. Knows nothing of what a record means.
 */
#include "internal.h"

#include <stdlib.h>

enum { PLENTY_BYTES = 4 << 20 }; /* a buffer that grew beyond this in a storm is given back in calm */

struct kw_engine *kw_engine_new(uint32_t max_processes)
{
	struct kw_engine *engine = calloc(1, sizeof(*engine));

	if (!engine)
		return NULL;
	if (kw_table_new(&engine->table, max_processes ? max_processes : 1) || kw_paths_new(&engine->paths) ||
	    kw_sockets_new(&engine->sockets) || kw_names_new(&engine->names)) {
		kw_table_free(&engine->table);
		kw_paths_free(&engine->paths);
		kw_sockets_free(&engine->sockets);
		free(engine);
		return NULL;
	}
	engine->breaker.most = -1;
	pthread_mutex_init(&engine->lock, NULL);
	return engine;
}

/* What a slot has of its own; its executables' paths are released by kw_exes_clear(). */
static void slot_free(struct kw_slot *watch)
{
	free(watch->exes);
	free(watch->remotes);
	free(watch->ports);
	free(watch->net.destinations);
	free(watch->net.names);
	free(watch->net.ports);
	memset(watch, 0, sizeof(*watch));
}

void kw_engine_free(struct kw_engine *engine)
{
	if (!engine)
		return;
	for (uint32_t left = (uint32_t)engine->ruled; left; left &= left - 1)
		kw_rules_end(engine, lowest_slot(left));
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		slot_free(&engine->slots[slot]);
	for (int i = 0; i < 2; i++) {
		free(engine->lines[i].data);
		free(engine->records[i].data);
	}
	kw_table_free(&engine->table);
	kw_paths_free(&engine->paths);
	kw_sockets_free(&engine->sockets);
	kw_names_free(&engine->names);
	free(engine->breaches.cells);
	pthread_mutex_destroy(&engine->lock);
	free(engine);
}

/* Names go into lines and metric names as they are, so only what needs no escape anywhere is a name. */
static bool legal(const char *name)
{
	size_t length = strnlen(name, KW_NAME_BYTES + 1);

	if (!length || length > KW_NAME_BYTES)
		return false;
	for (size_t i = 0; i < length; i++) {
		char c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
		      c == '-'))
			return false;
	}
	return true;
}

static int slot_define(struct kw_engine *engine, uint32_t slot)
{
	struct kw_slot *watch = &engine->slots[slot];

	if (engine->defined & slot_bit(slot))
		return 0;
	memset(watch, 0, sizeof(*watch));
	watch->limit = -1;
	watch->exes = calloc(1, sizeof(*watch->exes));
	watch->remotes = calloc(1, sizeof(*watch->remotes));
	watch->ports = calloc(1, sizeof(*watch->ports));
	if (!watch->exes || !watch->remotes || !watch->ports) {
		slot_free(watch);
		return -ENOMEM;
	}
	engine->defined |= slot_bit(slot);
	return 0;
}

int kw_engine_watch(struct kw_engine *engine, uint32_t slot, const char *name, int64_t child_limit)
{
	struct kw_slot *watch;
	int error;

	if (slot >= KW_SLOTS || !legal(name) || child_limit < -1)
		return -EINVAL;
	watch = &engine->slots[slot];
	pthread_mutex_lock(&engine->lock);
	error = slot_define(engine, slot);
	if (!error) {
		watch->name_length = (uint32_t)strnlen(name, KW_NAME_BYTES);
		memcpy(watch->name, name, watch->name_length);
		kw_limit(engine, slot, child_limit);
	}
	pthread_mutex_unlock(&engine->lock);
	return error;
}

int kw_engine_unwatch(struct kw_engine *engine, uint32_t slot)
{
	struct kw_table *table = &engine->table;

	if (slot >= KW_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	if (!(engine->defined & slot_bit(slot))) {
		pthread_mutex_unlock(&engine->lock);
		return -ENOENT;
	}
	kw_limit(engine, slot, -1);
	kw_expect_nothing(engine, slot);
	kw_rules_end(engine, slot);
	kw_sockets_unwatch(engine, slot);
	for (uint32_t i = 0; i < table->used; i++) {
		struct kw_process *process = &table->processes[i];

		process->watches &= ~slot_bit(slot);
		process->roots &= ~slot_bit(slot);
		process->announced &= ~slot_bit(slot);
		if (process->flags)
			kw_descent_forget(engine, process, slot_bit(slot));
		if ((process->flags & PROCESS_LIVE) && !process->watches)
			kw_process_drop(engine, process);
	}
	kw_exes_clear(engine, slot);
	slot_free(&engine->slots[slot]);
	engine->defined &= ~slot_bit(slot);
	pthread_mutex_unlock(&engine->lock);
	return 0;
}

/* One lost line for each of `stages` that has losses nobody was told of. */
void kw_say_losses(struct kw_engine *engine, uint64_t stages)
{
	for (uint32_t stage = 0; stage < KW_STAGES; stage++) {
		if (!(stages >> stage & 1) || !engine->unsaid[stage])
			continue;
		if (kw_line_lost(engine, (enum kw_stage)stage, engine->unsaid[stage]))
			engine->unsaid[stage] = 0;
	}
}

void kw_keep_record(struct kw_engine *engine, const uint8_t *bytes, uint64_t length)
{
	struct kw_out *out = &engine->records[engine->filling];
	char *at = kw_out_reserve(out, length, BATCH_BYTES);

	if (!at) {
		kw_lose(engine, KW_SINK_FULL, 1);
		return;
	}
	memcpy(at, bytes, length);
	out->length += length;
}

static void out_empty(struct kw_out *out)
{
	if (out->capacity > PLENTY_BYTES && out->length < out->capacity / 4) {
		free(out->data);
		out->data = NULL;
		out->capacity = 0;
	}
	out->length = out->lines = out->alarms = out->clears = 0;
}

void kw_engine_take(struct kw_engine *engine, struct kw_batch *batch)
{
	const struct kw_out *lines, *records;

	pthread_mutex_lock(&engine->lock);
	kw_say_losses(engine, ~(1ULL << KW_SINK_FULL));
	lines = &engine->lines[engine->filling];
	records = &engine->records[engine->filling];
	*batch = (struct kw_batch){
	    .lines = lines->data ? lines->data : "",
	    .lines_bytes = lines->length,
	    .lines_count = lines->lines,
	    .records = records->data ? (const uint8_t *)records->data : (const uint8_t *)"",
	    .records_bytes = records->length,
	    .alarms = lines->alarms,
	    .clears = lines->clears,
	    .hurried = engine->hurried,
	};
	engine->filling = !engine->filling;
	out_empty(&engine->lines[engine->filling]);
	out_empty(&engine->records[engine->filling]);
	kw_say_losses(engine, 1ULL << KW_SINK_FULL); /* in the next batch: this one had no room */
	pthread_mutex_unlock(&engine->lock);
}

void kw_engine_record(struct kw_engine *engine, int on)
{
	pthread_mutex_lock(&engine->lock);
	engine->recording = on;
	pthread_mutex_unlock(&engine->lock);
}

int kw_engine_counters(struct kw_engine *engine, uint32_t slot, int reader, struct kw_counters *counters)
{
	int error = 0;

	if (slot >= KW_SLOTS || reader >= KW_READERS)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	if (engine->defined & slot_bit(slot)) {
		struct kw_counters *cells = &engine->slots[slot].counters;

		*counters = *cells;
		if (reader >= 0)
			cells->window_peak[reader] = cells->alive;
	} else {
		error = -ENOENT;
	}
	pthread_mutex_unlock(&engine->lock);
	return error;
}

void kw_engine_losses(struct kw_engine *engine, uint64_t *losses)
{
	pthread_mutex_lock(&engine->lock);
	memcpy(losses, engine->losses, sizeof(engine->losses));
	pthread_mutex_unlock(&engine->lock);
}
