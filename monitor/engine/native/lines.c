/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One function per line of the event log. Knows what a line says and in which order; decides nothing.
 *
 * What a record does not know is left out of the line, never null or 0.
 */
#include "internal.h"

static const char *const stage_names[KW_STAGES] = {"ring_full", "table_full", "bad_record",
						   "sink_full", "spool_full", "hook_missed"};

/* Room and the beginning of a line; NULL: no room, and that is counted. */
char *kw_line_begin(struct kw_engine *engine, uint64_t room, uint64_t limit, uint64_t wall_ns)
{
	char *at = kw_out_reserve(&engine->lines[engine->filling], room, limit);

	if (!at) {
		engine->losses[KW_SINK_FULL]++;
		engine->unsaid[KW_SINK_FULL]++;
		return NULL;
	}
	engine->lossy = false;
	at = PUT(at, "{\"time\":");
	return kw_put_time(engine, at, wall_ns);
}

void kw_line_end(struct kw_engine *engine, char *at)
{
	struct kw_out *out = &engine->lines[engine->filling];

	if (engine->lossy)
		at = PUT(at, ",\"lossy\":true");
	at = PUT(at, "}\n");
	out->length = (uint64_t)(at - out->data);
	out->lines++;
}

char *kw_put_watch(const struct kw_engine *engine, char *at, uint32_t slot)
{
	const struct kw_slot *watch = &engine->slots[slot];

	at = PUT(at, ",\"watch\":\"");
	at = kw_put(at, watch->name, watch->name_length);
	*at++ = '"';
	return at;
}

char *kw_put_process(char *at, const struct kw_id *id)
{
	at = PUT(at, ",\"pid\":");
	at = kw_put_number(at, id->pid);
	at = PUT(at, ",\"process_id\":");
	return kw_put_process_id(at, id->pid, id->start_ns);
}

static char *put_comm(struct kw_engine *engine, char *at, const uint8_t *comm)
{
	at = PUT(at, ",\"comm\":");
	return kw_put_string(at, comm, kw_comm_length(comm), &engine->lossy);
}

void kw_line_fork(struct kw_engine *engine, uint32_t slot, const struct kw_fork *record,
		  const struct kw_process *process)
{
	const struct kw_descent *descent = kw_descent_of(engine, process, slot);
	uint16_t flags = record->header.flags;
	char *at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES, kw_wall(engine, record->header.time_ns));

	if (!at)
		return;
	at = PUT(at, ",\"event\":\"fork\"");
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	if (flags & KW_HAS_PARENT) {
		at = PUT(at, ",\"parent_pid\":");
		at = kw_put_number(at, record->parent.pid);
		at = PUT(at, ",\"parent_process_id\":");
		at = kw_put_process_id(at, record->parent.pid, record->parent.start_ns);
	}
	if (descent) {
		at = PUT(at, ",\"root_process_id\":");
		at = kw_put_process_id(at, descent->root_pid, descent->root_start_ns);
		at = PUT(at, ",\"depth\":");
		at = kw_put_number(at, descent->depth);
	}
	at = put_comm(engine, at, record->comm);
	if (flags & KW_HAS_CREDENTIALS) {
		at = PUT(at, ",\"uid\":");
		at = kw_put_number(at, record->uid);
	}
	kw_line_end(engine, at);
}

void kw_line_exit(struct kw_engine *engine, uint32_t slot, const struct kw_exit *record,
		  const struct kw_process *process)
{
	const struct kw_descent *descent = kw_descent_of(engine, process, slot);
	uint64_t now_ns = record->header.time_ns, start_ns = record->process.start_ns;
	uint32_t signal = record->status & 0x7f;
	char *at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES, kw_wall(engine, now_ns));

	if (!at)
		return;
	at = PUT(at, ",\"event\":\"exit\"");
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	if (descent) {
		at = PUT(at, ",\"depth\":");
		at = kw_put_number(at, descent->depth);
	}
	at = put_comm(engine, at, record->comm);
	if (record->header.flags & KW_HAS_STATUS) {
		if (signal) {
			at = PUT(at, ",\"signal\":");
			at = kw_put_number(at, signal);
			if (record->status & 0x80)
				at = PUT(at, ",\"core\":true");
		} else {
			at = PUT(at, ",\"exit_code\":");
			at = kw_put_number(at, record->status >> 8 & 0xff);
		}
	}
	at = PUT(at, ",\"duration_ms\":");
	at = kw_put_number(at, now_ns > start_ns ? (now_ns - start_ns) / 1000000 : 0);
	kw_line_end(engine, at);
}

