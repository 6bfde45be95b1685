/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one version's programs to the next without an unwatched moment, and without counting anything twice.
 *
 * Both sets of hooks are live for a moment. Ours begins with the old set's match tables, so it sees what begins anew;
 * the old set's lineage rows are handed to our task walk (map `seed`), so it knows whom the old set knew. Then the old
 * hooks are taken away, the old ring is drained to its end, and of our own records those are dropped that the old set
 * has told: the same kind, process and start, as often as there. The old counters, less what both counted, are added to
 * ours.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "loader_parts.h"

enum { OVERLAP_SLOTS = 1 << 18, GONE_WAIT_MS = 2000, OVERLAP_MARGIN_NS = 1000000000 };

struct told {
	uint64_t start_ns;
	uint32_t pid;
	uint16_t kind; /* 0: free */
	uint16_t times;
};

struct overlap {
	struct kernel_set old;
	uint64_t cut_ns; /* CLOCK_BOOTTIME when the old hooks were gone: later records are ours alone */
	struct told *told;
	uint64_t used;
	int drained;				/* the old ring, and the old rows are noted */
	struct kw_counters_row twice[KW_SLOTS]; /* what both counted */
};

static uint64_t boot_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* -------- what the old set told -------- */

static struct told *told_find(struct overlap *overlap, uint16_t kind, const struct kw_id *id)
{
	uint64_t hash = (id->start_ns ^ (uint64_t)id->pid << 32 ^ kind) * 0x9e3779b97f4a7c15ULL;

	for (uint64_t i = hash >> 46;; i++) {
		struct told *told = &overlap->told[i & (OVERLAP_SLOTS - 1)];

		if (!told->kind || (told->kind == kind && told->pid == id->pid && told->start_ns == id->start_ns))
			return told;
	}
}

static void told_add(struct overlap *overlap, uint16_t kind, const struct kw_id *id)
{
	struct told *told;

	if (overlap->used >= OVERLAP_SLOTS / 2)
		return; /* 131,072 in the moment of a swap: more may be told twice */
	told = told_find(overlap, kind, id);
	if (!told->kind) {
		*told = (struct told){.start_ns = id->start_ns, .pid = id->pid, .kind = kind};
		overlap->used++;
	}
	told->times++;
}

static int told_take(struct overlap *overlap, uint16_t kind, const struct kw_id *id)
{
	struct told *told = told_find(overlap, kind, id);

	if (!told->kind || !told->times)
		return 0;
	told->times--;
	return 1;
}

static const struct kw_id *id_of(const struct kw_header *header)
{
	switch (header->kind) {
	case KW_FORK:
		return &((const struct kw_fork *)header)->process;
	case KW_ENFORCED:
		return &((const struct kw_enforced *)header)->process;
	case KW_EXIT:
		return &((const struct kw_exit *)header)->process;
	case KW_EXEC:
	case KW_ADOPT:
		return &((const struct kw_image *)header)->process;
	default:
		return NULL;
	}
}

/* Did the old set know this process, at any time up to the cut? */
static int old_knew(struct overlap *overlap, const struct kw_id *id)
{
	return told_find(overlap, KW_SYNC, id)->kind || told_find(overlap, KW_FORK, id)->kind ||
	       told_find(overlap, KW_EXEC, id)->kind || told_find(overlap, KW_ADOPT, id)->kind;
}

static void twice_add(struct overlap *overlap, uint64_t watches, size_t cell, uint64_t by)
{
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		if (watches >> slot & 1)
			((uint64_t *)&overlap->twice[slot])[cell] += by;
}

#define CELL(name) (offsetof(struct kw_counters_row, name) / sizeof(uint64_t))

static void twice_add_enforced(struct overlap *overlap, const struct kw_enforced *record)
{
	int acted = record->action != KW_ACTION_WOULD && record->action != KW_ACTION_SPARED;

	twice_add(overlap, record->slots, acted ? CELL(enforced) : CELL(would_enforce), 1);
}

