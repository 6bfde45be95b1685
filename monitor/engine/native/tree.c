/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The living as JSON, for `tree` and `status`. Reads the table, changes nothing in it.
 */
#include "internal.h"

#include <stdlib.h>

enum { TREE_ROOM = 512, TREE_WATCH_ROOM = 256 };

static char *put_watches(const struct kw_engine *engine, char *at, const struct kw_process *process)
{
	at = PUT(at, ",\"watches\":[");
	for (uint64_t left = process->watches; left; left &= left - 1) {
		uint32_t slot = lowest_slot(left);
		const struct kw_descent *descent = kw_descent_of(engine, process, slot);

		at = PUT(at, "{\"watch\":\"");
		at = kw_put(at, engine->slots[slot].name, engine->slots[slot].name_length);
		*at++ = '"';
		if (process->roots & slot_bit(slot))
			at = PUT(at, ",\"root\":true");
		if (descent) {
			at = PUT(at, ",\"depth\":");
			at = kw_put_number(at, descent->depth);
			at = PUT(at, ",\"root_process_id\":");
			at = kw_put_process_id(at, descent->root_pid, descent->root_start_ns);
		}
		*at++ = '}';
		if (left & (left - 1))
			*at++ = ',';
	}
	*at++ = ']';
	return at;
}

static bool tree_line(const struct kw_engine *engine, struct kw_out *out, const struct kw_process *process)
{
	const struct kw_path *path = kw_path_at(engine, process->path);
	uint64_t room = TREE_ROOM + (uint64_t)__builtin_popcountll(process->watches) * TREE_WATCH_ROOM;
	char *at = kw_out_reserve(out, room + (path ? (uint64_t)path->length * STRING_GROWTH : 0), UINT64_MAX);
	bool lossy = false;

	if (!at)
		return false;
	at = PUT(at, "{\"pid\":");
	at = kw_put_number(at, process->pid);
	at = PUT(at, ",\"process_id\":");
	at = kw_put_process_id(at, process->pid, process->start_ns);
	if (process->flags & PROCESS_HAS_PARENT) {
		at = PUT(at, ",\"parent_process_id\":");
		at = kw_put_process_id(at, process->parent_pid, process->parent_start_ns);
	}
	at = PUT(at, ",\"comm\":");
	at = kw_put_string(at, process->comm, kw_comm_length(process->comm), &lossy);
	if (path) {
		at = PUT(at, ",\"exe\":");
		at = kw_put_string(at, (const uint8_t *)path->text, path->length, &lossy);
	}
	if (process->flags & PROCESS_HAS_UID) {
		at = PUT(at, ",\"uid\":");
		at = kw_put_number(at, process->uid);
	}
	at = put_watches(engine, at, process);
	if (lossy)
		at = PUT(at, ",\"lossy\":true");
	at = PUT(at, "}\n");
	out->length = (uint64_t)(at - out->data);
	return true;
}

/* The processes come oldest first; where start times are ticks a child may come before its parent, so every process
 * first lets its unwritten live ancestors go. table.order doubles as the list of what is unwritten through `written`.
 */
static bool tree_write(struct kw_engine *engine, struct kw_out *out, uint8_t *written)
{
	struct kw_table *table = &engine->table;
	uint32_t count = kw_table_order(engine);

	for (uint32_t i = 0; i < count; i++) {
		struct kw_process *process = &table->processes[table->order[i] - 1];
		uint32_t depth = 0;

		while (process && (process->flags & PROCESS_LIVE) && !written[process - table->processes]) {
			written[process - table->processes] = 1;
			table->stack[depth++] = (uint32_t)(process - table->processes);
			process = kw_process_parent(engine, process);
		}
		while (depth)
			if (!tree_line(engine, out, &table->processes[table->stack[--depth]]))
				return false;
	}
	return true;
}

int64_t kw_engine_tree(struct kw_engine *engine, char *out, uint64_t capacity)
{
	struct kw_out tree = {0};
	int64_t result = -ENOMEM;
	uint8_t *written;

	pthread_mutex_lock(&engine->lock);
	written = calloc((size_t)engine->table.used + 1, 1);
	if (written && tree_write(engine, &tree, written)) {
		result = (int64_t)tree.length;
		if (tree.length && tree.length <= capacity)
			memcpy(out, tree.data, tree.length);
	}
	pthread_mutex_unlock(&engine->lock);
	free(written);
	free(tree.data);
	return result;
}
