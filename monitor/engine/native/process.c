/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lineage table: who is alive, who was, and from which root at which depth. Knows no counters and no lines.
 *
 * All memory is asked for once. Live processes are found by pid; of the dead the last DEAD_KEPT stay findable by pid
 * and start time, so that children can name an ancestor that has gone. Memory never touched costs nothing (calloc).
 */
#define _GNU_SOURCE /* qsort_r */
#include "internal.h"

#include <stdlib.h>

static uint32_t shift_for(uint32_t capacity)
{
	uint32_t shift = 32;

	for (uint64_t chains = 1; chains < capacity && shift > 1; chains *= 2)
		shift--;
	return shift - 1; /* at least twice as many chains as processes, and at least two */
}

static uint32_t chain_of(uint32_t pid, uint32_t shift)
{
	return (uint32_t)(pid * 2654435769U) >> shift; /* Fibonacci hashing: neighbouring pids spread evenly */
}

int kw_table_new(struct kw_table *table, uint32_t capacity)
{
	size_t all = (size_t)capacity + DEAD_KEPT;

	table->capacity = capacity;
	table->live_shift = shift_for(capacity);
	table->dead_shift = shift_for(DEAD_KEPT);
	table->processes = calloc(all, sizeof(*table->processes));
	table->nodes = calloc(all, sizeof(*table->nodes));
	table->live_chains = calloc((size_t)1 << (32 - table->live_shift), sizeof(*table->live_chains));
	table->dead_chains = calloc((size_t)1 << (32 - table->dead_shift), sizeof(*table->dead_chains));
	table->order = calloc(capacity, sizeof(*table->order));
	table->stack = calloc(capacity, sizeof(*table->stack));
	if (table->processes && table->nodes && table->live_chains && table->dead_chains && table->order &&
	    table->stack)
		return 0;
	kw_table_free(table);
	return -ENOMEM;
}

void kw_table_free(struct kw_table *table)
{
	free(table->processes);
	free(table->nodes);
	free(table->live_chains);
	free(table->dead_chains);
	free(table->order);
	free(table->stack);
	memset(table, 0, sizeof(*table));
}

static struct kw_process *process_at(const struct kw_table *table, uint32_t index)
{
	return index == NONE ? NULL : &table->processes[index - 1];
}

static uint32_t index_of(const struct kw_table *table, const struct kw_process *process)
{
	return (uint32_t)(process - table->processes) + 1;
}

/* The live process with this pid, whenever it started. */
struct kw_process *kw_process_live(struct kw_engine *engine, uint32_t pid)
{
	struct kw_table *table = &engine->table;
	struct kw_process *process = process_at(table, table->live_chains[chain_of(pid, table->live_shift)]);

	while (process && process->pid != pid)
		process = process_at(table, process->next);
	return process;
}

/* This very process, alive or dead; NULL: never heard of, or forgotten. */
struct kw_process *kw_process_find(struct kw_engine *engine, uint32_t pid, uint64_t start_ns)
{
	struct kw_table *table = &engine->table;
	struct kw_process *process = kw_process_live(engine, pid);

	if (process && process->start_ns == start_ns)
		return process;
	process = process_at(table, table->dead_chains[chain_of(pid, table->dead_shift)]);
	while (process && (process->pid != pid || process->start_ns != start_ns))
		process = process_at(table, process->next);
	return process;
}

static void unlink_from(struct kw_table *table, uint32_t *chain, const struct kw_process *process)
{
	uint32_t index = index_of(table, process);

	while (*chain != index)
		chain = &table->processes[*chain - 1].next;
	*chain = process->next;
}

static void nodes_free(struct kw_table *table, struct kw_process *process)
{
	while (process->more) {
		struct kw_descent_node *node = &table->nodes[process->more - 1];
		uint32_t next = node->next;

		node->next = table->free_node;
		table->free_node = process->more;
		process->more = next;
	}
}

static void process_free(struct kw_engine *engine, struct kw_process *process)
{
	struct kw_table *table = &engine->table;

	nodes_free(table, process);
	kw_path_release(engine, process->path);
	process->flags = 0;
	process->path = NONE;
	process->next = table->free_process;
	table->free_process = index_of(table, process);
}

static void dead_link(struct kw_engine *engine, struct kw_process *process)
{
	struct kw_table *table = &engine->table;
	uint32_t *oldest = &table->dead[table->dead_next];
	uint32_t *chain;

	if (*oldest != NONE) {
		struct kw_process *gone = process_at(table, *oldest);

		unlink_from(table, &table->dead_chains[chain_of(gone->pid, table->dead_shift)], gone);
		process_free(engine, gone);
	}
	*oldest = index_of(table, process);
	table->dead_next = (table->dead_next + 1) % DEAD_KEPT;
	chain = &table->dead_chains[chain_of(process->pid, table->dead_shift)];
	process->next = *chain;
	*chain = *oldest;
	process->flags = (process->flags & ~(uint32_t)PROCESS_LIVE) | PROCESS_DEAD;
}

