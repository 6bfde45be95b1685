/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Every map, with who writes it and why it has its size. Sizes marked "set at load" are placeholders the loader
 * replaces.
 */
#ifndef KINWATCH_MAPS_H
#define KINWATCH_MAPS_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "event.h"
#include "table.h"

/* Records to user space. Hooks write, one reader drains. Set at load: ring_bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} events SEC(".maps");

/*
 * The lineage table: who is kin. Keyed by pid (thread group id), because a task_struct does not survive an exec from a
 * thread that is not the leader. Rows are made at fork, before the child runs, and removed with the last thread.
 *
 * Two arrays, direct-mapped by the low bits of the pid: `tags` holds the pid that has the row (0: free), `rows` what is
 * known of it. Pids are handed out in sequence, so a claim is one compare-and-swap on a line that is hot, and everybody
 * else's fork and exit is one load from it; a hash map cost three times as much. When the row is taken by another pid
 * with the same low bits, the row goes to `overflow`: nothing is evicted, an eviction would be a silent escape. Set at
 * load: the power of two that holds pid_max or twice max_processes, whichever is less; overflow max_processes.
 */
enum { TAG_BUSY = 1U << 31 }; /* claimed, the row is not written yet */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32768);
	__type(key, uint32_t);
	__type(value, uint64_t);
} tags SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32768);
	__type(key, uint32_t);
	__type(value, struct kw_kin);
} rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, uint32_t);
	__type(value, struct kw_kin);
} overflow SEC(".maps");

/* Counters by watch slot, exact whatever happens to the ring. Mapped by the loader, which adds to them at a swap. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KW_SLOTS);
	__type(key, uint32_t);
	__type(value, struct kw_counters_row);
} counters SEC(".maps");

/* Who has which slot. Only user space reads and writes it; it is here so that it lives as long as the counters. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KW_SLOTS);
	__type(key, uint32_t);
	__type(value, struct kw_watch_row);
} watches SEC(".maps");

/* The match tables: user space writes, exec reads; values are masks of watch slots. */
struct kw_name_key {
	uint8_t name[KW_NAME_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct kw_name_key);
	__type(value, uint64_t);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct kw_file_key);
	__type(value, uint64_t);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct kw_place_key);
	__type(value, uint64_t);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, uint32_t);
	__type(value, uint64_t);
} pids SEC(".maps");

/* cgroup id -> mask. Written by user space for cgroups that exist and by the mkdir hook for those that come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, uint64_t);
	__type(value, uint64_t);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct kw_cgroup_path);
	__type(value, uint64_t);
} cgroup_paths SEC(".maps");

/* Executables that watches expect, found by expected.h. Mapped by the loader, which writes; hooks read. Not a hash map:
 * after an exec all is cold, and a look into one waits for five cache lines, here for one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KW_EXPECTED_ROWS);
	__type(key, uint32_t);
	__type(value, struct kw_expected);
} expected SEC(".maps");

/* Users that watches expect. User space writes, hooks read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, uint32_t);
	__type(value, uint64_t);
} uids SEC(".maps");

/*
 * Where an exec's record is put together before it is copied to the ring with its true size (a reservation would need a
 * constant one). Two per CPU, taken with an atomic flag: tracing programs may be preempted since PREEMPT_LAZY (in
 * v6.13).
 */
struct kw_scratch {
	uint32_t busy;
	uint32_t used;	 /* where in `path` the next name ends */
	uint32_t filled; /* bytes of tail */
	uint32_t reserved;
	char path[KW_PATH_BYTES + 256];
	struct kw_image image;
	char tail[3 * KW_PATH_BYTES + KW_ARGV_BYTES];
};

enum { SCRATCHES = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, uint32_t);
	__type(value, struct kw_scratch);
} scratch SEC(".maps");

/* Who made whom among strangers, only while the task walk runs; the loader empties it afterwards. Not preallocated: it
 * is empty for all but the first milliseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, uint32_t);
	__type(value, struct kw_edge);
} edges SEC(".maps");

/* Verdicts on command lines. User space writes, hooks read. LRU: an evicted verdict is asked for again, in vain, and a
 * process that nobody remembers is a stranger. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct kw_id);
	__type(value, struct kw_verdict);
} decided SEC(".maps");

/* Rows that an earlier version's programs handed over, for the task walk to put in place; empty but for that moment. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, uint32_t);
	__type(value, struct kw_kin);
} seed SEC(".maps");

/* The only global: its map is the object's .bss, which the loader maps. */
struct kw_control control;

#endif