int swap_is_told(struct kw_loader *loader, const struct kw_header *header)
{
	static const uint64_t begun = 1ULL << KW_PACKED_BITS;
	const struct kw_image *image = (const struct kw_image *)header;
	struct overlap *overlap = loader->overlap;
	const struct kw_id *id = id_of(header);
	uint64_t children = header->watches & ~header->roots;

	if (!id || header->time_ns > overlap->cut_ns)
		return 0;
	switch (header->kind) {
	case KW_FORK:
		if (!told_take(overlap, KW_FORK, id))
			return 0;
		twice_add(overlap, children, CELL(children), begun);
		return 1;
	case KW_ADOPT:
		if (!old_knew(overlap, id))
			return 0;
		twice_add(overlap, image->fresh & ~header->roots, CELL(adopted), 1);
		twice_add(overlap, image->fresh & header->roots, CELL(roots), begun);
		return 1;
	case KW_EXEC:
		if (!told_take(overlap, KW_EXEC, id))
			return 0;
		twice_add(overlap, children, CELL(execs), 1);
		twice_add(overlap, image->fresh, CELL(roots), begun);
		return 1;
	case KW_ENFORCED:
		if (!told_take(overlap, KW_ENFORCED, id))
			return 0;
		twice_add_enforced(overlap, (const struct kw_enforced *)header);
		return 1;
	default:
		return told_take(overlap, KW_EXIT, id);
	}
}

/* -------- before our hooks are live -------- */

static int map_copy(int from, int to, uint32_t key_size, uint32_t value_size)
{
	uint8_t *key = calloc(3, 512);
	uint8_t *next = key + 512, *value = key + 1024;
	void *previous = NULL;
	int error = key && key_size <= 512 && value_size <= 512 ? 0 : -ENOMEM;

	while (!error && bpf_map_get_next_key(from, previous, next) == 0) {
		memcpy(key, next, key_size);
		previous = key;
		if (bpf_map_lookup_elem(from, key, value) == 0 && bpf_map_update_elem(to, key, value, BPF_ANY))
			error = -errno;
	}
	free(key);
	return error;
}

int swap_copy_tables(struct kw_loader *loader, const struct kernel_set *old)
{
	static const enum map_index tables[] = {MAP_WATCHES, MAP_NAMES,	  MAP_FILES,	    MAP_PLACES,
						MAP_PIDS,    MAP_CGROUPS, MAP_CGROUP_PATHS, MAP_UIDS};
	struct kw_control *ours = loader->set.control;
	const struct kw_control *theirs = old->control;

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		struct bpf_map_info info = {};
		uint32_t size = sizeof(info);
		int error = bpf_obj_get_info_by_fd(old->maps[tables[i]], &info, &size) ? -errno : 0;

		if (!error)
			error =
			    map_copy(old->maps[tables[i]], loader->set.maps[tables[i]], info.key_size, info.value_size);
		if (error)
			return loader_fail(loader, error, "cannot take over a match table: %s", strerror(-error));
	}
	for (uint32_t index = 0; index < KW_EXPECTED_ROWS; index++)
		if (old->expected[index].file.inode)
			loader->set.expected[index] = old->expected[index];
	ours->rules = theirs->rules;
	ours->cgroup_rules = theirs->cgroup_rules;
	ours->file_rules = theirs->file_rules;
	ours->pid_rules = theirs->pid_rules;
	memcpy(ours->limits, theirs->limits, sizeof(ours->limits));
	memcpy(&ours->enforcing, &theirs->enforcing,
	       offsetof(struct kw_control, hiring) - offsetof(struct kw_control, enforcing));
	ours->kills = theirs->kills;
	ours->stopped = theirs->stopped;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		loader->set.counters[slot].rate = old->counters[slot].rate;
	ours->generation = theirs->generation;
	ours->since_ns = theirs->since_ns;
	memcpy(ours->told, theirs->told, sizeof(ours->told));
	memcpy(ours->lost, theirs->told, sizeof(ours->lost)); /* what is not told yet is added at the end */
	ours->bootstrapping = 1;			      /* edges are kept from the first fork our hooks see */
	return 0;
}