/*
 * A new process, alive, or dead from the start (a record tells of one whose pid has a younger owner already). When the
 * table is full the one stand-in is returned, which is valid until the next call, and the loss is counted.
 */
struct kw_process *kw_process_add(struct kw_engine *engine, const struct kw_id *id, bool dead)
{
	struct kw_table *table = &engine->table;
	struct kw_process *process;
	uint32_t index, *chain;

	if (!dead && table->live == table->capacity) {
		process = &table->overflow;
		nodes_free(table, process);
		kw_path_release(engine, process->path);
		memset(process, 0, sizeof(*process));
		process->flags = PROCESS_UNTRACKED;
		process->pid = id->pid;
		process->start_ns = id->start_ns;
		kw_lose(engine, KW_TABLE_FULL, 1);
		return process;
	}
	if (dead) { /* make sure that one is free: the oldest dead goes now instead of in dead_link() */
		uint32_t *oldest = &table->dead[table->dead_next];

		if (*oldest != NONE) {
			process = process_at(table, *oldest);
			unlink_from(table, &table->dead_chains[chain_of(process->pid, table->dead_shift)], process);
			process_free(engine, process);
			*oldest = NONE;
		}
	}
	index = table->free_process;
	if (index != NONE)
		table->free_process = table->processes[index - 1].next;
	else
		index = ++table->used;
	process = process_at(table, index);
	memset(process, 0, sizeof(*process));
	process->pid = id->pid;
	process->start_ns = id->start_ns;
	if (dead) {
		dead_link(engine, process);
		return process;
	}
	process->flags = PROCESS_LIVE;
	chain = &table->live_chains[chain_of(id->pid, table->live_shift)];
	process->next = *chain;
	*chain = index;
	table->live++;
	return process;
}

static void live_unlink(struct kw_table *table, struct kw_process *process)
{
	unlink_from(table, &table->live_chains[chain_of(process->pid, table->live_shift)], process);
	table->live--;
}

/* From the living to the dead. */
void kw_process_bury(struct kw_engine *engine, struct kw_process *process)
{
	live_unlink(&engine->table, process);
	dead_link(engine, process);
}

/* A live process that is of no interest any more: no trace is kept. */
void kw_process_drop(struct kw_engine *engine, struct kw_process *process)
{
	live_unlink(&engine->table, process);
	process_free(engine, process);
}

/* It runs this path now. */
void kw_process_runs(struct kw_engine *engine, struct kw_process *process, uint32_t path)
{
	kw_path_use(engine, path);
	kw_path_release(engine, process->path);
	process->path = path;
}

struct kw_process *kw_process_parent(struct kw_engine *engine, const struct kw_process *process)
{
	if (!(process->flags & PROCESS_HAS_PARENT))
		return NULL;
	return kw_process_find(engine, process->parent_pid, process->parent_start_ns);
}

/* Root and depth of a process in one slot; NULL: unknown. */
const struct kw_descent *kw_descent_of(const struct kw_engine *engine, const struct kw_process *process, uint32_t slot)
{
	uint64_t bit = slot_bit(slot);
	uint32_t index = process->more;

	for (int i = 0; i < DESCENTS_INLINE; i++)
		if (process->descents[i].slots & bit)
			return &process->descents[i];
	while (index != NONE) {
		const struct kw_descent_node *node = &engine->table.nodes[index - 1];

		if (node->descent.slots & bit)
			return &node->descent;
		index = node->next;
	}
	return NULL;
}

static struct kw_descent *descent_room(struct kw_table *table, struct kw_process *process)
{
	struct kw_descent_node *node;
	uint32_t index;

	for (int i = 0; i < DESCENTS_INLINE; i++)
		if (!process->descents[i].slots)
			return &process->descents[i];
	for (index = process->more; index != NONE; index = table->nodes[index - 1].next)
		if (!table->nodes[index - 1].descent.slots)
			return &table->nodes[index - 1].descent;
	index = table->free_node;
	if (index != NONE)
		table->free_node = table->nodes[index - 1].next;
	else if (table->nodes_used < table->capacity + DEAD_KEPT)
		index = ++table->nodes_used;
	else
		return NULL;
	node = &table->nodes[index - 1];
	node->next = process->more;
	process->more = index;
	return &node->descent;
}

