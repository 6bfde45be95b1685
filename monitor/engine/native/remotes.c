/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bounded sets of remotes that kin of a watch had to do with, and of ports it listened on. Knows no sockets, only
 * how many have a remote now.
 *
 * A remote that a socket has now is never dropped, and belongs to every window; of the others the one whose last use is
 * oldest goes first. What finds no room is counted.
 */
#include "internal.h"

#include <stdlib.h>

static uint16_t *chain_of(struct kw_remotes *remotes, uint64_t hash)
{
	return &remotes->chains[(hash ^ hash >> 32) % (REMOTES_KEPT * 2)];
}

static uint64_t hash_of(const struct kw_remote *remote)
{
	return kw_hash((const uint8_t *)remote, sizeof(*remote));
}

static struct kw_remote_cell *at(struct kw_remotes *remotes, uint16_t index)
{
	return &remotes->cells[index - 1];
}

static uint16_t find(struct kw_remotes *remotes, const struct kw_remote *remote)
{
	uint16_t index = *chain_of(remotes, hash_of(remote));

	while (index != NONE && memcmp(&at(remotes, index)->remote, remote, sizeof(*remote)) != 0)
		index = at(remotes, index)->next;
	return index;
}

static void order_remove(struct kw_remotes *remotes, uint16_t index)
{
	const struct kw_remote_cell *cell = at(remotes, index);

	if (cell->older != NONE)
		at(remotes, cell->older)->newer = cell->newer;
	else
		remotes->oldest = cell->newer;
	if (cell->newer != NONE)
		at(remotes, cell->newer)->older = cell->older;
	else
		remotes->newest = cell->older;
}

static void order_append(struct kw_remotes *remotes, uint16_t index)
{
	struct kw_remote_cell *cell = at(remotes, index);

	cell->older = remotes->newest;
	cell->newer = NONE;
	if (remotes->newest != NONE)
		at(remotes, remotes->newest)->newer = index;
	else
		remotes->oldest = index;
	remotes->newest = index;
}

static void used_now(struct kw_engine *engine, struct kw_remotes *remotes, uint16_t index)
{
	order_remove(remotes, index);
	order_append(remotes, index);
	at(remotes, index)->mark = ++engine->mark;
}

static void chain_remove(struct kw_remotes *remotes, uint16_t index)
{
	uint16_t *link = chain_of(remotes, hash_of(&at(remotes, index)->remote));

	while (*link != index)
		link = &at(remotes, *link)->next;
	*link = at(remotes, index)->next;
}

/* A cell for a new remote, in no chain and no order; NONE: every one is open. */
static uint16_t cell_take(struct kw_remotes *remotes)
{
	uint16_t index;

	if (remotes->count < REMOTES_KEPT)
		return ++remotes->count;
	index = remotes->oldest;
	while (index != NONE && at(remotes, index)->open)
		index = at(remotes, index)->newer;
	if (index == NONE)
		return NONE;
	kw_evicted_note(&remotes->evictions, hash_of(&at(remotes, index)->remote), at(remotes, index)->mark);
	chain_remove(remotes, index);
	order_remove(remotes, index);
	return index;
}

/* A remote is used; open: by a socket that has it from now on, until kw_remote_done(). False: there is no room. */
bool kw_remote_note(struct kw_engine *engine, struct kw_remotes *remotes, const struct kw_remote *remote, bool open)
{
	uint64_t hash = hash_of(remote);
	uint16_t index = find(remotes, remote), *chain = chain_of(remotes, hash);

	if (index != NONE) {
		used_now(engine, remotes, index);
		at(remotes, index)->open += open;
		return true;
	}
	index = cell_take(remotes);
	if (index == NONE) {
		if (open)
			remotes->open_unkept++;
		else
			kw_evicted_note(&remotes->evictions, hash, ++engine->mark);
		return false;
	}
	kw_evicted_remove(&remotes->evictions, hash);
	*at(remotes, index) =
	    (struct kw_remote_cell){.remote = *remote, .mark = ++engine->mark, .open = open, .next = *chain};
	*chain = index;
	order_append(remotes, index);
	return true;
}

/* A socket has it no more. kept: what kw_remote_note() returned for that socket. It was in use until now. */
void kw_remote_done(struct kw_engine *engine, struct kw_remotes *remotes, const struct kw_remote *remote, bool kept)
{
	uint16_t index;

	if (!kept) {
		remotes->open_unkept--;
		kw_evicted_note(&remotes->evictions, hash_of(remote), ++engine->mark);
		return;
	}
	index = find(remotes, remote);
	at(remotes, index)->open--;
	used_now(engine, remotes, index);
}

bool kw_remote_is_open(struct kw_remotes *remotes, const struct kw_remote *remote)
{
	uint16_t index = find(remotes, remote);

	return index != NONE && at(remotes, index)->open;
}

static uint64_t missed_since(const struct kw_remotes *remotes, uint64_t mark)
{
	return kw_evicted_since(&remotes->evictions, mark) + remotes->open_unkept;
}

static bool of_window(const struct kw_remote_cell *cell, uint64_t mark)
{
	return cell->open || cell->mark > mark;
}

int64_t kw_engine_remotes(struct kw_engine *engine, uint32_t slot, uint64_t mark, struct kw_remote *out,
			  uint64_t capacity, uint64_t *missed)
{
	struct kw_remotes *remotes;
	uint64_t count = 0;

	if (slot >= KW_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	if (!(engine->defined & slot_bit(slot))) {
		pthread_mutex_unlock(&engine->lock);
		return -ENOENT;
	}
	remotes = engine->slots[slot].remotes;
	for (uint16_t index = remotes->oldest; index != NONE; index = at(remotes, index)->newer) {
		if (!of_window(at(remotes, index), mark))
			continue;
		if (count < capacity)
			out[count] = at(remotes, index)->remote;
		count++;
	}
	*missed = missed_since(remotes, mark);
	pthread_mutex_unlock(&engine->lock);
	return (int64_t)count;
}

static int by_number(const void *left, const void *right)
{
	uint32_t one, other;

	memcpy(&one, left, sizeof(one));
	memcpy(&other, right, sizeof(other));
	return one < other ? -1 : one > other;
}

int64_t kw_engine_listening(struct kw_engine *engine, uint32_t slot, uint64_t mark, uint32_t *out, uint64_t capacity,
			    uint64_t *missed)
{
	uint32_t found[REMOTES_KEPT];
	const struct kw_remotes *ports;
	uint64_t count = 0;

	if (slot >= KW_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	if (!(engine->defined & slot_bit(slot))) {
		pthread_mutex_unlock(&engine->lock);
		return -ENOENT;
	}
	ports = engine->slots[slot].ports;
	for (uint16_t i = 0; i < ports->count; i++) {
		const struct kw_remote_cell *cell = &ports->cells[i];

		if (of_window(cell, mark))
			found[count++] = (uint32_t)cell->remote.protocol << 16 | cell->remote.port;
	}
	*missed = missed_since(ports, mark);
	pthread_mutex_unlock(&engine->lock);
	qsort(found, count, sizeof(found[0]), by_number);
	if (count && capacity)
		memcpy(out, found, (count < capacity ? count : capacity) * sizeof(found[0]));
	return (int64_t)count;
}