/* -------- with both live -------- */

static int rows_each(const struct kernel_set *set, int (*each)(void *context, uint32_t pid, const struct kw_kin *row),
		     void *context)
{
	struct kw_kin row;
	uint32_t pid, *previous = NULL;

	for (uint32_t index = 0; index <= set->control->row_mask; index++) {
		uint64_t tag;
		int error;

		if (bpf_map_lookup_elem(set->maps[MAP_TAGS], &index, &tag) || !tag || tag >> 31 ||
		    bpf_map_lookup_elem(set->maps[MAP_ROWS], &index, &row))
			continue;
		error = each(context, tag, &row);
		if (error)
			return error;
	}
	while (bpf_map_get_next_key(set->maps[MAP_OVERFLOW], previous, &pid) == 0) {
		if (bpf_map_lookup_elem(set->maps[MAP_OVERFLOW], &pid, &row) == 0) {
			int error = each(context, pid, &row);

			if (error)
				return error;
		}
		previous = &pid;
	}
	return 0;
}

static int seed_row(void *context, uint32_t pid, const struct kw_kin *row)
{
	struct kw_loader *loader = context;
	const struct kw_id id = {.start_ns = row->start_ns, .pid = pid};

	told_add(loader->overlap, KW_SYNC, &id);
	return bpf_map_update_elem(loader->set.maps[MAP_SEED], &pid, row, BPF_ANY) ? -errno : 0;
}

static int note_row(void *context, uint32_t pid, const struct kw_kin *row)
{
	const struct kw_id id = {.start_ns = row->start_ns, .pid = pid};

	told_add(context, KW_SYNC, &id);
	return 0;
}

static void seed_empty(struct kw_loader *loader)
{
	uint32_t pid;

	while (bpf_map_get_next_key(loader->set.maps[MAP_SEED], NULL, &pid) == 0)
		if (bpf_map_delete_elem(loader->set.maps[MAP_SEED], &pid))
			break;
}

/* The old links go when the last reference goes, which the kernel may do a moment after we let go. */
static void links_end(struct kernel_set *set)
{
	uint32_t ids[LINKS];

	for (int i = 0; i < LINKS; i++) {
		struct bpf_link_info info = {};
		uint32_t size = sizeof(info);

		ids[i] = bpf_obj_get_info_by_fd(set->links[i], &info, &size) ? 0 : info.id;
		close(set->links[i]);
		set->links[i] = -1;
	}
	for (int waited_ms = 0; waited_ms < GONE_WAIT_MS; waited_ms++) {
		int alive = 0;

		for (int i = 0; i < LINKS; i++) {
			int fd = ids[i] ? bpf_link_get_fd_by_id(ids[i]) : -1;

			if (fd >= 0) {
				alive = 1;
				close(fd);
			}
		}
		if (!alive)
			return;
		usleep(1000);
	}
}

int swap_hand_over(struct kw_loader *loader, struct kernel_set *old)
{
	struct kw_control *control = loader->set.control;
	struct overlap *overlap = calloc(1, sizeof(*overlap));
	uint64_t watches = 0;
	int64_t result;

	if (overlap)
		overlap->told = calloc(OVERLAP_SLOTS, sizeof(*overlap->told));
	loader->overlap = overlap;
	if (!overlap || !overlap->told)
		return loader_fail(loader, -ENOMEM, "no memory to take over the old programs' rows");
	overlap->old = *old;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++) {
		char name[sizeof(((struct kw_watch_row *)0)->name)];
		uint64_t identity;

		if (kw_loader_get_watch(loader, slot, name, &identity) == 1)
			watches |= slot_bit(slot);
	}
	result = rows_each(old, seed_row, loader);
	if (result)
		return loader_fail(loader, result, "cannot hand over the lineage rows: %s", strerror(-result));
	control->seeding = 1;
	control->adopt_watches = watches;
	__sync_synchronize();
	result = run_to_fixed_point(loader, LINK_WALK);
	control->seeding = 0;
	if (result >= 0)
		result = run_to_fixed_point(loader, LINK_WALK);
	control->bootstrapping = 0;
	control->adopt_watches = 0;
	__sync_synchronize();
	edges_empty(loader);
	seed_empty(loader);
	if (result < 0)
		return result;
	links_end(&overlap->old);
	overlap->cut_ns = boot_ns();
	return 0;
}

