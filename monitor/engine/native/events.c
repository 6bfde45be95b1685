/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each kind of record means for the table, the counters, the expectations and the lines, in that order. Trusts
 * that the door has looked at the record; knows no bytes beyond it.
 *
 * Records need not be complete or in order. Membership decides what counts, so a process counts once: whatever tells of
 * one that was never told of counts it in first; a sync may run ahead of the records that wait in a ring, which then
 * make their lines without counting again; a process whose pid has another owner by now is counted in and out at once.
 */
#include "internal.h"

/* What every record about a process says. */
struct told {
	const struct kw_header *header;
	const struct kw_id *process, *parent, *root;
	const uint8_t *comm;
	uint32_t depth, uid;
	uint64_t slots; /* it is kin of, of those that have a watch */
	/* What follows from it: */
	uint64_t gained;    /* slots it was not known to be kin of */
	uint64_t displaced; /* slots of an earlier process of this pid, which is over */
};

static void displace(struct kw_engine *engine, struct kw_process *process)
{
	for (uint64_t left = process->watches; left; left &= left - 1)
		kw_leave(engine, lowest_slot(left), process, true);
	kw_sockets_owner_ends(engine, process->pid, process->start_ns);
	kw_process_bury(engine, process);
}

/* The process that a record is about, made if it is new. `known` is false if it is, also for the stand-in of a full
 * table. */
static struct kw_process *process_for(struct kw_engine *engine, struct told *told, bool *known)
{
	const struct kw_id *id = told->process;
	struct kw_process *process = kw_process_find(engine, id->pid, id->start_ns), *owner;

	*known = process != NULL;
	if (process)
		return process;
	owner = kw_process_live(engine, id->pid);
	if (owner && owner->start_ns > id->start_ns)
		return kw_process_add(engine, id, true);
	if (owner) {
		told->displaced = owner->watches;
		displace(engine, owner);
	}
	return kw_process_add(engine, id, false);
}

/* Bring the table up to what a record says. Counting is left to the caller: `gained` tells what for. */
static struct kw_process *arrive(struct kw_engine *engine, struct told *told)
{
	bool known;
	struct kw_process *process = process_for(engine, told, &known);
	uint16_t flags = told->header->flags;

	process->sync = engine->sync;
	if (told->header->time_ns >= process->seen_ns) {
		process->seen_ns = told->header->time_ns;
		memcpy(process->comm, told->comm, KW_COMM_BYTES);
		if (flags & KW_HAS_CREDENTIALS) {
			process->uid = told->uid;
			process->flags |= PROCESS_HAS_UID;
		}
	}
	if (told->parent && (flags & KW_HAS_PARENT) && told->parent->pid && !(process->flags & PROCESS_HAS_PARENT)) {
		process->parent_pid = told->parent->pid;
		process->parent_start_ns = told->parent->start_ns;
		process->flags |= PROCESS_HAS_PARENT;
	}
	if ((flags & KW_HAS_ROOT) && told->root->pid)
		process->told =
		    (struct kw_descent){told->header->watches, told->root->start_ns, told->root->pid, told->depth};
	if (known && (process->flags & PROCESS_DEAD))
		return process; /* counted in and out already */
	told->gained = told->slots & ~process->watches;
	process->watches |= told->gained;
	process->roots |= told->gained & told->header->roots;
	if (told->gained)
		kw_descend(engine, process, told->gained);
	return process;
}

static void count_in(struct kw_engine *engine, uint32_t slot, struct kw_process *process, enum joining how)
{
	kw_join(engine, slot, process, how);
	if (process->flags & PROCESS_DEAD)
		kw_leave(engine, slot, process, true);
}

static void judge_all(struct kw_engine *engine, uint64_t slots)
{
	for (; slots; slots &= slots - 1)
		kw_judge(engine, lowest_slot(slots), NULL);
}

