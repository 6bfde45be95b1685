/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who breaks a rule on lineage: holds what each living process breaks, raises the alarm line at the first culprit and a
 * further line for each further one, which must not hide behind the first, and the clear line when nobody breaks the
 * rule any more. Knows no records beyond what an alarm quotes.
 *
 * OFFENDERS_KEPT distinct culprits are named at once; processes of more are counted until they end.
 */
#include "internal.h"

#include <stdlib.h>

static const struct {
	const char *behavior, *metric;
} words[RULES] = {
    [RULE_ROOT] = {"root_image", "root_image"},
    [RULE_EXECUTABLES] = {"executables", "child_exes"},
    [RULE_EDGES] = {"edges", "edges"},
    [RULE_DEPTH] = {"depth", "depth"},
    [RULE_RATE] = {"forks_per_minute", "forks_per_minute"},
    [RULE_UIDS] = {"uids", "uids"},
    [RULE_MEMFD] = {"memfd", "memfd"},
    [RULE_DELETED] = {"deleted", "deleted"},
    [RULE_TEMPORARY] = {"temporary", "temporary"},
};

static char *put_word(char *at, const char *word)
{
	return kw_put(at, word, strlen(word));
}

static char *put_path(struct kw_engine *engine, char *at, uint32_t path)
{
	const struct kw_path *found = kw_path_at(engine, path);

	return kw_put_string(at, (const uint8_t *)(found ? found->text : ""), found ? found->length : 0,
			     &engine->lossy);
}

static char *put_edge(struct kw_engine *engine, char *at, uint32_t before, uint32_t path)
{
	char *joint;

	at = put_path(engine, at, before) - 1; /* without the quotes between the two */
	joint = at = PUT(at, " -> ");
	at = put_path(engine, at, path) - 1;
	memmove(joint, joint + 1, (size_t)(at + 1 - joint));
	return at;
}

static char *put_culprit(struct kw_engine *engine, char *at, enum kw_rule rule, const struct kw_culprit *culprit)
{
	if (rule == RULE_EDGES)
		return put_edge(engine, at, culprit->before, culprit->path);
	return rule == RULE_UIDS ? kw_put_number(at, culprit->number) : put_path(engine, at, culprit->path);
}

/* Of depth: how deep the deepest is that is too deep; when none is any more, the limit. */
static uint64_t deepest(const struct kw_rules *rules)
{
	const struct kw_broken *broken = &rules->broken[RULE_DEPTH];
	uint32_t most = rules->depth;

	for (uint32_t i = 0; i < broken->count; i++)
		if (broken->kept[i].number > most)
			most = broken->kept[i].number;
	return most;
}

static char *put_value(struct kw_engine *engine, char *at, const struct kw_rules *rules, enum kw_rule rule)
{
	const struct kw_broken *broken = &rules->broken[rule];

	if (rule == RULE_DEPTH || rule == RULE_RATE)
		return kw_put_number(at, rule == RULE_DEPTH ? deepest(rules) : rules->rate.sum);
	*at++ = '[';
	for (uint32_t i = 0; i < broken->count; i++) {
		if (i)
			*at++ = ',';
		at = put_culprit(engine, at, rule, &broken->kept[i]);
	}
	*at++ = ']';
	return at;
}

/* What may be in the value: of forbidden images nothing. */
static const struct kw_texts *expected_texts(const struct kw_rules *rules, enum kw_rule rule)
{
	static const struct kw_texts none;

	if (rule == RULE_EXECUTABLES)
		return &rules->executables;
	if (rule == RULE_EDGES)
		return &rules->edges;
	return rule == RULE_ROOT ? &rules->root : &none;
}

