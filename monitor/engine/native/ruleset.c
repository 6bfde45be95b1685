/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is expected of a lineage: takes the rules of a watch, keeps a copy, and has everybody judged anew. Knows neither
 * records nor lines.
 */
#include "internal.h"

#include <stdlib.h>

bool kw_texts_have(const struct kw_texts *texts, const struct kw_path *path)
{
	const char *text = texts->bytes;

	for (uint32_t i = 0; i < texts->count; i++) {
		size_t length = strlen(text);

		if (length == path->length && !memcmp(text, path->text, length))
			return true;
		text += length + 1;
	}
	return false;
}

static void *copy(const void *bytes, uint64_t length, int *error)
{
	void *made = length ? malloc(length) : NULL;

	if (length && !made)
		*error = -ENOMEM;
	if (made)
		memcpy(made, bytes, length);
	return made;
}

static struct kw_texts texts_copy(const char *bytes, int32_t count, int *error)
{
	struct kw_texts texts = {.count = count > 0 ? (uint32_t)count : 0};

	for (uint32_t i = 0; i < texts.count; i++)
		texts.length += strlen(bytes + texts.length) + 1;
	texts.bytes = copy(bytes, texts.length, error);
	return texts;
}

static void contents_free(struct kw_rules *rules)
{
	free(rules->executables.bytes);
	free(rules->edges.bytes);
	free(rules->root.bytes);
	free(rules->files);
	free(rules->uids);
}

/* Judged bits and copies of everything; alarms and counts are left alone. */
static int fill(struct kw_rules *rules, const struct kw_expected_lineage *expected)
{
	int error = 0;

	*rules = (struct kw_rules){
	    .executables = texts_copy(expected->executables, expected->executables_count, &error),
	    .edges = texts_copy(expected->edges, expected->edges_count, &error),
	    .root = texts_copy(expected->root, expected->root ? 1 : 0, &error),
	    .files_known = expected->files_count >= 0,
	    .files_count = expected->files_count > 0 ? (uint32_t)expected->files_count : 0,
	    .uids_count = expected->uids_count > 0 ? (uint32_t)expected->uids_count : 0,
	    .depth = expected->depth > 0 ? (uint32_t)expected->depth : 0,
	    .forks_per_minute = expected->forks_per_minute > 0 ? (uint32_t)expected->forks_per_minute : 0,
	};
	rules->files = copy(expected->files, rules->files_count * sizeof(*rules->files), &error);
	rules->uids = copy(expected->uids, rules->uids_count * sizeof(*rules->uids), &error);
	rules->judged |= (uint32_t)(expected->root != NULL) << RULE_ROOT;
	rules->judged |= (uint32_t)(expected->executables_count >= 0) << RULE_EXECUTABLES;
	rules->judged |= (uint32_t)(expected->edges_count >= 0) << RULE_EDGES;
	rules->judged |= (uint32_t)(expected->depth >= 0) << RULE_DEPTH;
	rules->judged |= (uint32_t)(expected->forks_per_minute >= 0) << RULE_RATE;
	rules->judged |= (uint32_t)(expected->uids_count >= 0) << RULE_UIDS;
	rules->judged |= (uint32_t) !!(expected->forbidden & KW_MEMFD) << RULE_MEMFD;
	rules->judged |= (uint32_t) !!(expected->forbidden & KW_DELETED) << RULE_DELETED;
	rules->judged |= (uint32_t) !!(expected->forbidden & KW_TEMPORARY) << RULE_TEMPORARY;
	return error;
}

/* Nobody breaks these rules of slot any more, and alarms about them are over. */
static void withdraw(struct kw_engine *engine, uint32_t slot, uint32_t rules)
{
	if (!rules)
		return;
	for (uint32_t i = 0; i < engine->table.used; i++)
		kw_breaks_no_more(engine, slot, &engine->table.processes[i], rules);
	for (uint32_t rule = 0; rule < RULES; rule++)
		if (rules >> rule & 1)
			engine->slots[slot].rules->broken[rule].beyond = 0;
	kw_rules_settle(engine, slot, rules);
}

/* The watch of slot ends, or nothing is expected of its lineage any more. */
void kw_rules_end(struct kw_engine *engine, uint32_t slot)
{
	struct kw_rules *rules = engine->slots[slot].rules;

	if (!rules)
		return;
	withdraw(engine, slot, (1U << RULES) - 1);
	contents_free(rules);
	free(rules);
	engine->slots[slot].rules = NULL;
	engine->ruled &= ~slot_bit(slot);
	engine->hurried &= ~slot_bit(slot);
}

static int rules_place(struct kw_engine *engine, uint32_t slot, struct kw_rules *fresh)
{
	struct kw_rules *rules = engine->slots[slot].rules;

	if (!rules)
		rules = calloc(1, sizeof(*rules));
	if (!rules)
		return -ENOMEM;
	engine->slots[slot].rules = rules;
	withdraw(engine, slot, rules->judged & ~fresh->judged);
	contents_free(rules);
	fresh->alarmed = rules->alarmed;
	fresh->rate = rules->rate;
	memcpy(fresh->broken, rules->broken, sizeof(fresh->broken));
	*rules = *fresh;
	engine->ruled |= slot_bit(slot);
	kw_rules_anew(engine, slot, true);
	kw_rules_settle(engine, slot, 0);
	return 0;
}

int kw_engine_expect_lineage(struct kw_engine *engine, uint32_t slot, const struct kw_expected_lineage *expected)
{
	const int32_t counts[] = {expected->executables_count, expected->edges_count, expected->uids_count,
				  expected->files_count};
	struct kw_rules *fresh;
	int error;

	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
		if (counts[i] < -1 || counts[i] > MEMBERS_MOST)
			return -EINVAL;
	if (slot >= KW_SLOTS || expected->depth < -1 || expected->depth > UINT32_MAX ||
	    expected->forks_per_minute < -1 || expected->forks_per_minute > UINT32_MAX)
		return -EINVAL;
	fresh = malloc(sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	error = fill(fresh, expected);
	pthread_mutex_lock(&engine->lock);
	if (!error && !(engine->defined & slot_bit(slot)))
		error = -ENOENT;
	if (!error && fresh->judged)
		error = rules_place(engine, slot, fresh);
	else if (!error)
		kw_rules_end(engine, slot);
	if (error || !fresh->judged)
		contents_free(fresh);
	pthread_mutex_unlock(&engine->lock);
	free(fresh);
	return error;
}