/* -------- when the old hooks are gone -------- */

int swap_old_ring(struct kw_loader *loader, struct ring *ring)
{
	int error = ring_open(ring, loader->overlap->old.maps[MAP_EVENTS]);

	return error ? loader_fail(loader, error, "cannot map the old ring: %s", strerror(-error)) : 0;
}

/* All of the old ring; its room is not given back, it goes with its set. */
static int old_drain(struct kw_loader *loader)
{
	const struct kw_header *header;
	struct ring ring;
	uint32_t size;
	int error = swap_old_ring(loader, &ring);

	while (!error && (header = ring_next(&ring, &size))) {
		const struct kw_id *id = size >= sizeof(*header) ? id_of(header) : NULL;

		if (size < sizeof(*header) || header->flags & KW_UNDECIDED)
			continue; /* nobody remembers the verdict it waited for */
		/* What the old set told long before our hooks were live cannot be among our records. */
		if (id && header->time_ns + OVERLAP_MARGIN_NS > loader->begun_ns)
			told_add(loader->overlap, header->kind, id);
		stage(loader, header, size);
	}
	ring_close(&ring);
	staging_flush(loader);
	return error;
}

static void raise_to(uint64_t *cell, uint64_t value)
{
	uint64_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);

	while (seen < value && !__atomic_compare_exchange_n(cell, &seen, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static void counters_merge(struct overlap *overlap, struct kw_counters_row *ours)
{
	static const uint64_t begun = ~(uint64_t)KW_PACKED_MASK;

	for (uint32_t slot = 0; slot < KW_SLOTS; slot++) {
		const struct kw_counters_row *theirs = &overlap->old.counters[slot], *twice = &overlap->twice[slot];
		struct kw_counters_row *row = &ours[slot];

		__sync_fetch_and_add(&row->children, (theirs->children & begun) - twice->children);
		__sync_fetch_and_add(&row->roots, (theirs->roots & begun) - twice->roots);
		__sync_fetch_and_add(&row->adopted, theirs->adopted - twice->adopted);
		__sync_fetch_and_add(&row->execs, theirs->execs - twice->execs);
		__sync_fetch_and_add(&row->enforced, theirs->enforced - twice->enforced);
		__sync_fetch_and_add(&row->would_enforce, theirs->would_enforce - twice->would_enforce);
		raise_to(&row->peak, theirs->peak);
		for (int reader = 0; reader < KW_READERS; reader++)
			raise_to(&row->window_peak[reader], theirs->window_peak[reader]);
	}
}

int swap_finish(struct kw_loader *loader)
{
	struct overlap *overlap = loader->overlap;

	if (!overlap->drained) {
		int error = old_drain(loader);

		if (error)
			return error;
		rows_each(&overlap->old, note_row, overlap);
		overlap->drained = 1;
	}
	/* Our own ring up to now: all that overlaps is in it. */
	do
		loader->batch_bytes = 0;
	while (drain_ring(loader) && !loader->undecided_bytes);
	staging_flush(loader);
	if (loader->undecided_bytes)
		return 1;
	counters_merge(overlap, loader->set.counters);
	for (int i = 0; i < KW_STAGES; i++)
		__sync_fetch_and_add(&loader->set.control->lost[i],
				     overlap->old.control->lost[i] - overlap->old.control->told[i]);
	swap_free(loader);
	return 0;
}

void swap_free(struct kw_loader *loader)
{
	if (!loader->overlap)
		return;
	set_close(&loader->overlap->old);
	free(loader->overlap->told);
	free(loader->overlap);
	loader->overlap = NULL;
}
