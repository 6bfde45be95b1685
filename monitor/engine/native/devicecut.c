/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which entries of a long list a report keeps: the newest, then the most unusual. Knows rows, but neither where they
 * come from nor what a document looks like.
 */
#include "internal.h"

#include <stdlib.h>

#include "device.h"
#include "rowset.h"

_Static_assert(sizeof(struct kw_device_port) == 18 && sizeof(struct kw_device_connection) == 36 &&
		   sizeof(struct kw_device_shown) == 66,
	       "rows are written as they are compared: without holes");
_Static_assert(sizeof(((struct kw_device_shown *)0)->remote) >= ENDPOINT_TEXT, "every endpoint has room");

enum { SHOWN_BYTES = sizeof(struct kw_device_shown) };

/* What rows of a kind are: how wide, what makes one unusual, and how they are shown. */
struct form {
	uint32_t width, shown_width;
	uint32_t trait_at, trait_bytes;
	void (*show)(uint8_t *shown, const uint8_t *row);
};

/* An entry that may be kept: the lower its rank the better. */
struct candidate {
	uint64_t rank;
	uint8_t shown[SHOWN_BYTES];
};

/* The best so far, a heap with the worst on top. */
struct kept {
	const struct form *form;
	struct candidate *heap;
	uint64_t count, limit;
};

static int compared(const struct form *form, const struct candidate *one, const struct candidate *other)
{
	if (one->rank != other->rank)
		return one->rank < other->rank ? -1 : 1;
	return memcmp(one->shown, other->shown, form->shown_width);
}

static void sink(struct kept *kept, uint64_t at)
{
	struct candidate moved = kept->heap[at];

	for (uint64_t child = 2 * at + 1; child < kept->count; child = 2 * at + 1) {
		if (child + 1 < kept->count && compared(kept->form, &kept->heap[child], &kept->heap[child + 1]) < 0)
			child++;
		if (compared(kept->form, &moved, &kept->heap[child]) >= 0)
			break;
		kept->heap[at] = kept->heap[child];
		at = child;
	}
	kept->heap[at] = moved;
}

static void offer(struct kept *kept, const uint8_t *row, uint64_t rank)
{
	struct candidate candidate = {.rank = rank};

	if (kept->count == kept->limit && rank > kept->heap[0].rank)
		return;
	kept->form->show(candidate.shown, row);
	if (kept->count < kept->limit) {
		kept->heap[kept->count++] = candidate;
		if (kept->count == kept->limit)
			for (uint64_t at = kept->count / 2; at-- > 0;)
				sink(kept, at);
	} else if (compared(kept->form, &candidate, &kept->heap[0]) < 0) {
		kept->heap[0] = candidate;
		sink(kept, 0);
	}
}

static int in_order(const void *one, const void *other)
{
	const struct candidate *first = one, *second = other;

	return memcmp(first->shown, second->shown, SHOWN_BYTES); /* what is shorter is padded with zeros */
}

static int fill(struct rowset *set, const uint8_t *rows, uint64_t count)
{
	int failed = rowset_reserve(set, count);

	for (uint64_t i = 0; !failed && i < count; i++)
		failed = rowset_put(set, rows + i * set->width) < 0;
	return failed ? -ENOMEM : 0;
}

/* How many rows share the trait of each: cells of count, to be freed. */
static uint32_t *shares_of(const struct form *form, uint64_t seed, const uint8_t *rows, uint64_t count)
{
	struct rowset traits = {.width = form->trait_bytes, .seed = seed};
	uint32_t *of_trait = calloc(count, sizeof(*of_trait)), *shares = calloc(count, sizeof(*shares));
	bool whole = of_trait && shares;

	for (uint64_t i = 0; whole && i < count; i++) {
		int64_t number = rowset_put(&traits, rows + i * form->width + form->trait_at);

		whole = number >= 0;
		if (whole) {
			of_trait[number]++;
			shares[i] = (uint32_t)number;
		}
	}
	for (uint64_t i = 0; whole && i < count; i++)
		shares[i] = of_trait[shares[i]];
	rowset_free(&traits);
	free(of_trait);
	if (whole)
		return shares;
	free(shares);
	return NULL;
}