static void on_fork(struct kw_engine *engine, const struct kw_fork *record)
{
	struct told told = {.header = &record->header,
			    .process = &record->process,
			    .parent = &record->parent,
			    .root = &record->root,
			    .comm = record->comm,
			    .depth = record->depth,
			    .uid = record->uid,
			    .slots = record->header.watches & engine->defined};
	const struct kw_process *parent;
	struct kw_process *process;

	if (!told.slots)
		return;
	process = arrive(engine, &told);
	parent = kw_process_parent(engine, process);
	if (parent && !process->announced) { /* until it executes something else */
		if (parent->path != process->path)
			kw_process_runs(engine, process, parent->path);
		process->device = parent->device;
		process->inode = parent->inode;
		process->flags |= parent->flags & PROCESS_IMAGE;
	}
	for (uint64_t left = told.slots; left; left &= left - 1) {
		uint32_t slot = lowest_slot(left);
		bool first = !(process->announced & slot_bit(slot));

		if (told.gained & slot_bit(slot))
			count_in(engine, slot, process, JOIN_FORKED);
		if (first)
			kw_line_fork(engine, slot, record, process);
		if (engine->ruled & slot_bit(slot))
			kw_rules_forked(engine, slot, process, first);
		kw_judge(engine, slot, process);
	}
	process->announced |= told.slots;
	judge_all(engine, told.displaced & ~told.slots);
}

/* What it runs from now on, by its file. */
static void identify(struct kw_process *process, const struct kw_image *record)
{
	uint16_t flags = record->header.flags;

	process->flags &= ~(uint32_t)PROCESS_IMAGE;
	process->flags |= flags & KW_MEMFD ? PROCESS_MEMFD : 0;
	process->flags |= record->header.kind == KW_EXEC && (flags & KW_DELETED) ? PROCESS_DELETED : 0;
	process->flags |= flags & KW_TEMPORARY ? PROCESS_TEMPORARY : 0;
	process->device = flags & KW_HAS_EXE ? record->device : 0;
	process->inode = flags & KW_HAS_EXE ? record->inode : 0;
}

static void image_in_slot(struct kw_engine *engine, uint32_t slot, const struct kw_image *record,
			  struct kw_process *process, uint32_t path)
{
	uint64_t bit = slot_bit(slot);
	bool executed = record->header.kind == KW_EXEC, fresh = record->fresh & bit, root = record->header.roots & bit;

	if (executed && !root)
		engine->slots[slot].counters.execs++;
	if (!root && (executed || fresh) && (record->header.flags & KW_HAS_EXE) && record->exe.length)
		kw_exe_note(engine, slot, path);
	if (executed)
		kw_line_image(engine, slot, record, process, fresh ? LINE_ROOT : LINE_EXEC);
	else if (fresh && !(process->announced & bit))
		kw_line_image(engine, slot, record, process, root ? LINE_ROOT : LINE_ADOPT);
}

static void on_image(struct kw_engine *engine, const struct kw_image *record)
{
	struct told told = {.header = &record->header,
			    .process = &record->process,
			    .parent = &record->parent,
			    .root = &record->root,
			    .comm = record->comm,
			    .depth = record->depth,
			    .uid = record->uid,
			    .slots = record->header.watches & engine->defined};
	const uint8_t *exe = (const uint8_t *)record + record->exe.offset;
	uint32_t path = NONE, before;
	struct kw_process *process;

	if (!told.slots)
		return;
	process = arrive(engine, &told);
	if ((record->header.flags & KW_HAS_EXE) && record->exe.length)
		path = kw_path_keep(engine, exe, (uint32_t)strnlen((const char *)exe, record->exe.length));
	before = process->path;
	kw_path_use(engine, before);
	kw_process_runs(engine, process, path);
	identify(process, record);
	for (uint64_t left = told.slots; left; left &= left - 1) {
		uint32_t slot = lowest_slot(left);

		if (told.gained & slot_bit(slot))
			count_in(engine, slot, process, record->fresh & slot_bit(slot) ? JOIN_ADOPTED : JOIN_IMPLIED);
		image_in_slot(engine, slot, record, process, path);
		if (engine->ruled & slot_bit(slot))
			kw_rules_image(engine, slot, record, process, before);
		kw_judge(engine, slot, process);
	}
	process->announced |= record->fresh & told.slots;
	kw_path_release(engine, path);
	kw_path_release(engine, before);
	judge_all(engine, told.displaced & ~told.slots);
}

