/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was done about a fork or exec that broke a rule: its line, its counters, and the alarm when the breaker has
 * stopped enforcement. Decides nothing: the kernel did.
 */
#include "internal.h"

static const char *const reasons[] = {
    [KW_REASON_CHILDREN] = "child_processes",
    [KW_REASON_EXECUTABLE] = "executables",
    [KW_REASON_DEPTH] = "depth",
    [KW_REASON_RATE] = "forks_per_minute",
    [KW_REASON_UID] = "uids",
    [KW_REASON_MEMFD] = "memfd",
    [KW_REASON_DELETED] = "deleted",
    [KW_REASON_TEMPORARY] = "temporary",
    [KW_REASON_UNTRACKED] = "untracked",
};
static const char *const actions[] = {
    [KW_ACTION_KILL] = "kill",	   [KW_ACTION_WOULD] = "would", [KW_ACTION_SPARED] = "spared",
    [KW_ACTION_DELEGATE] = "kill", [KW_ACTION_DENY] = "deny",
};

static char *put_word(char *at, const char *word)
{
	*at++ = '"';
	at = kw_put(at, word, strlen(word));
	*at++ = '"';
	return at;
}

static void line_enforced(struct kw_engine *engine, uint32_t slot, const struct kw_enforced *record,
			  const struct kw_process *process)
{
	const struct kw_path *path = process ? kw_path_at(engine, process->path) : NULL;
	uint64_t room = LINE_ROOM + (path ? (uint64_t)path->length * STRING_GROWTH : 0);
	char *at = kw_line_begin(engine, room, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, record->header.time_ns));

	if (!at)
		return;
	at = PUT(at, ",\"event\":\"enforced\"");
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	at = PUT(at, ",\"comm\":");
	at = kw_put_string(at, record->comm, kw_comm_length(record->comm), &engine->lossy);
	at = PUT(at, ",\"action\":");
	at = put_word(at, actions[record->action]);
	at = PUT(at, ",\"reason\":");
	at = put_word(at, reasons[record->reason]);
	if (path) {
		at = PUT(at, ",\"exe\":");
		at = kw_put_string(at, (const uint8_t *)path->text, path->length, &engine->lossy);
	}
	if (record->action == KW_ACTION_WOULD)
		at = PUT(at, ",\"dry_run\":true");
	if (record->action == KW_ACTION_DELEGATE)
		at = PUT(at, ",\"delegated\":true");
	kw_line_end(engine, at);
}

static char *put_breaker(struct kw_engine *engine, char *at)
{
	const struct kw_breaker *breaker = &engine->breaker;

	at = PUT(at, ",\"behavior\":\"enforcement\",\"metric\":\"kills_per_minute\",\"value\":");
	at = kw_put_number(at, (uint64_t)breaker->most + breaker->tripped);
	at = PUT(at, ",\"criteria\":{\"comparisonOperator\":\"less-than-equals\",\"value\":{\"number\":");
	at = kw_put_number(at, (uint64_t)breaker->most);
	at = PUT(at, "}},\"since\":");
	return kw_put_time(engine, at, breaker->since_wall_ns);
}

/* Enforcement has stopped: the first process that was spared was the one too many within a minute. */
static void breaker_trips(struct kw_engine *engine, const struct kw_enforced *record)
{
	struct kw_breaker *breaker = &engine->breaker;
	char *at;

	if (breaker->most < 0 || breaker->tripped)
		return;
	breaker->tripped = true;
	breaker->since_wall_ns = kw_wall(engine, engine->now_ns);
	at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES + ALARM_BYTES, breaker->since_wall_ns);
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"alarm\"");
	at = put_breaker(engine, at);
	at = PUT(at, ",\"process_ids\":[");
	at = kw_put_process_id(at, record->process.pid, record->process.start_ns);
	*at++ = ']';
	kw_line_end(engine, at);
	engine->lines[engine->filling].alarms++;
}

int kw_engine_breaker(struct kw_engine *engine, int64_t most)
{
	struct kw_breaker *breaker = &engine->breaker;
	char *at = NULL;

	if (most < -1)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	if (breaker->tripped) {
		breaker->tripped = false;
		at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, engine->now_ns));
	}
	if (at) {
		at = PUT(at, ",\"event\":\"clear\"");
		kw_line_end(engine, put_breaker(engine, at));
		engine->lines[engine->filling].clears++;
	}
	breaker->most = most;
	pthread_mutex_unlock(&engine->lock);
	return 0;
}

void kw_enforced_happens(struct kw_engine *engine, const struct kw_enforced *record)
{
	const struct kw_process *process = kw_process_find(engine, record->process.pid, record->process.start_ns);
	bool acted = record->action != KW_ACTION_WOULD && record->action != KW_ACTION_SPARED;

	for (uint64_t left = record->slots & engine->defined; left; left &= left - 1) {
		struct kw_counters *cells = &engine->slots[lowest_slot(left)].counters;

		cells->enforced += acted;
		cells->would_enforce += !acted;
		line_enforced(engine, lowest_slot(left), record, process);
	}
	if (record->action == KW_ACTION_SPARED)
		breaker_trips(engine, record);
}
