/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths, each kept once and shared by its users, and the bounded set of executables that a watch's descendants ran.
 * Knows no processes.
 *
 * Bounds: PATHS_KEPT paths of PATH_TEXT_BYTES altogether. A path that finds no room is unknown from then on (NONE): the
 * tree and alarms leave it out; the set of executables counts it as missed. Memory is asked for only when a path was
 * never seen.
 */
#include "internal.h"

#include <stdlib.h>

int kw_paths_new(struct kw_paths *paths)
{
	paths->cells = calloc(PATHS_KEPT, sizeof(*paths->cells));
	paths->chains = calloc(PATHS_KEPT, sizeof(*paths->chains));
	if (paths->cells && paths->chains)
		return 0;
	kw_paths_free(paths);
	return -ENOMEM;
}

void kw_paths_free(struct kw_paths *paths)
{
	for (uint32_t i = 0; paths->cells && i < paths->used; i++)
		free(paths->cells[i].text);
	free(paths->cells);
	free(paths->chains);
	memset(paths, 0, sizeof(*paths));
}

const struct kw_path *kw_path_at(const struct kw_engine *engine, uint32_t path)
{
	return path == NONE ? NULL : &engine->paths.cells[path - 1];
}

static bool cell_fill(struct kw_paths *paths, struct kw_path *cell, const uint8_t *text, uint32_t length)
{
	if (length > cell->room) {
		uint32_t room = (length + 63) & ~63U;
		char *grown;

		if (paths->text_bytes - cell->room + room > PATH_TEXT_BYTES)
			return false;
		grown = realloc(cell->text, room);
		if (!grown)
			return false;
		paths->text_bytes += room - cell->room;
		cell->text = grown;
		cell->room = room;
	}
	memcpy(cell->text, text, length);
	cell->length = length;
	return true;
}

/* The one cell of this path, with one more user, the caller; NONE: no room, or no path. */
uint32_t kw_path_keep(struct kw_engine *engine, const uint8_t *text, uint32_t length)
{
	struct kw_paths *paths = &engine->paths;
	uint64_t hash = kw_hash(text, length);
	uint32_t *chain = &paths->chains[hash % PATHS_KEPT];
	struct kw_path *cell;
	uint32_t path;

	if (!length)
		return NONE;
	for (path = *chain; path != NONE; path = cell->next) {
		cell = &paths->cells[path - 1];
		if (cell->hash == hash && cell->length == length && !memcmp(cell->text, text, length)) {
			cell->users++;
			return path;
		}
	}
	path = paths->free_cell;
	if (path == NONE && paths->used == PATHS_KEPT)
		return NONE;
	cell = &paths->cells[path != NONE ? path - 1 : paths->used];
	if (!cell_fill(paths, cell, text, length))
		return NONE;
	if (path != NONE)
		paths->free_cell = cell->next;
	else
		path = ++paths->used;
	cell->hash = hash;
	cell->users = 1;
	cell->next = *chain;
	*chain = path;
	return path;
}

void kw_path_use(struct kw_engine *engine, uint32_t path)
{
	if (path != NONE)
		engine->paths.cells[path - 1].users++;
}

void kw_path_release(struct kw_engine *engine, uint32_t path)
{
	struct kw_paths *paths = &engine->paths;
	struct kw_path *cell;
	uint32_t *chain;

	if (path == NONE)
		return;
	cell = &paths->cells[path - 1];
	if (--cell->users)
		return;
	chain = &paths->chains[cell->hash % PATHS_KEPT];
	while (*chain != path)
		chain = &paths->cells[*chain - 1].next;
	*chain = cell->next;
	if (cell->room > 256) { /* a long path must not hold the common budget when nobody uses it */
		paths->text_bytes -= cell->room;
		free(cell->text);
		cell->text = NULL;
		cell->room = 0;
	}
	cell->next = paths->free_cell;
	paths->free_cell = path;
}

/* A descendant in slot runs this path; NONE: one that could not be kept, which is missed. */
void kw_exe_note(struct kw_engine *engine, uint32_t slot, uint32_t path)
{
	struct kw_exes *exes = engine->slots[slot].exes;
	uint64_t mark = ++engine->mark;
	struct kw_exe *place = NULL;

	if (path == NONE) {
		kw_evicted_note(&exes->evictions, mark, mark); /* its name is not known: it counts as one of its own */
		return;
	}
	for (uint32_t i = 0; i < exes->count; i++) {
		if (exes->kept[i].path == path) {
			exes->kept[i].mark = mark;
			return;
		}
		if (!place || exes->kept[i].mark < place->mark)
			place = &exes->kept[i];
	}
	if (exes->count < EXES_KEPT) {
		place = &exes->kept[exes->count++];
	} else {
		kw_evicted_note(&exes->evictions, kw_path_at(engine, place->path)->hash, place->mark);
		kw_path_release(engine, place->path);
	}
	kw_evicted_remove(&exes->evictions, kw_path_at(engine, path)->hash);
	kw_path_use(engine, path);
	*place = (struct kw_exe){mark, path};
}

void kw_exes_clear(struct kw_engine *engine, uint32_t slot)
{
	struct kw_exes *exes = engine->slots[slot].exes;

	for (uint32_t i = 0; i < exes->count; i++)
		kw_path_release(engine, exes->kept[i].path);
	free(exes);
	engine->slots[slot].exes = NULL;
}

static int by_mark(const void *left, const void *right)
{
	const struct kw_exe *one = left, *other = right;

	return one->mark < other->mark ? -1 : one->mark > other->mark;
}

int64_t kw_engine_exes(struct kw_engine *engine, uint32_t slot, uint64_t mark, char *out, uint64_t capacity,
		       uint64_t *missed)
{
	struct kw_exes *exes;
	uint64_t bytes = 0;

	if (slot >= KW_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	exes = engine->slots[slot].exes;
	if (!exes) {
		pthread_mutex_unlock(&engine->lock);
		return -ENOENT;
	}
	qsort(exes->kept, exes->count, sizeof(exes->kept[0]), by_mark);
	for (uint32_t i = 0; i < exes->count; i++)
		if (exes->kept[i].mark > mark)
			bytes += kw_path_at(engine, exes->kept[i].path)->length + 1;
	for (uint32_t i = 0; i < exes->count && bytes <= capacity; i++) {
		const struct kw_path *path = kw_path_at(engine, exes->kept[i].path);

		if (exes->kept[i].mark <= mark)
			continue;
		out = kw_put(out, path->text, path->length);
		*out++ = 0;
	}
	*missed = kw_evicted_since(&exes->evictions, mark);
	pthread_mutex_unlock(&engine->lock);
	return (int64_t)bytes;
}

uint64_t kw_engine_mark(struct kw_engine *engine)
{
	uint64_t mark;

	pthread_mutex_lock(&engine->lock);
	mark = engine->mark;
	pthread_mutex_unlock(&engine->lock);
	return mark;
}
