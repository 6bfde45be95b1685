/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Every map, with who writes it and why it has its size. Sizes marked "set at load" are placeholders the loader replaces.
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
 * The lineage map: who is kin. Keyed by pid (thread group id), because a task_struct does not survive an exec from a thread
 * that is not the leader. Rows are made at fork, before the child runs, and removed with the last thread. Preallocated: an
 * allocation per fork costs more than the row, and allocating in hooks is unsafe before "bpf: Introduce any context BPF
 * specific memory allocator" (in v6.1). No LRU: an eviction would be a silent escape. Set at load: max_processes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, uint32_t);
	__type(value, struct kw_kin);
} kin SEC(".maps");

/*
 * One bit per pid: may this pid be kin? Everybody's fork and exit asks it first, and a load and a test cost a tenth of a
 * miss in the hash. A pid beyond the map means "ask the hash". Set at load: pid_max / 64 words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, uint32_t);
	__type(value, uint64_t);
} filter SEC(".maps");

/* Counters by watch slot, exact whatever happens to the ring: the lock makes each row one consistent struct. */
struct kw_counters_row {
	struct bpf_spin_lock lock;
	uint32_t reserved;
	struct kw_counters cells;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
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

/*
 * Where an exec's record is put together before it is copied to the ring with its true size (a reservation would need a
 * constant one). Two per CPU, taken with an atomic flag: tracing programs may be preempted since PREEMPT_LAZY (in v6.13).
 */
struct kw_scratch {
	uint32_t busy;
	uint32_t used; /* bytes of tail */
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

/* Who made whom among strangers, only while the task walk runs; the loader empties it afterwards. Not preallocated: it is
 * empty for all but the first milliseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, uint32_t);
	__type(value, struct kw_edge);
} edges SEC(".maps");

/* The only global: its map is the object's .bss, which the loader maps. */
struct kw_control control;

#endif
