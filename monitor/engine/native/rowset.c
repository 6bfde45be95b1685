/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set of rows: one array of them, and a table of their numbers by hash (linear probing, at most half full). Knows
 * nothing of what a row says.
 */
#include "internal.h"

#include <stdlib.h>

#include "rowset.h"

enum { ROOM_AT_FIRST = 256 };

#define ROOM_AT_MOST (1U << 30)

static uint64_t mixed(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static uint32_t hash_of(const struct rowset *set, const uint8_t *row)
{
	uint64_t hash = set->seed, word;
	uint32_t at = 0;

	for (; at + sizeof(word) <= set->width; at += sizeof(word)) {
		memcpy(&word, row + at, sizeof(word));
		hash = mixed(hash, word);
	}
	if (at < set->width) {
		word = 0;
		memcpy(&word, row + at, set->width - at);
		hash = mixed(hash, word);
	}
	return (uint32_t)hash;
}

static uint32_t number_in(uint64_t cell)
{
	return (uint32_t)cell - 1;
}

/* The cell of an equal row, or the free one where this row belongs. There are cells. */
static uint64_t *cell_of(const struct rowset *set, const uint8_t *row, uint32_t hash)
{
	uint64_t mask = 2 * (uint64_t)set->room - 1;
	uint64_t place = hash & mask;

	for (uint64_t cell = set->cells[place]; cell; cell = set->cells[place]) {
		if (cell >> 32 == hash && !memcmp(rowset_at(set, number_in(cell)), row, set->width))
			break;
		place = (place + 1) & mask;
	}
	return &set->cells[place];
}

static int grow(struct rowset *set, uint32_t room)
{
	uint64_t mask = 2 * (uint64_t)room - 1;
	uint64_t *cells = calloc(mask + 1, sizeof(*cells));
	uint8_t *rows = cells ? realloc(set->rows, (size_t)room * set->width) : NULL;

	if (!rows) {
		free(cells);
		return -ENOMEM;
	}
	for (uint64_t old = 0; old < 2 * (uint64_t)set->room; old++) {
		uint64_t place = set->cells[old] >> 32 & mask;

		if (!set->cells[old])
			continue;
		while (cells[place])
			place = (place + 1) & mask;
		cells[place] = set->cells[old];
	}
	free(set->cells);
	set->cells = cells;
	set->rows = rows;
	set->room = room;
	return 0;
}

int rowset_reserve(struct rowset *set, uint64_t count)
{
	uint32_t room = set->room ? set->room : ROOM_AT_FIRST;

	if (count > ROOM_AT_MOST)
		return -ENOMEM;
	while (room < count)
		room *= 2;
	return room > set->room ? grow(set, room) : 0;
}

int64_t rowset_put(struct rowset *set, const uint8_t *row)
{
	uint32_t hash = hash_of(set, row);
	uint64_t *cell;

	if (set->count == set->room && rowset_reserve(set, (uint64_t)set->count + 1))
		return -ENOMEM;
	cell = cell_of(set, row, hash);
	if (!*cell) {
		memcpy(rowset_at(set, set->count), row, set->width);
		*cell = (uint64_t)hash << 32 | ++set->count;
	}
	return number_in(*cell);
}

int rowset_has(const struct rowset *set, const uint8_t *row)
{
	return set->count && *cell_of(set, row, hash_of(set, row));
}

void rowset_empty(struct rowset *set)
{
	if (set->count)
		memset(set->cells, 0, 2 * (size_t)set->room * sizeof(*set->cells));
	set->count = 0;
}

void rowset_free(struct rowset *set)
{
	free(set->rows);
	free(set->cells);
	set->rows = NULL;
	set->cells = NULL;
	set->count = set->room = 0;
}
