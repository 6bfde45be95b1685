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

static uint64_t hash_of(const struct rowset *set, const uint8_t *row)
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
	return hash;
}

/* The cell of an equal row, or the free one where this row belongs. There are cells. */
static uint32_t *cell_of(const struct rowset *set, const uint8_t *row)
{
	uint64_t mask = 2 * (uint64_t)set->room - 1;
	uint64_t place = hash_of(set, row) & mask;

	while (set->cells[place] && memcmp(rowset_at(set, set->cells[place] - 1), row, set->width) != 0)
		place = (place + 1) & mask;
	return &set->cells[place];
}

static int grow(struct rowset *set)
{
	uint32_t room = set->room ? 2 * set->room : ROOM_AT_FIRST;
	uint32_t *cells;
	uint8_t *rows;

	if (room > ROOM_AT_MOST)
		return -ENOMEM;
	cells = calloc(2 * (size_t)room, sizeof(*cells));
	rows = cells ? realloc(set->rows, (size_t)room * set->width) : NULL;
	if (!rows) {
		free(cells);
		return -ENOMEM;
	}
	free(set->cells);
	set->cells = cells;
	set->rows = rows;
	set->room = room;
	for (uint32_t number = 0; number < set->count; number++)
		*cell_of(set, rowset_at(set, number)) = number + 1;
	return 0;
}

int64_t rowset_put(struct rowset *set, const uint8_t *row)
{
	uint32_t *cell;

	if (set->count == set->room && grow(set))
		return -ENOMEM;
	cell = cell_of(set, row);
	if (!*cell) {
		memcpy(rowset_at(set, set->count), row, set->width);
		*cell = ++set->count;
	}
	return *cell - 1;
}

int rowset_has(const struct rowset *set, const uint8_t *row)
{
	return set->count && *cell_of(set, row);
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
