/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instant expectations: at most so many descendants alive. Raises the alarm line when that breaks and the clear line
 * when it holds again. Knows neither records nor windows.
 */
#include "internal.h"

static char *put_condition(struct kw_engine *engine, char *at, uint32_t slot, int64_t limit)
{
	const struct kw_slot *watch = &engine->slots[slot];

	at = PUT(at, ",\"watch\":\"");
	at = kw_put(at, watch->name, watch->name_length);
	at = PUT(at, "\",\"behavior\":\"child_processes\",\"metric\":\"num_child_procs_");
	at = kw_put(at, watch->name, watch->name_length);
	at = PUT(at, "\",\"value\":");
	at = kw_put_number(at, watch->counters.alive);
	at = PUT(at, ",\"criteria\":{\"comparisonOperator\":\"less-than-equals\",\"value\":{\"number\":");
	at = kw_put_number(at, (uint64_t)limit);
	at = PUT(at, "}},\"since\":");
	at = kw_put_time(engine, at, watch->since_wall_ns);
	if (watch->offender.pid) {
		at = PUT(at, ",\"process_ids\":[");
		at = kw_put_process_id(at, watch->offender.pid, watch->offender.start_ns);
		*at++ = ']';
	}
	return at;
}

static char *put_member(struct kw_engine *engine, char *at, const struct kw_process *process)
{
	const struct kw_path *path = kw_path_at(engine, process->path);

	at = PUT(at, "{\"process_id\":");
	at = kw_put_process_id(at, process->pid, process->start_ns);
	at = PUT(at, ",\"pid\":");
	at = kw_put_number(at, process->pid);
	at = PUT(at, ",\"comm\":");
	at = kw_put_string(at, process->comm, kw_comm_length(process->comm), &engine->lossy);
	if (path) {
		at = PUT(at, ",\"exe\":");
		at = kw_put_string(at, (const uint8_t *)path->text, path->length, &engine->lossy);
	}
	*at++ = '}';
	return at;
}

/* The ancestors of a process (NULL: nobody) within the watch, nearest first, itself included: as many as are known, at
 * most LINEAGE_SHOWN, of which the farthest one is then the root, whatever is left out between. */
void kw_lineage_of(struct kw_engine *engine, uint32_t slot, struct kw_process *process, struct kw_lineage *lineage)
{
	uint32_t steps = engine->table.capacity + DEAD_KEPT;

	*lineage = (struct kw_lineage){.count = 0};
	while (process && (process->watches & slot_bit(slot)) && steps--) {
		if (lineage->count == LINEAGE_SHOWN)
			lineage->count--;
		lineage->members[lineage->count++] = process;
		if (process->roots & slot_bit(slot))
			break;
		process = kw_process_parent(engine, process);
	}
	for (uint32_t i = 0; i < lineage->count; i++) {
		const struct kw_path *path = kw_path_at(engine, lineage->members[i]->path);

		lineage->room += 256 + (path ? (uint64_t)path->length * STRING_GROWTH : 0);
	}
}

/* The key and its value; nothing when nobody is known. */
char *kw_put_lineage(struct kw_engine *engine, char *at, uint32_t slot, const struct kw_lineage *lineage)
{
	const struct kw_descent *descent;
	const struct kw_process *top;
	uint32_t count = lineage->count;

	if (!count)
		return at;
	descent = kw_descent_of(engine, lineage->members[0], slot);
	top = lineage->members[count - 1];
	at = PUT(at, ",\"lineage\":[");
	if (descent && (descent->root_pid != top->pid || descent->root_start_ns != top->start_ns)) {
		at = PUT(at, "{\"process_id\":"); /* the root went long ago: its id is all that is left */
		at = kw_put_process_id(at, descent->root_pid, descent->root_start_ns);
		at = PUT(at, ",\"pid\":");
		at = kw_put_number(at, descent->root_pid);
		at = PUT(at, "},");
	}
	while (count--) {
		at = put_member(engine, at, lineage->members[count]);
		if (count)
			*at++ = ',';
	}
	*at++ = ']';
	return at;
}

static void alarm_raise(struct kw_engine *engine, uint32_t slot, struct kw_process *offender)
{
	struct kw_slot *watch = &engine->slots[slot];
	uint64_t now_ns = kw_wall(engine, engine->now_ns);
	struct kw_lineage lineage;
	char *at;

	watch->alarmed = true;
	watch->since_wall_ns = now_ns;
	watch->offender = (struct kw_id){0};
	if (offender)
		watch->offender = (struct kw_id){.pid = offender->pid, .start_ns = offender->start_ns};
	kw_lineage_of(engine, slot, offender, &lineage);
	at = kw_line_begin(engine, LINE_ROOM + lineage.room, BATCH_BYTES + ALARM_BYTES, now_ns);
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"alarm\"");
	at = put_condition(engine, at, slot, watch->limit);
	at = kw_put_lineage(engine, at, slot, &lineage);
	kw_line_end(engine, at);
	engine->lines[engine->filling].alarms++;
}

static void alarm_clear(struct kw_engine *engine, uint32_t slot, int64_t limit)
{
	struct kw_slot *watch = &engine->slots[slot];
	char *at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, engine->now_ns));

	watch->alarmed = false;
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"clear\"");
	at = put_condition(engine, at, slot, limit);
	kw_line_end(engine, at);
	engine->lines[engine->filling].clears++;
}

/* The descendant that came last, for an alarm that no single record raised. */
static struct kw_process *youngest(struct kw_engine *engine, uint32_t slot)
{
	struct kw_process *found = NULL;

	for (uint32_t i = 0; i < engine->table.used; i++) {
		struct kw_process *process = &engine->table.processes[i];

		if (!(process->flags & PROCESS_LIVE) || !(process->watches & ~process->roots & slot_bit(slot)))
			continue;
		if (!found || process->start_ns > found->start_ns)
			found = process;
	}
	return found;
}

/* Look whether the expectation of slot holds; offender is the process that just came, NULL: none in particular. */
void kw_judge(struct kw_engine *engine, uint32_t slot, struct kw_process *offender)
{
	struct kw_slot *watch = &engine->slots[slot];
	bool broken = watch->limit >= 0 && watch->counters.alive > (uint64_t)watch->limit;

	if (watch->rules && watch->rules->alarmed)
		kw_rules_settle(engine, slot, 0);
	if (broken && !watch->alarmed)
		alarm_raise(engine, slot, offender ? offender : youngest(engine, slot));
	else if (!broken && watch->alarmed)
		alarm_clear(engine, slot, watch->limit);
}

/* A new limit, judged at once. An alarm whose expectation is withdrawn (-1) is cleared. */
void kw_limit(struct kw_engine *engine, uint32_t slot, int64_t limit)
{
	struct kw_slot *watch = &engine->slots[slot];

	if (limit < 0 && watch->alarmed)
		alarm_clear(engine, slot, watch->limit);
	watch->limit = limit;
	kw_judge(engine, slot, NULL);
}
