/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The match tables, limits and memberships as user space writes them. Masks are read, changed and written back: only
 * one daemon writes them, and hooks only read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>

#include "loader_parts.h"

struct name_key {
	char name[KW_NAME_BYTES];
};

static const enum map_index rule_maps[] = {MAP_NAMES, MAP_FILES, MAP_PLACES, MAP_PIDS, MAP_CGROUPS, MAP_CGROUP_PATHS};

enum { RULE_MAPS = sizeof(rule_maps) / sizeof(rule_maps[0]) };

/* How many rows hooks have to look for: what there is none of is not looked for. */
static void rules_add(struct kw_control *control, enum map_index map, int by)
{
	__sync_fetch_and_add(&control->rules, by);
	if (map == MAP_CGROUPS || map == MAP_CGROUP_PATHS)
		__sync_fetch_and_add(&control->cgroup_rules, by);
	if (map == MAP_FILES || map == MAP_PLACES)
		__sync_fetch_and_add(&control->file_rules, by);
	if (map == MAP_PIDS)
		__sync_fetch_and_add(&control->pid_rules, by);
}

static int rule_add(struct kw_loader *loader, enum map_index map, const void *key, uint32_t slot)
{
	uint64_t mask = 0;
	int fd = loader->set.maps[map];
	int known;

	if (slot >= KW_SLOTS)
		return loader_fail(loader, -EINVAL, "slot %u is out of range", slot);
	known = bpf_map_lookup_elem(fd, key, &mask) == 0;
	mask |= slot_bit(slot);
	if (bpf_map_update_elem(fd, key, &mask, BPF_ANY))
		return loader_fail(loader, -errno, "cannot add a match rule: %s", strerror(errno));
	if (!known) /* the count goes up after the row is there: a hook that sees the count sees the row */
		rules_add(loader->set.control, map, 1);
	return 0;
}

/* Take slot's bit out of a row; a row without bits goes. */
static void rule_drop(struct kw_loader *loader, enum map_index map, const void *key, uint32_t slot)
{
	int fd = loader->set.maps[map];
	uint64_t mask = 0;

	if (bpf_map_lookup_elem(fd, key, &mask) || !(mask & slot_bit(slot)))
		return;
	mask &= ~slot_bit(slot);
	if (mask) {
		bpf_map_update_elem(fd, key, &mask, BPF_ANY);
	} else if (!bpf_map_delete_elem(fd, key)) {
		rules_add(loader->set.control, map, -1);
	}
}

int kw_loader_set_watch(struct kw_loader *loader, uint32_t slot, const char *name, uint64_t identity)
{
	struct kw_watch_row row = {.identity = identity};

	if (strlen(name) >= sizeof(row.name))
		return loader_fail(loader, -EINVAL, "a watch's name has at most %zu bytes: %s", sizeof(row.name) - 1,
				   name);
	memcpy(row.name, name, strlen(name));
	if (bpf_map_update_elem(loader->set.maps[MAP_WATCHES], &slot, &row, BPF_ANY))
		return loader_fail(loader, -errno, "cannot write watch %u: %s", slot, strerror(errno));
	return 0;
}

int kw_loader_get_watch(struct kw_loader *loader, uint32_t slot, char *name, uint64_t *identity)
{
	struct kw_watch_row row;

	if (bpf_map_lookup_elem(loader->set.maps[MAP_WATCHES], &slot, &row))
		return loader_fail(loader, -errno, "cannot read watch %u: %s", slot, strerror(errno));
	memcpy(name, row.name, sizeof(row.name));
	*identity = row.identity;
	return name[0] != 0;
}

int kw_loader_match_name(struct kw_loader *loader, uint32_t slot, const char *name)
{
	struct name_key key = {};

	if (!name[0] || strlen(name) >= sizeof(key.name))
		return loader_fail(loader, -EINVAL, "a process name has 1 to %zu bytes: %s", sizeof(key.name) - 1,
				   name);
	memcpy(key.name, name, strlen(name));
	return rule_add(loader, MAP_NAMES, &key, slot);
}

static uint32_t kernel_device(uint32_t major, uint32_t minor)
{
	return major << 20 | minor;
}

int kw_loader_match_file(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode)
{
	struct kw_file_key key = {.inode = inode, .device = kernel_device(major, minor)};

	return rule_add(loader, MAP_FILES, &key, slot);
}