static char *put_criteria(struct kw_engine *engine, char *at, const struct kw_rules *rules, enum kw_rule rule)
{
	const struct kw_texts *texts = expected_texts(rules, rule);
	const char *text = texts->bytes;

	if (rule == RULE_DEPTH || rule == RULE_RATE) {
		at = PUT(at, "{\"comparisonOperator\":\"less-than-equals\",\"value\":{\"number\":");
		at = kw_put_number(at, rule == RULE_DEPTH ? rules->depth : rules->forks_per_minute);
		return PUT(at, "}}");
	}
	at = PUT(at, "{\"comparisonOperator\":\"in-set\",\"value\":{\"");
	if (rule == RULE_UIDS) {
		at = PUT(at, "numbers\":[");
		for (uint32_t i = 0; i < rules->uids_count; i++) {
			if (i)
				*at++ = ',';
			at = kw_put_number(at, rules->uids[i]);
		}
		return PUT(at, "]}}");
	}
	at = PUT(at, "strings\":[");
	for (uint32_t i = 0; i < texts->count; i++) {
		size_t length = strlen(text);

		if (i)
			*at++ = ',';
		at = kw_put_string(at, (const uint8_t *)text, length, &engine->lossy);
		text += length + 1;
	}
	return PUT(at, "]}}");
}

static char *put_condition(struct kw_engine *engine, char *at, uint32_t slot, enum kw_rule rule)
{
	const struct kw_slot *watch = &engine->slots[slot];
	const struct kw_broken *broken = &watch->rules->broken[rule];

	at = kw_put_watch(engine, at, slot);
	at = PUT(at, ",\"behavior\":\"");
	at = put_word(at, words[rule].behavior);
	at = PUT(at, "\",\"metric\":\"");
	at = put_word(at, words[rule].metric);
	*at++ = '_';
	at = kw_put(at, watch->name, watch->name_length);
	at = PUT(at, "\",\"value\":");
	at = put_value(engine, at, watch->rules, rule);
	at = PUT(at, ",\"criteria\":");
	at = put_criteria(engine, at, watch->rules, rule);
	at = PUT(at, ",\"since\":");
	at = kw_put_time(engine, at, broken->since_wall_ns);
	if (!broken->last.pid)
		return at;
	at = PUT(at, ",\"process_ids\":[");
	at = kw_put_process_id(at, broken->last.pid, broken->last.start_ns);
	*at++ = ']';
	return at;
}

static uint64_t path_room(struct kw_engine *engine, uint32_t path)
{
	const struct kw_path *found = kw_path_at(engine, path);

	return found ? (uint64_t)found->length * STRING_GROWTH : 0;
}

static uint64_t condition_room(struct kw_engine *engine, uint32_t slot, enum kw_rule rule)
{
	const struct kw_rules *rules = engine->slots[slot].rules;
	const struct kw_texts *texts = expected_texts(rules, rule);
	const struct kw_broken *broken = &rules->broken[rule];
	uint64_t room = LINE_ROOM + texts->length * STRING_GROWTH + (uint64_t)(texts->count + rules->uids_count) * 16;

	for (uint32_t i = 0; i < broken->count; i++)
		room += 32 + path_room(engine, broken->kept[i].path) + path_room(engine, broken->kept[i].before);
	return room;
}

/* The image, and how it was called, of the record that broke a rule. */
static char *put_cause(struct kw_engine *engine, char *at, const struct kw_process *process,
		       const struct kw_image *record)
{
	if (process && process->path != NONE) {
		at = PUT(at, ",\"exe\":");
		at = put_path(engine, at, process->path);
	}
	if (record && (record->header.flags & KW_HAS_ARGV)) {
		at = PUT(at, ",\"argv\":");
		at = kw_put_strings(at, (const uint8_t *)record + record->argv.offset, record->argv.length,
				    &engine->lossy);
	}
	return at;
}