static const uint8_t *text_of(const struct kw_image *record, struct kw_text text)
{
	return (const uint8_t *)record + text.offset;
}

static char *put_image_texts(struct kw_engine *engine, char *at, const struct kw_image *record)
{
	uint16_t flags = record->header.flags;

	if ((flags & KW_HAS_EXE) && record->exe.length) {
		at = PUT(at, ",\"exe\":");
		at = kw_put_string(at, text_of(record, record->exe), record->exe.length, &engine->lossy);
	}
	if (record->script.length) {
		at = PUT(at, ",\"script\":");
		at = kw_put_string(at, text_of(record, record->script), record->script.length, &engine->lossy);
	}
	if (flags & KW_HAS_ARGV) {
		at = PUT(at, ",\"argv\":");
		at = kw_put_strings(at, text_of(record, record->argv), record->argv.length, &engine->lossy);
	}
	if (record->cwd.length) {
		at = PUT(at, ",\"cwd\":");
		at = kw_put_string(at, text_of(record, record->cwd), record->cwd.length, &engine->lossy);
	}
	return at;
}

static char *put_image_facts(char *at, const struct kw_image *record)
{
	uint16_t flags = record->header.flags;

	if (flags & KW_HAS_CREDENTIALS) {
		at = PUT(at, ",\"uid\":");
		at = kw_put_number(at, record->uid);
		at = PUT(at, ",\"gid\":");
		at = kw_put_number(at, record->gid);
	}
	if ((flags & KW_TRUNCATED) || ((flags & KW_HAS_ARGV) && record->argv_bytes > record->argv.length))
		at = PUT(at, ",\"truncated\":true");
	if (flags & KW_MEMFD)
		at = PUT(at, ",\"memfd\":true");
	if (flags & KW_DELETED)
		at = PUT(at, ",\"deleted\":true");
	if (flags & KW_TEMPORARY)
		at = PUT(at, ",\"temporary\":true");
	return at;
}

static char *put_cause(char *at, uint32_t cause)
{
	if (cause == KW_CAUSE_EXEC)
		return PUT(at, ",\"cause\":\"exec\"");
	if (cause == KW_CAUSE_RUNNING)
		return PUT(at, ",\"cause\":\"running\"");
	return PUT(at, ",\"cause\":\"moved\"");
}

void kw_line_image(struct kw_engine *engine, uint32_t slot, const struct kw_image *record,
		   const struct kw_process *process, enum image_line which)
{
	const struct kw_descent *descent = kw_descent_of(engine, process, slot);
	uint64_t text = (uint64_t)record->exe.length + record->script.length + record->argv.length + record->cwd.length;
	char *at = kw_line_begin(engine, LINE_ROOM + text * STRING_GROWTH, BATCH_BYTES,
				 kw_wall(engine, record->header.time_ns));

	if (!at)
		return;
	if (which == LINE_ROOT)
		at = PUT(at, ",\"event\":\"root\"");
	else if (which == LINE_EXEC)
		at = PUT(at, ",\"event\":\"exec\"");
	else
		at = PUT(at, ",\"event\":\"adopt\"");
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	if (record->header.flags & KW_HAS_PPID) {
		at = PUT(at, ",\"ppid\":");
		at = kw_put_number(at, record->ppid);
	}
	if (which != LINE_ROOT && descent) {
		at = PUT(at, ",\"depth\":");
		at = kw_put_number(at, descent->depth);
	}
	at = put_comm(engine, at, record->comm);
	at = put_image_texts(engine, at, record);
	at = put_image_facts(at, record);
	if (which == LINE_ROOT)
		at = put_cause(at, record->cause);
	if (which == LINE_ADOPT && (record->header.flags & KW_INFERRED))
		at = PUT(at, ",\"inferred\":true");
	kw_line_end(engine, at);
}

/* False: no room, nothing was said. */
bool kw_line_lost(struct kw_engine *engine, enum kw_stage stage, uint64_t count)
{
	struct kw_out *out = &engine->lines[engine->filling];
	char *at;

	if (!kw_out_reserve(out, LINE_ROOM, BATCH_BYTES + ALARM_BYTES))
		return false;
	at = kw_line_begin(engine, LINE_ROOM, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, engine->now_ns));
	at = PUT(at, ",\"event\":\"lost\",\"stage\":\"");
	at = kw_put(at, stage_names[stage], strlen(stage_names[stage]));
	at = PUT(at, "\",\"count\":");
	at = kw_put_number(at, count);
	kw_line_end(engine, at);
	return true;
}
