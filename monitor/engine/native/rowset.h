/* SPDX-License-Identifier: Apache-2.0 */
/* Distinct rows of one width, in the order in which they came. Zeroed but for width and seed it is empty. */
#ifndef KINWATCH_ROWSET_H
#define KINWATCH_ROWSET_H

#include <stdint.h>

struct rowset {
	uint8_t *rows;
	uint64_t *cells; /* a row's hash, 32 bits, and its number plus one; by hash; 0: free */
	uint64_t seed;
	uint32_t width, count, room; /* rows there is memory for; twice as many cells */
};

static inline uint8_t *rowset_at(const struct rowset *set, uint32_t number)
{
	return set->rows + (uint64_t)number * set->width;
}

/* The number of an equal row, or of this one, added. -ENOMEM. */
int64_t rowset_put(struct rowset *set, const uint8_t *row);
/* Have room for so many rows at once. -ENOMEM. */
int rowset_reserve(struct rowset *set, uint64_t count);
int rowset_has(const struct rowset *set, const uint8_t *row);
/* Forget the rows, keep the memory; and that, too. */
void rowset_empty(struct rowset *set);
void rowset_free(struct rowset *set);

#endif
