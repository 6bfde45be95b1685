/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What breaks a rule on lineage: looks at a process when it is forked, when it executes and when its user is told, and
 * says by what it breaks which rule. Knows neither who breaks it already nor lines.
 *
 * Rules are about descendants. A fork executes nothing: the child breaks what its parent breaks, and is judged by
 * depth, user and rate alone. Of a root only its image is judged, against what its watch means.
 */
#include "internal.h"

enum {
	IMAGE_RULES =
	    1 << RULE_EXECUTABLES | 1 << RULE_EDGES | 1 << RULE_MEMFD | 1 << RULE_DELETED | 1 << RULE_TEMPORARY
};

static bool judged(const struct kw_rules *rules, enum kw_rule rule)
{
	return rules->judged >> rule & 1;
}

/* The time has come this far: cells that are older than a minute count no more. */
void kw_rate_reaches(struct kw_rate *rate, uint64_t time_ns)
{
	uint64_t cell = time_ns / RATE_CELL_NS;

	if (cell <= rate->newest)
		return;
	if (cell - rate->newest >= RATE_CELLS) {
		memset(rate->cells, 0, sizeof(rate->cells));
		rate->sum = 0;
		rate->newest = cell;
		return;
	}
	while (rate->newest < cell) {
		uint32_t *oldest = &rate->cells[++rate->newest % RATE_CELLS];

		rate->sum -= *oldest;
		*oldest = 0;
	}
}

static void forked_now(struct kw_engine *engine, uint32_t slot, struct kw_process *process)
{
	struct kw_rules *rules = engine->slots[slot].rules;
	uint64_t cell = engine->now_ns / RATE_CELL_NS;

	kw_rate_reaches(&rules->rate, engine->now_ns);
	if (rules->rate.newest - cell >= RATE_CELLS)
		return; /* a record that is a minute late */
	rules->rate.cells[cell % RATE_CELLS]++;
	rules->rate.sum++;
	if (rules->rate.sum > rules->forks_per_minute)
		kw_rate_alarm(engine, slot, process);
}

/* Judge its user, as far as it is known. */
void kw_rules_user(struct kw_engine *engine, uint32_t slot, struct kw_process *process)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	struct kw_culprit culprit = {.number = process->uid};

	if (!judged(rules, RULE_UIDS) || !(process->flags & PROCESS_HAS_UID) || process->roots & slot_bit(slot))
		return;
	for (uint32_t i = 0; i < rules->uids_count; i++) {
		if (rules->uids[i] == process->uid) {
			kw_breaks_no_more(engine, slot, process, 1 << RULE_UIDS);
			return;
		}
	}
	kw_breaks(engine, slot, process, RULE_UIDS, &culprit, NULL);
}

static void judge_depth(struct kw_engine *engine, uint32_t slot, struct kw_process *process)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	const struct kw_descent *descent = kw_descent_of(engine, process, slot);

	if (!judged(rules, RULE_DEPTH) || !descent)
		return;
	if (descent->depth > rules->depth)
		kw_breaks(engine, slot, process, RULE_DEPTH, &(struct kw_culprit){.number = descent->depth}, NULL);
	else
		kw_breaks_no_more(engine, slot, process, 1 << RULE_DEPTH);
}

/* A descendant was forked. first: this is the record that tells of it for the first time. */
void kw_rules_forked(struct kw_engine *engine, uint32_t slot, struct kw_process *process, bool first)
{
	const struct kw_process *parent = kw_process_parent(engine, process);

	if (process->roots & slot_bit(slot))
		return;
	if (first && parent)
		kw_breaks_as(engine, slot, process, parent);
	judge_depth(engine, slot, process);
	kw_rules_user(engine, slot, process);
	if (first && judged(engine->slots[slot].rules, RULE_RATE))
		forked_now(engine, slot, process);
}

static bool identity_among(const struct kw_rules *rules, uint64_t inode, uint32_t device)
{
	for (uint32_t i = 0; i < rules->files_count; i++)
		if (rules->files[i].inode == inode && rules->files[i].device == device)
			return true;
	return false;
}