int kw_loader_match_place(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode,
			  const char *name)
{
	struct kw_place_key key = {.directory_inode = inode, .directory_device = kernel_device(major, minor)};

	if (!name[0] || strlen(name) >= sizeof(key.name))
		return loader_fail(loader, -EINVAL, "a file name that is watched has 1 to %zu bytes: %s",
				   sizeof(key.name) - 1, name);
	memcpy(key.name, name, strlen(name));
	return rule_add(loader, MAP_PLACES, &key, slot);
}

int kw_loader_match_pid(struct kw_loader *loader, uint32_t slot, uint32_t pid)
{
	return rule_add(loader, MAP_PIDS, &pid, slot);
}

int kw_loader_match_cgroup(struct kw_loader *loader, uint32_t slot, uint64_t id)
{
	return rule_add(loader, MAP_CGROUPS, &id, slot);
}

int kw_loader_match_cgroup_path(struct kw_loader *loader, uint32_t slot, const char *path)
{
	struct kw_cgroup_path key = {};

	if (path[0] != '/' || strlen(path) >= sizeof(key.path))
		return loader_fail(loader, -EINVAL, "a cgroup path starts with / and has at most %zu bytes: %s",
				   sizeof(key.path) - 1, path);
	memcpy(key.path, path, strlen(path));
	return rule_add(loader, MAP_CGROUP_PATHS, &key, slot);
}

int kw_loader_unmatch(struct kw_loader *loader, uint32_t slot)
{
	char key[256], next[256];

	for (int i = 0; i < RULE_MAPS; i++) {
		int fd = loader->set.maps[rule_maps[i]];
		void *previous = NULL;

		while (bpf_map_get_next_key(fd, previous, next) == 0) {
			uint64_t mask = 0;

			memcpy(key, next, sizeof(key));
			rule_drop(loader, rule_maps[i], key, slot);
			/* where the row went, the key to go on from is gone: begin again */
			previous = bpf_map_lookup_elem(fd, key, &mask) ? NULL : key;
		}
	}
	return 0;
}

void kw_loader_unmatch_file(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode)
{
	struct kw_file_key key = {.inode = inode, .device = kernel_device(major, minor)};

	rule_drop(loader, MAP_FILES, &key, slot);
}

void kw_loader_unmatch_place(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode,
			     const char *name)
{
	struct kw_place_key key = {.directory_inode = inode, .directory_device = kernel_device(major, minor)};

	strncpy((char *)key.name, name, sizeof(key.name) - 1);
	rule_drop(loader, MAP_PLACES, &key, slot);
}

int kw_loader_limit(struct kw_loader *loader, uint32_t slot, int64_t limit)
{
	if (slot >= KW_SLOTS)
		return loader_fail(loader, -EINVAL, "slot %u is out of range", slot);
	loader->set.control->limits[slot].children = limit < 0 ? KW_NO_LIMIT : (uint64_t)limit;
	return 0;
}

void edges_empty(struct kw_loader *loader)
{
	int fd = loader->set.maps[MAP_EDGES];
	uint32_t pid;

	while (bpf_map_get_next_key(fd, NULL, &pid) == 0)
		if (bpf_map_delete_elem(fd, &pid))
			break;
}

int64_t run_to_fixed_point(struct kw_loader *loader, enum link_index link)
{
	struct kw_control *control = loader->set.control;
	int64_t total = 0;

	for (;;) {
		int64_t bytes;

		control->adopted = 0;
		bytes = iterator_run(loader->set.links[link], NULL, NULL);
		if (bytes < 0)
			return loader_fail(loader, bytes, "cannot walk the tasks: %s", strerror(-bytes));
		if (!control->adopted)
			return total;
		total += control->adopted;
	}
}

int64_t kw_loader_adopt(struct kw_loader *loader, uint64_t watches)
{
	struct kw_control *control = loader->set.control;
	int64_t total;

	control->adopt_watches = watches;
	control->bootstrapping = 1;
	__sync_synchronize();
	total = run_to_fixed_point(loader, LINK_WALK);
	control->bootstrapping = 0;
	control->adopt_watches = 0;
	__sync_synchronize();
	edges_empty(loader);
	net_adopt(loader, watches);
	return total;
}