static void on_exit(struct kw_engine *engine, const struct kw_exit *record)
{
	struct told told = {.header = &record->header,
			    .process = &record->process,
			    .root = &record->root,
			    .comm = record->comm,
			    .depth = record->depth,
			    .uid = record->uid,
			    .slots = record->header.watches & engine->defined};
	struct kw_process *process;
	bool first, counted;

	if (!told.slots && !kw_process_find(engine, record->process.pid, record->process.start_ns))
		return;
	process = arrive(engine, &told);
	first = !(process->flags & PROCESS_EXITED);
	counted = !(process->flags & PROCESS_DEAD);
	for (uint64_t left = told.slots | process->watches; left; left &= left - 1) {
		uint32_t slot = lowest_slot(left);
		uint64_t bit = slot_bit(slot);

		if (told.gained & bit) {
			count_in(engine, slot, process, JOIN_IMPLIED);
			kw_judge(engine, slot, process);
		}
		if (counted && (process->watches & engine->ruled & bit))
			kw_rules_user(engine, slot, process);
		if (counted && (process->watches & bit))
			kw_leave(engine, slot, process, true);
		if (first && (told.slots & bit))
			kw_line_exit(engine, slot, record, process);
		kw_judge(engine, slot, NULL);
	}
	process->flags |= PROCESS_EXITED;
	if (process->flags & PROCESS_LIVE)
		kw_process_bury(engine, process);
	judge_all(engine, told.displaced);
	kw_sockets_owner_ends(engine, record->process.pid, record->process.start_ns);
}

/* Take slots away from a process that lives on. */
static void forget(struct kw_engine *engine, struct kw_process *process, uint64_t slots)
{
	slots &= process->watches;
	for (uint64_t left = slots; left; left &= left - 1)
		kw_leave(engine, lowest_slot(left), process, false);
	process->watches &= ~slots;
	process->roots &= ~slots;
	process->announced &= ~slots;
	kw_descent_forget(engine, process, slots);
	if (!process->watches)
		kw_process_drop(engine, process);
}

static void on_forget(struct kw_engine *engine, const struct kw_forget *record)
{
	struct kw_process *process = kw_process_live(engine, record->process.pid);

	if (!process || process->start_ns != record->process.start_ns)
		return;
	forget(engine, process, record->gone & engine->defined);
	judge_all(engine, record->gone & engine->defined);
}

/* Until it ends, `alive` still holds those who have ended unseen; so a sync is best ingested in one piece. */
static void sync_begin(struct kw_engine *engine, const struct kw_sync *record)
{
	engine->sync++;
	engine->syncing = true;
	engine->sync_ns = record->header.time_ns;
	for (uint64_t left = engine->defined; left; left &= left - 1) {
		struct kw_slot *watch = &engine->slots[lowest_slot(left)];

		memcpy(watch->stale, watch->untracked, sizeof(watch->stale));
	}
}

static void sync_row(struct kw_engine *engine, const struct kw_sync *record)
{
	struct told told = {.header = &record->header,
			    .process = &record->process,
			    .parent = &record->parent,
			    .root = &record->root,
			    .comm = record->comm,
			    .depth = record->depth,
			    .uid = record->uid,
			    .slots = record->header.watches & engine->defined};
	struct kw_process *process = kw_process_find(engine, record->process.pid, record->process.start_ns);
	uint64_t lost = 0;

	if (process && (process->flags & PROCESS_DEAD))
		return; /* its exit came while the rows were collected, or it was counted out before and its exit comes
			   yet */
	if (process && record->header.time_ns >= process->seen_ns)
		lost = process->watches & ~told.slots;
	if (!told.slots && !process)
		return;
	process = arrive(engine, &told);
	for (uint64_t left = told.gained; left; left &= left - 1)
		count_in(engine, lowest_slot(left), process, JOIN_SYNCED);
	if (lost)
		forget(engine, process, lost);
}

