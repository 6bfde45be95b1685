/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS messages of kin, and the names that answers gave to addresses: the last NAMES_KEPT addresses. Whoever answers kin
 * may give any address any name: only an expectation of names relies on it, and only on answers that kin of its own
 * watch had.
 */
#include "internal.h"

#include <stdlib.h>

enum { NAME_CHAINS = NAMES_KEPT * 2 };

int kw_names_new(struct kw_names *names)
{
	names->cells = calloc(NAMES_KEPT, sizeof(*names->cells));
	names->chains = calloc(NAME_CHAINS, sizeof(*names->chains));
	if (names->cells && names->chains)
		return 0;
	kw_names_free(names);
	return -ENOMEM;
}

void kw_names_free(struct kw_names *names)
{
	free(names->cells);
	free(names->chains);
	memset(names, 0, sizeof(*names));
}

static struct kw_name *at(struct kw_names *names, uint16_t index)
{
	return &names->cells[index - 1];
}

static uint16_t *chain_of(struct kw_names *names, const uint8_t *address)
{
	uint64_t hash = kw_hash(address, 16);

	return &names->chains[(hash ^ hash >> 32) % NAME_CHAINS];
}

static uint16_t find(struct kw_names *names, const uint8_t *address)
{
	uint16_t index = *chain_of(names, address);

	while (index != NONE && memcmp(at(names, index)->address, address, 16) != 0)
		index = at(names, index)->next;
	return index;
}

static void order_remove(struct kw_names *names, uint16_t index)
{
	const struct kw_name *cell = at(names, index);

	if (cell->older != NONE)
		at(names, cell->older)->newer = cell->newer;
	else
		names->oldest = cell->newer;
	if (cell->newer != NONE)
		at(names, cell->newer)->older = cell->older;
	else
		names->newest = cell->older;
}

static void order_append(struct kw_names *names, uint16_t index)
{
	struct kw_name *cell = at(names, index);

	cell->older = names->newest;
	cell->newer = NONE;
	if (names->newest != NONE)
		at(names, names->newest)->newer = index;
	else
		names->oldest = index;
	names->newest = index;
}

/* A cell for a new address: the oldest one's when all are in use. */
static uint16_t cell_take(struct kw_names *names)
{
	uint16_t index = names->oldest, *link;

	if (names->count < NAMES_KEPT)
		return ++names->count;
	link = chain_of(names, at(names, index)->address);
	while (*link != index)
		link = &at(names, *link)->next;
	*link = at(names, index)->next;
	order_remove(names, index);
	return index;
}

static char lower(char c)
{
	return (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
}

/* "*.a.b" stands for every name below a.b, at any depth. A dot behind a backslash belongs to a label (RFC 4343 2.1). */
static bool matches(const char *pattern, const char *text, uint32_t length)
{
	bool below = pattern[0] == '*';
	const char *tail = below ? pattern + 1 : pattern;
	size_t size = strnlen(tail, length + 1);

	if (below ? size >= length || text[length - size - 1] == '\\' : size != length)
		return false;
	text += length - size;
	for (size_t i = 0; i < size; i++)
		if (lower(text[i]) != tail[i])
			return false;
	return true;
}

static bool is_expected(const struct kw_net_expect *net, const char *text, uint32_t length)
{
	for (uint32_t i = 0; i < net->names_bytes; i += (uint32_t)strlen(net->names + i) + 1)
		if (matches(net->names + i, text, length))
			return true;
	return false;
}

/* `told`, `expected`: slots whose kin had this answer, and those that expect the name. An address stays expected when
 * it is called something else later: names share addresses. */
static void remember(struct kw_names *names, const uint8_t *address, const struct kw_dns_message *message,
		     uint64_t told, uint64_t expected)
{
	uint16_t index = find(names, address), *chain = chain_of(names, address);
	struct kw_name *cell;

	if (index != NONE) {
		order_remove(names, index);
	} else {
		index = cell_take(names);
		memcpy(at(names, index)->address, address, 16);
		at(names, index)->next = *chain;
		*chain = index;
		at(names, index)->told = 0;
		at(names, index)->expected = 0;
	}
	order_append(names, index);
	cell = at(names, index);
	cell->told |= told;
	cell->expected |= expected;
	cell->length = (uint8_t)message->name_length;
	memcpy(cell->text, message->name, message->name_length);
}

/* What an answer called this address, NULL: none did, of late. */
const struct kw_name *kw_name_of(struct kw_engine *engine, const uint8_t *address)
{
	uint16_t index = find(&engine->names, address);

	return index == NONE ? NULL : at(&engine->names, index);
}

/* Did an answer to kin of slot call this address something that slot expects? */
bool kw_name_is_expected(struct kw_engine *engine, uint32_t slot, const uint8_t *address)
{
	const struct kw_name *name = kw_name_of(engine, address);

	return name && name->expected & slot_bit(slot);
}

/* slot expects other names: each address is judged by what it was called last. */
void kw_names_judge(struct kw_engine *engine, uint32_t slot)
{
	for (uint16_t index = engine->names.oldest; index != NONE; index = at(&engine->names, index)->newer) {
		struct kw_name *name = at(&engine->names, index);

		name->expected &= ~slot_bit(slot);
		if (name->told & slot_bit(slot) && is_expected(&engine->slots[slot].net, name->text, name->length))
			name->expected |= slot_bit(slot);
	}
}

void kw_names_unwatch(struct kw_engine *engine, uint32_t slot)
{
	for (uint16_t index = engine->names.oldest; index != NONE; index = at(&engine->names, index)->newer) {
		at(&engine->names, index)->told &= ~slot_bit(slot);
		at(&engine->names, index)->expected &= ~slot_bit(slot);
	}
}

void kw_dns_happens(struct kw_engine *engine, const struct kw_dns *record)
{
	const uint8_t *bytes = (const uint8_t *)record + record->message.offset;
	uint64_t slots = record->header.watches & engine->defined, expected = 0;
	struct kw_dns_message *message = &engine->dns;

	if (!slots)
		return;
	kw_dns_read(message, bytes, record->message.length, record->total > record->message.length);
	for (uint64_t left = slots; left; left &= left - 1)
		kw_line_dns(engine, lowest_slot(left), record, message);
	if (!record->incoming || !message->response || message->name_length > sizeof(engine->names.cells->text))
		return;
	for (uint64_t left = slots; left; left &= left - 1)
		if (is_expected(&engine->slots[lowest_slot(left)].net, message->name, message->name_length))
			expected |= slot_bit(lowest_slot(left));
	for (uint32_t i = 0; i < message->answers; i++)
		if (message->answer[i].is_address)
			remember(&engine->names, message->answer[i].address, message, slots, expected);
}