int kw_loader_forget(struct kw_loader *loader, uint64_t watches)
{
	const struct kw_counters_row zero = {0};
	int64_t total;

	loader->set.control->forget_watches = watches;
	__sync_synchronize();
	total = run_to_fixed_point(loader, LINK_FORGET);
	loader->set.control->forget_watches = 0;
	if (total < 0)
		return total;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		if (watches & slot_bit(slot))
			bpf_map_update_elem(loader->set.maps[MAP_COUNTERS], &slot, &zero, BPF_ANY);
	return net_forget(loader, watches);
}

/* -------- command lines -------- */

int kw_loader_cmdline(struct kw_loader *loader, uint64_t watches)
{
	__atomic_store_n(&loader->set.control->cmdline, watches, __ATOMIC_SEQ_CST);
	return 0;
}

int kw_loader_decide(struct kw_loader *loader, uint32_t pid, uint64_t start_ns, uint64_t watches, uint64_t roots)
{
	const struct kw_id id = {.start_ns = start_ns, .pid = pid};
	const struct kw_verdict verdict = {.watches = watches, .roots = roots};
	int64_t settled;

	if (loader->undecided_again && !watches)
		return 0; /* a later image may have changed this since */
	if (bpf_map_update_elem(loader->set.maps[MAP_DECIDED], &id, &verdict, BPF_ANY))
		return loader_fail(loader, -errno, "cannot write a verdict: %s", strerror(errno));
	if (!watches)
		return 0;
	settled = run_to_fixed_point(loader, LINK_SETTLE);
	return settled < 0 ? settled : 0;
}

uint64_t kw_loader_verdict(struct kw_loader *loader, uint32_t pid, uint64_t start_ns, uint64_t *roots)
{
	const struct kw_id id = {.start_ns = start_ns, .pid = pid};
	struct kw_verdict verdict = {0};

	if (bpf_map_lookup_elem(loader->set.maps[MAP_DECIDED], &id, &verdict))
		verdict = (struct kw_verdict){0};
	*roots = verdict.roots;
	return verdict.watches;
}

/* From here on whoever reads the record again knows that it is counted. */
static void judged(struct kw_loader *loader)
{
	__atomic_store_n(drain_judged(loader), loader->ring.position, __ATOMIC_SEQ_CST);
}

void kw_loader_count_ended(struct kw_loader *loader, uint64_t watches, uint64_t roots)
{
	static const uint64_t begun = 1ULL << KW_PACKED_BITS;

	if (loader->undecided_again)
		return;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++) {
		struct kw_counters_row *row = &loader->set.counters[slot];

		if (roots >> slot & 1)
			__sync_fetch_and_add(&row->roots, begun);
		else if (watches >> slot & 1)
			__sync_fetch_and_add(&row->children, begun);
	}
	judged(loader);
}

void kw_loader_count_exec(struct kw_loader *loader, uint64_t watches)
{
	if (loader->undecided_again)
		return;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		if (watches >> slot & 1)
			__sync_fetch_and_add(&loader->set.counters[slot].execs, 1);
	judged(loader);
}

/* The row of a process; 0: it has none. */
static int row_get(struct kw_loader *loader, uint32_t pid, uint64_t start_ns, struct kw_kin *row)
{
	uint32_t index = pid & loader->set.control->row_mask;
	uint64_t tag;

	if (bpf_map_lookup_elem(loader->set.maps[MAP_TAGS], &index, &tag))
		return 0;
	if (tag == pid ? bpf_map_lookup_elem(loader->set.maps[MAP_ROWS], &index, row)
		       : bpf_map_lookup_elem(loader->set.maps[MAP_OVERFLOW], &pid, row))
		return 0;
	return row->start_ns == start_ns;
}

uint64_t kw_loader_watches_of(struct kw_loader *loader, uint32_t pid, uint64_t start_ns)
{
	struct kw_kin row;

	return row_get(loader, pid, start_ns, &row) ? row.watches : 0;
}

uint64_t kw_loader_inherited_by(struct kw_loader *loader, uint32_t pid, uint64_t start_ns)
{
	struct kw_kin row;

	if (!row_get(loader, pid, start_ns, &row))
		return 0;
	/* what the earlier daemon's verdict on this record made it a root of is no inheritance */
	return loader->undecided_again ? row.watches & ~row.roots : row.watches;
}