/* What is in no table and in no row either has ended. */
static void stale_leave(struct kw_slot *watch)
{
	watch->counters.alive -= watch->stale[0];
	watch->counters.exits += watch->stale[0];
	watch->untracked[0] -= watch->stale[0];
	watch->counters.roots -= watch->stale[1];
	watch->counters.root_exits += watch->stale[1];
	watch->untracked[1] -= watch->stale[1];
	memset(watch->stale, 0, sizeof(watch->stale));
}

static void sync_end(struct kw_engine *engine)
{
	struct kw_table *table = &engine->table;
	uint32_t count;

	for (uint32_t i = 0; i < table->used; i++) {
		struct kw_process *process = &table->processes[i];

		if (!(process->flags & PROCESS_LIVE) || process->sync == engine->sync)
			continue;
		if (engine->sync_ns && process->seen_ns > engine->sync_ns)
			continue; /* heard of since the rows were collected */
		displace(engine, process);
	}
	count = kw_table_order(engine);
	for (uint32_t i = 0; i < count; i++) { /* a row may have come before its parent's */
		struct kw_process *process = &table->processes[table->order[i] - 1];
		uint64_t unknown = kw_descent_unknown(engine, process);

		if (unknown)
			kw_descend(engine, process, unknown);
	}
	for (uint64_t left = engine->defined; left; left &= left - 1) {
		struct kw_slot *watch = &engine->slots[lowest_slot(left)];

		stale_leave(watch);
		kw_peak(watch);
	}
	engine->syncing = false;
	for (uint64_t left = engine->ruled; left; left &= left - 1)
		kw_rules_anew(engine, lowest_slot(left), false); /* a sync tells no images */
	judge_all(engine, engine->defined);
}

static void on_sync(struct kw_engine *engine, const struct kw_sync *record)
{
	switch (record->phase) {
	case 0:
		sync_begin(engine, record);
		break;
	case 1:
		sync_row(engine, record);
		break;
	case 2:
		sync_end(engine);
		break;
	case 3:
		kw_sockets_doubt(engine);
		break;
	default:
		kw_sockets_settle(engine);
	}
}

static void on_lost(struct kw_engine *engine, const struct kw_lost *record)
{
	kw_lose(engine, (enum kw_stage)record->stage, record->count);
	kw_say_losses(engine, 1ULL << record->stage);
}

/* The one entry: a sound record happens. */
void kw_happen(struct kw_engine *engine, const struct kw_header *header)
{
	if (header->time_ns)
		engine->now_ns = header->time_ns;
	for (uint64_t left = engine->hurried; left; left &= left - 1)
		kw_rules_settle(engine, lowest_slot(left), 0);
	switch (header->kind) {
	case KW_FORK:
		on_fork(engine, (const struct kw_fork *)header);
		break;
	case KW_EXEC:
	case KW_ADOPT:
		on_image(engine, (const struct kw_image *)header);
		break;
	case KW_EXIT:
		on_exit(engine, (const struct kw_exit *)header);
		break;
	case KW_FORGET:
		on_forget(engine, (const struct kw_forget *)header);
		break;
	case KW_SYNC:
		on_sync(engine, (const struct kw_sync *)header);
		break;
	case KW_LOST:
		on_lost(engine, (const struct kw_lost *)header);
		break;
	case KW_SOCKET:
		kw_socket_happens(engine, (const struct kw_socket *)header);
		break;
	case KW_DNS:
		kw_dns_happens(engine, (const struct kw_dns *)header);
		break;
	case KW_ENFORCED:
		kw_enforced_happens(engine, (const struct kw_enforced *)header);
		break;
	default:
		engine->wall_ns = ((const struct kw_clock *)header)->wall_ns;
	}
}