static void alarm_raise(struct kw_engine *engine, uint32_t slot, enum kw_rule rule, struct kw_process *process,
			const struct kw_image *record)
{
	struct kw_rules *rules = engine->slots[slot].rules;
	struct kw_broken *broken = &rules->broken[rule];
	struct kw_lineage lineage;
	uint64_t room;
	char *at;

	if (!(rules->alarmed >> rule & 1))
		broken->since_wall_ns = kw_wall(engine, engine->now_ns);
	rules->alarmed |= 1U << rule;
	broken->last = (struct kw_id){.pid = process->pid, .start_ns = process->start_ns};
	kw_lineage_of(engine, slot, process, &lineage);
	room = condition_room(engine, slot, rule) + lineage.room + path_room(engine, process->path);
	if (record)
		room += (uint64_t)record->argv.length * STRING_GROWTH;
	at = kw_line_begin(engine, room, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, engine->now_ns));
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"alarm\"");
	at = put_condition(engine, at, slot, rule);
	at = put_cause(engine, at, process, record);
	at = kw_put_lineage(engine, at, slot, &lineage);
	kw_line_end(engine, at);
	engine->lines[engine->filling].alarms++;
}

static void alarm_clear(struct kw_engine *engine, uint32_t slot, enum kw_rule rule)
{
	char *at = kw_line_begin(engine, condition_room(engine, slot, rule), BATCH_BYTES + ALARM_BYTES,
				 kw_wall(engine, engine->now_ns));

	engine->slots[slot].rules->alarmed &= ~(1U << rule);
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"clear\"");
	at = put_condition(engine, at, slot, rule);
	kw_line_end(engine, at);
	engine->lines[engine->filling].clears++;
}

/* Clear the alarms of slot that nobody keeps up any more. withdrawn: rules that are not judged any more. */
void kw_rules_settle(struct kw_engine *engine, uint32_t slot, uint32_t withdrawn)
{
	struct kw_rules *rules = engine->slots[slot].rules;

	for (uint32_t left = rules->alarmed; left; left &= left - 1) {
		uint32_t rule = lowest_slot(left);
		bool over = !rules->broken[rule].count && !rules->broken[rule].beyond;

		if (rule == RULE_RATE) {
			kw_rate_reaches(&rules->rate, engine->now_ns);
			over = rules->rate.sum <= rules->forks_per_minute || withdrawn >> RULE_RATE & 1;
			if (over)
				engine->hurried &= ~slot_bit(slot);
		}
		if (over)
			alarm_clear(engine, slot, rule);
	}
}

static struct kw_culprit *find(struct kw_broken *broken, uint32_t path, uint32_t before, uint32_t number)
{
	for (uint32_t i = 0; i < broken->count; i++) {
		struct kw_culprit *culprit = &broken->kept[i];

		if (culprit->path == path && culprit->before == before && culprit->number == number)
			return culprit;
	}
	return NULL;
}

static uint32_t breach_new(struct kw_breaches *breaches)
{
	uint32_t index = breaches->free_cell;

	if (index != NONE) {
		breaches->free_cell = breaches->cells[index - 1].next;
		return index;
	}
	if (breaches->used == breaches->room) {
		uint32_t room = breaches->room ? breaches->room * 2 : 256;
		struct kw_breach *grown;

		if (room > BREACHES_KEPT)
			return NONE;
		grown = realloc(breaches->cells, room * sizeof(*grown));
		if (!grown)
			return NONE;
		breaches->cells = grown;
		breaches->room = room;
	}
	return ++breaches->used;
}

static void culprit_release(struct kw_engine *engine, struct kw_broken *broken, struct kw_culprit *culprit)
{
	if (--culprit->processes)
		return;
	kw_path_release(engine, culprit->path);
	kw_path_release(engine, culprit->before);
	broken->count--;
	memmove(culprit, culprit + 1, (size_t)(&broken->kept[broken->count] - culprit) * sizeof(*culprit));
}

struct kw_breach *kw_breach_of(struct kw_engine *engine, const struct kw_process *process, uint32_t slot,
			       enum kw_rule rule)
{
	for (uint32_t index = process->breaches; index != NONE; index = engine->breaches.cells[index - 1].next) {
		struct kw_breach *breach = &engine->breaches.cells[index - 1];

		if (breach->slot == slot && breach->rule == rule)
			return breach;
	}
	return NULL;
}