static bool same_lineage(const struct kw_descent *one, const struct kw_descent *other)
{
	return one->slots && one->root_pid == other->root_pid && one->root_start_ns == other->root_start_ns &&
	       one->depth == other->depth;
}

static void descent_set(struct kw_engine *engine, struct kw_process *process, struct kw_descent descent)
{
	struct kw_descent *room;

	for (int i = 0; i < DESCENTS_INLINE; i++) {
		if (same_lineage(&process->descents[i], &descent)) {
			process->descents[i].slots |= descent.slots;
			return;
		}
	}
	room = descent_room(&engine->table, process);
	if (room)
		*room = descent;
	else
		kw_lose(engine, KW_TABLE_FULL, 1); /* root and depth stay unknown; kinship itself is in `watches` */
}

static uint64_t descents_inherit(struct kw_engine *engine, struct kw_process *process, uint64_t slots,
				 const struct kw_descent *from)
{
	struct kw_descent descent = *from;

	descent.slots &= slots;
	if (!descent.slots)
		return slots;
	descent.depth++;
	descent_set(engine, process, descent);
	return slots & ~descent.slots;
}

/*
 * Find root and depth for `slots`, which the process has become kin of. A root is its own. A descendant has its
 * parent's root, one deeper. Where the parent is unknown, what a record told is used if it can only be meant for this
 * slot: records carry the outermost root of the lineage, which is the right one for a slot when it is known to be a
 * root of that slot (a lineage has one root per watch, as kinship beats matching), or, if it is unknown, when the
 * process is kin of one watch only. Otherwise root and depth stay unknown.
 */
void kw_descend(struct kw_engine *engine, struct kw_process *process, uint64_t slots)
{
	uint64_t own = slots & process->roots;
	struct kw_descent told = process->told;
	struct kw_process *parent, *top;

	if (own)
		descent_set(engine, process, (struct kw_descent){own, process->start_ns, process->pid, 0});
	slots &= ~own;
	if (!slots)
		return;
	parent = kw_process_parent(engine, process);
	if (parent && parent != process) {
		for (int i = 0; i < DESCENTS_INLINE; i++)
			slots = descents_inherit(engine, process, slots, &parent->descents[i]);
		for (uint32_t index = parent->more; index != NONE && slots; index = engine->table.nodes[index - 1].next)
			slots = descents_inherit(engine, process, slots, &engine->table.nodes[index - 1].descent);
	}
	if (!slots || !told.slots)
		return;
	top = kw_process_find(engine, told.root_pid, told.root_start_ns);
	if (top)
		slots &= top->roots;
	else if (told.slots & (told.slots - 1))
		return;
	told.slots = slots;
	if (slots)
		descent_set(engine, process, told);
}

/* The slots it is kin of without a known root. */
uint64_t kw_descent_unknown(const struct kw_engine *engine, const struct kw_process *process)
{
	uint64_t slots = process->watches;

	for (int i = 0; i < DESCENTS_INLINE; i++)
		slots &= ~process->descents[i].slots;
	for (uint32_t index = process->more; index != NONE; index = engine->table.nodes[index - 1].next)
		slots &= ~engine->table.nodes[index - 1].descent.slots;
	return slots;
}

/* The process is no longer kin in these slots. */
void kw_descent_forget(struct kw_engine *engine, struct kw_process *process, uint64_t slots)
{
	for (int i = 0; i < DESCENTS_INLINE; i++)
		process->descents[i].slots &= ~slots;
	for (uint32_t index = process->more; index != NONE; index = engine->table.nodes[index - 1].next)
		engine->table.nodes[index - 1].descent.slots &= ~slots;
}

static int older_first(const void *left, const void *right, void *processes)
{
	const struct kw_process *one = (struct kw_process *)processes + *(const uint32_t *)left - 1;
	const struct kw_process *other = (struct kw_process *)processes + *(const uint32_t *)right - 1;

	if (one->start_ns != other->start_ns)
		return one->start_ns < other->start_ns ? -1 : 1;
	return one->pid < other->pid ? -1 : one->pid > other->pid;
}

/* Fill table.order with the living, oldest first; returns how many. A parent is older than its child, or as old (where
 * start times are ticks). */
uint32_t kw_table_order(struct kw_engine *engine)
{
	struct kw_table *table = &engine->table;
	uint32_t count = 0;

	for (uint32_t index = 1; index <= table->used; index++)
		if (table->processes[index - 1].flags & PROCESS_LIVE)
			table->order[count++] = index;
	qsort_r(table->order, count, sizeof(*table->order), older_first, table->processes);
	return count;
}