/* The rank of a row: the new ones first, then by how many share its trait. */
static int choose(struct kept *kept, uint64_t seed, const uint8_t *before, uint64_t before_count, const uint8_t *now,
		  uint64_t count)
{
	const struct form *form = kept->form;
	struct rowset known = {.width = form->width, .seed = seed};
	uint32_t *shares = shares_of(form, seed, now, count);
	int failed = !shares || fill(&known, before, before_count) ? -ENOMEM : 0;

	for (uint64_t i = 0; !failed && i < count; i++) {
		const uint8_t *row = now + i * form->width;

		offer(kept, row, (uint64_t)rowset_has(&known, row) << 32 | shares[i]);
	}
	rowset_free(&known);
	free(shares);
	return failed;
}

static int64_t cut(const struct form *form, uint64_t seed, const uint8_t *before, uint64_t before_bytes,
		   const uint8_t *now, uint64_t now_bytes, uint64_t limit, uint8_t *out)
{
	uint64_t count = now_bytes / form->width;
	struct kept kept = {.form = form, .limit = count < limit ? count : limit};
	int failed = 0;

	if (!kept.limit)
		return 0;
	kept.heap = calloc(kept.limit, sizeof(*kept.heap));
	if (!kept.heap)
		return -ENOMEM;
	if (count > limit)
		failed = choose(&kept, seed, before, before_bytes / form->width, now, count);
	else
		for (uint64_t i = 0; i < count; i++)
			offer(&kept, now + i * form->width, 0);
	if (!failed) {
		qsort(kept.heap, kept.count, sizeof(*kept.heap), in_order);
		for (uint64_t i = 0; i < kept.count; i++)
			memcpy(out + i * form->shown_width, kept.heap[i].shown, form->shown_width);
	}
	free(kept.heap);
	return failed ? failed : (int64_t)kept.count;
}

static void port_show(uint8_t *shown, const uint8_t *row)
{
	memcpy(shown, row, sizeof(struct kw_device_port));
}

static void connection_show(uint8_t *out, const uint8_t *row)
{
	struct kw_device_connection connection;
	struct kw_device_shown shown = {};

	memcpy(&connection, row, sizeof(connection));
	kw_put_endpoint(shown.remote, connection.remote,
			(uint16_t)(connection.remote_port[0] << 8 | connection.remote_port[1]));
	memcpy(shown.local_port, connection.local_port, sizeof(shown.local_port));
	memcpy(shown.interface, connection.interface, sizeof(shown.interface));
	memcpy(out, &shown, sizeof(shown));
}

static const struct form port_form = {
    .width = sizeof(struct kw_device_port),
    .shown_width = sizeof(struct kw_device_port),
    .trait_at = offsetof(struct kw_device_port, port),
    .trait_bytes = sizeof(((struct kw_device_port *)0)->port),
    .show = port_show,
};

static const struct form connection_form = {
    .width = sizeof(struct kw_device_connection),
    .shown_width = sizeof(struct kw_device_shown),
    .trait_at = offsetof(struct kw_device_connection, remote),
    .trait_bytes = sizeof(((struct kw_device_connection *)0)->remote),
    .show = connection_show,
};

int64_t kw_device_cut_ports(uint64_t seed, const uint8_t *before, uint64_t before_bytes, const uint8_t *now,
			    uint64_t now_bytes, uint64_t limit, struct kw_device_port *out)
{
	return cut(&port_form, seed, before, before_bytes, now, now_bytes, limit, (uint8_t *)out);
}

int64_t kw_device_cut_connections(uint64_t seed, const uint8_t *before, uint64_t before_bytes, const uint8_t *now,
				  uint64_t now_bytes, uint64_t limit, struct kw_device_shown *out)
{
	return cut(&connection_form, seed, before, before_bytes, now, now_bytes, limit, (uint8_t *)out);
}