static bool path_among(const struct kw_engine *engine, const struct kw_texts *texts, uint32_t path)
{
	return path != NONE && kw_texts_have(texts, kw_path_at(engine, path));
}

/* Whether the image has the name of an executable. Of what runs already that is enough: its file may have been replaced
 * since, as an upgrade does. */
static bool named_as_expected(const struct kw_engine *engine, const struct kw_rules *rules,
			      const struct kw_process *process)
{
	return path_among(engine, &rules->executables, process->path);
}

/* Whether the image that the process runs is among the executables, by what is known of it. */
static bool executable_expected(const struct kw_engine *engine, const struct kw_rules *rules,
				const struct kw_process *process)
{
	if (rules->files_known && process->inode)
		return identity_among(rules, process->inode, process->device);
	return named_as_expected(engine, rules, process);
}

static bool unexpected(const struct kw_engine *engine, uint32_t slot, const struct kw_image *record,
		       const struct kw_process *process)
{
	const struct kw_rules *rules = engine->slots[slot].rules;

	if (rules->files_known && record->header.flags & KW_JUDGED)
		return record->unexpected & slot_bit(slot);
	if (!(record->header.flags & KW_HAS_EXE))
		return false;
	if (record->header.kind == KW_ADOPT && named_as_expected(engine, rules, process))
		return false;
	return !executable_expected(engine, rules, process);
}

static bool edge_expected(const struct kw_engine *engine, const struct kw_rules *rules, uint32_t before, uint32_t path)
{
	static const char arrow[] = " -> ";
	const struct kw_path *from = kw_path_at(engine, before), *to = kw_path_at(engine, path);
	const char *text = rules->edges.bytes;

	for (uint32_t i = 0; i < rules->edges.count; i++) {
		size_t length = strlen(text);

		if (length == from->length + sizeof(arrow) - 1 + to->length &&
		    !memcmp(text, from->text, from->length) && !memcmp(text + from->length, arrow, sizeof(arrow) - 1) &&
		    !memcmp(text + length - to->length, to->text, to->length))
			return true;
		text += length + 1;
	}
	return false;
}

static bool base_name_is(const uint8_t *path, uint32_t length, const char *name, size_t name_length)
{
	return length >= name_length && !memcmp(path + length - name_length, name, name_length) &&
	       (length == name_length || path[length - name_length - 1] == '/');
}

/* Whether a root's new image is what its watch means: by the path, or by name of process, file or script. */
static bool root_expected(const struct kw_engine *engine, const struct kw_rules *rules, const struct kw_image *record,
			  const struct kw_process *process)
{
	const char *name = rules->root.bytes;
	size_t length = strlen(name);
	const struct kw_path *path = kw_path_at(engine, process->path);
	uint32_t comm = kw_comm_length(record->comm);

	if (executable_expected(engine, rules, process))
		return true;
	if (!path)
		return true; /* nothing can be said */
	if (*name == '/')
		return path->length == length && !memcmp(path->text, name, length);
	return (comm == length && !memcmp(record->comm, name, length)) ||
	       base_name_is((const uint8_t *)path->text, path->length, name, length) ||
	       (record->script.length &&
		base_name_is((const uint8_t *)record + record->script.offset, record->script.length, name, length));
}

static void verdict(struct kw_engine *engine, uint32_t slot, struct kw_process *process, enum kw_rule rule, bool bad,
		    uint32_t before, const struct kw_image *record)
{
	struct kw_culprit culprit = {.path = process->path, .before = before};

	if (!judged(engine->slots[slot].rules, rule))
		return;
	if (bad)
		kw_breaks(engine, slot, process, rule, &culprit, record);
	else
		kw_breaks_no_more(engine, slot, process, 1U << rule);
}

/* Adopted with the image of its parent: it need not have executed it, and a fork is no exec. */
static bool shares_image(struct kw_engine *engine, const struct kw_image *record, const struct kw_process *process)
{
	const struct kw_process *parent = kw_process_parent(engine, process);

	return record->header.kind == KW_ADOPT && parent && parent->inode && parent->inode == process->inode &&
	       parent->device == process->device;
}