/* The process breaks these rules (bits) of slot no more. Clearing is left to kw_rules_settle(). */
void kw_breaks_no_more(struct kw_engine *engine, uint32_t slot, struct kw_process *process, uint32_t rules)
{
	uint32_t *link = &process->breaches;

	while (*link != NONE) {
		uint32_t index = *link;
		struct kw_breach *breach = &engine->breaches.cells[index - 1];
		struct kw_broken *broken;

		if (breach->slot != slot || !(rules >> breach->rule & 1)) {
			link = &breach->next;
			continue;
		}
		broken = &engine->slots[slot].rules->broken[breach->rule];
		if (breach->beyond)
			broken->beyond--;
		else
			culprit_release(engine, broken, find(broken, breach->path, breach->before, breach->number));
		*link = breach->next;
		breach->next = engine->breaches.free_cell;
		engine->breaches.free_cell = index;
	}
}

/* The process keeps the culprit's place; false: it ended already, is in no table, or there is no room for it. */
static bool hold(struct kw_engine *engine, uint32_t slot, struct kw_process *process, enum kw_rule rule,
		 const struct kw_culprit *culprit, bool beyond)
{
	uint32_t index = process->flags & PROCESS_LIVE ? breach_new(&engine->breaches) : NONE;

	if (index == NONE)
		return false;
	engine->breaches.cells[index - 1] = (struct kw_breach){.next = process->breaches,
							       .slot = (uint8_t)slot,
							       .rule = (uint8_t)rule,
							       .beyond = beyond,
							       .path = culprit->path,
							       .before = culprit->before,
							       .number = culprit->number};
	process->breaches = index;
	return true;
}

/* The process breaks a rule of slot by this culprit. record: the image that did it, NULL: none. */
void kw_breaks(struct kw_engine *engine, uint32_t slot, struct kw_process *process, enum kw_rule rule,
	       const struct kw_culprit *culprit, const struct kw_image *record)
{
	struct kw_rules *rules = engine->slots[slot].rules;
	struct kw_broken *broken = &rules->broken[rule];
	struct kw_breach *standing = kw_breach_of(engine, process, slot, rule);
	struct kw_culprit *known;
	bool first;

	if (standing && !standing->beyond && standing->path == culprit->path && standing->before == culprit->before &&
	    standing->number == culprit->number)
		return;
	kw_breaks_no_more(engine, slot, process, 1U << rule); /* by what it did before; nothing clears in between */
	known = find(broken, culprit->path, culprit->before, culprit->number);
	first = !known && (rule != RULE_DEPTH || !broken->count);
	if (!known && broken->count == OFFENDERS_KEPT) {
		if (hold(engine, slot, process, rule, culprit, true))
			broken->beyond++;
		return;
	}
	if (!known) {
		known = &broken->kept[broken->count++];
		*known = (struct kw_culprit){culprit->path, culprit->before, culprit->number, 0};
		kw_path_use(engine, culprit->path);
		kw_path_use(engine, culprit->before);
	}
	known->processes++;
	if (first)
		alarm_raise(engine, slot, rule, process, record);
	if (!hold(engine, slot, process, rule, culprit, false))
		culprit_release(engine, broken, known);
}

/* A child breaks by its image what its parent breaks by it. */
void kw_breaks_as(struct kw_engine *engine, uint32_t slot, struct kw_process *process, const struct kw_process *parent)
{
	for (uint32_t index = parent->breaches; index != NONE; index = engine->breaches.cells[index - 1].next) {
		struct kw_breach breach = engine->breaches.cells[index - 1];
		struct kw_culprit culprit = {breach.path, breach.before, breach.number, 0};

		if (breach.slot == slot && breach.rule != RULE_DEPTH && breach.rule != RULE_UIDS)
			kw_breaks(engine, slot, process, breach.rule, &culprit, NULL);
	}
}

/* More were forked within a minute than may be; process is the one that came last. */
void kw_rate_alarm(struct kw_engine *engine, uint32_t slot, struct kw_process *process)
{
	engine->hurried |= slot_bit(slot);
	if (!(engine->slots[slot].rules->alarmed >> RULE_RATE & 1))
		alarm_raise(engine, slot, RULE_RATE, process, NULL);
}
