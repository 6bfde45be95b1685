/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS messages of kin, and the names that answers gave to addresses: the last NAMES_KEPT addresses. Whoever answers kin
 * may give any address any name: it is shown, and nothing is decided by it.
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

static void remember(struct kw_names *names, const uint8_t *address, const char *text, uint32_t length)
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
	}
	order_append(names, index);
	cell = at(names, index);
	cell->length = (uint8_t)length;
	memcpy(cell->text, text, length);
}

/* What an answer called this address, NULL: none did, of late. */
const struct kw_name *kw_name_of(struct kw_engine *engine, const uint8_t *address)
{
	uint16_t index = find(&engine->names, address);

	return index == NONE ? NULL : at(&engine->names, index);
}

void kw_dns_happens(struct kw_engine *engine, const struct kw_dns *record)
{
	const uint8_t *bytes = (const uint8_t *)record + record->message.offset;
	uint64_t slots = record->header.watches & engine->defined;
	struct kw_dns_message *message = &engine->dns;

	if (!slots)
		return;
	kw_dns_read(message, bytes, record->message.length, record->total > record->message.length);
	for (; slots; slots &= slots - 1)
		kw_line_dns(engine, lowest_slot(slots), record, message);
	if (!record->incoming || !message->response || message->name_length > sizeof(engine->names.cells->text))
		return;
	for (uint32_t i = 0; i < message->answers; i++)
		if (message->answer[i].is_address)
			remember(&engine->names, message->answer[i].address, message->name, message->name_length);
}