/* A process of slot runs a new image, or was adopted with one. before: what it ran, NONE: unknown. */
void kw_rules_image(struct kw_engine *engine, uint32_t slot, const struct kw_image *record, struct kw_process *process,
		    uint32_t before)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	uint16_t flags = record->header.flags;
	bool executed = record->header.kind == KW_EXEC, edge;

	if (process->roots & slot_bit(slot)) {
		if (executed && !(record->fresh & slot_bit(slot)) && judged(rules, RULE_ROOT))
			verdict(engine, slot, process, RULE_ROOT, !root_expected(engine, rules, record, process), NONE,
				record);
		return;
	}
	judge_depth(engine, slot, process);
	kw_rules_user(engine, slot, process);
	if (shares_image(engine, record, process)) {
		const struct kw_process *parent = kw_process_parent(engine, process);

		kw_breaks_as(engine, slot, process, parent);
		return;
	}
	process->flags |= PROCESS_EXECUTED;
	edge = executed && judged(rules, RULE_EDGES) && before != NONE && process->path != NONE;
	kw_breaks_no_more(engine, slot, process, 1 << RULE_ROOT); /* of the root that forked it */
	verdict(engine, slot, process, RULE_EXECUTABLES, unexpected(engine, slot, record, process), NONE, record);
	verdict(engine, slot, process, RULE_EDGES, edge && !edge_expected(engine, rules, before, process->path), before,
		record);
	verdict(engine, slot, process, RULE_MEMFD, flags & KW_MEMFD, NONE, record);
	verdict(engine, slot, process, RULE_DELETED, executed && (flags & KW_DELETED), NONE, record);
	verdict(engine, slot, process, RULE_TEMPORARY, flags & KW_TEMPORARY, NONE, record);
}

static void image_anew(struct kw_engine *engine, uint32_t slot, struct kw_process *process)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	const struct kw_breach *breach = kw_breach_of(engine, process, slot, RULE_EDGES);
	bool expected = executable_expected(engine, rules, process);

	if (breach && edge_expected(engine, rules, breach->before, breach->path))
		kw_breaks_no_more(engine, slot, process, 1 << RULE_EDGES);
	if (kw_breach_of(engine, process, slot, RULE_ROOT) && expected)
		kw_breaks_no_more(engine, slot, process, 1 << RULE_ROOT);
	if (process->roots & slot_bit(slot) || !(process->flags & PROCESS_EXECUTED))
		return;
	if (!kw_breach_of(engine, process, slot, RULE_EXECUTABLES))
		expected |= named_as_expected(engine, rules, process);
	verdict(engine, slot, process, RULE_EXECUTABLES, !expected && (process->path != NONE || process->inode), NONE,
		NULL);
	verdict(engine, slot, process, RULE_MEMFD, process->flags & PROCESS_MEMFD, NONE, NULL);
	verdict(engine, slot, process, RULE_DELETED, process->flags & PROCESS_DELETED, NONE, NULL);
	verdict(engine, slot, process, RULE_TEMPORARY, process->flags & PROCESS_TEMPORARY, NONE, NULL);
}

/* Judge all who live, by what was kept of them. images: the rules of slot have changed, so what everybody runs is
 * judged too, but not the edge that they came by. */
void kw_rules_anew(struct kw_engine *engine, uint32_t slot, bool images)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	uint32_t count = kw_table_order(engine);

	for (uint32_t i = 0; i < count; i++) {
		struct kw_process *process = &engine->table.processes[engine->table.order[i] - 1];

		if (!(process->watches & slot_bit(slot)))
			continue;
		if (images && rules->judged & (IMAGE_RULES | 1 << RULE_ROOT))
			image_anew(engine, slot, process);
		if (process->roots & slot_bit(slot))
			continue;
		judge_depth(engine, slot, process);
		kw_rules_user(engine, slot, process);
	}
}
