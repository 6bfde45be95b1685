/* SPDX-License-Identifier: Apache-2.0 */
/* What the loader's files share: loader.c (open, pins, free), tables.c (rules), enforce.c (what is done about a
 * breach), ring.c (the walk along a ring), drain.c (ring to door), resume.c (what was before), swap.c (from one
 * version's programs to the next), netload.c and netrun.c (the network side). */
#ifndef KINWATCH_LOADER_PARTS_H
#define KINWATCH_LOADER_PARTS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "event.h"
#include "net_table.h"
#include "table.h"
#include "engine.h"
#include "loader.h"

struct bpf_object;
struct bpf_link;

enum map_index {
	MAP_EVENTS,
	MAP_TAGS,
	MAP_ROWS,
	MAP_OVERFLOW,
	MAP_COUNTERS,
	MAP_WATCHES,
	MAP_NAMES,
	MAP_FILES,
	MAP_PLACES,
	MAP_PIDS,
	MAP_CGROUPS,
	MAP_CGROUP_PATHS,
	MAP_EDGES,
	MAP_SEED,
	MAP_DECIDED,
	MAP_EXPECTED,
	MAP_UIDS,
	MAP_CONTROL,
	MAPS
};

enum link_index {
	LINK_FORK,
	LINK_EXEC,
	LINK_EXIT,
	LINK_CGROUP_ATTACH,
	LINK_CGROUP_MKDIR,
	LINK_CGROUP_RMDIR,
	LINK_WALK,
	LINK_FORGET,
	LINK_SETTLE,
	LINK_DUMP,
	LINK_SNAPSHOT,
	LINK_IDENTIFY,
	LINKS_ALWAYS,
	/* where hooks can be preempted; as LINK_FORK, LINK_EXEC, LINK_EXIT */
	LINK_FORK_AGAIN = LINKS_ALWAYS,
	LINK_EXEC_AGAIN,
	LINK_EXIT_AGAIN,
	/* where a fork cannot be killed and can be refused */
	LINK_DENY,
	LINKS
};

enum { STAGING_BYTES = 256 * 1024, BATCH_BYTES = 1024 * 1024 };

/* One set of maps and links in the kernel, whoever loaded it. */
struct kernel_set {
	int maps[MAPS];
	int links[LINKS];		  /* -1: not attached */
	int programs[LINKS];		  /* of the hooks: the kernel tells of them what it skipped; -1: none */
	struct kw_control *control;	  /* mapped */
	struct kw_counters_row *counters; /* mapped, KW_SLOTS rows */
	struct kw_expected *expected;	  /* mapped, KW_EXPECTED_ROWS rows */
};

struct overlap;	 /* swap.c */
struct net_side; /* netload.c */

/* A ring and how far it is read. A copy walks on its own. */
struct ring {
	unsigned long *consumer;       /* mapped: hooks may use the room before it */
	const unsigned long *producer; /* mapped */
	const uint8_t *data;	       /* mapped, its beginning a second time behind its end */
	unsigned long bytes;
	unsigned long mapped;	/* bytes of the producer's page, the data, and its beginning again */
	unsigned long position; /* of the next record to read */
	unsigned long produced; /* the producer's, when it was last looked at */
};

struct kw_loader {
	struct kernel_set set;
	struct bpf_object *object; /* NULL when taken over */
	struct bpf_link *owned[LINKS];
	char pins[256]; /* "" = unpinned */
	char btf[4096]; /* what both objects are relocated by; "" = the kernel's own */
	uint32_t origin;
	pthread_mutex_t snapshot_lock; /* the hooks are told in one cell whose window begins */
	uint64_t begun_ns;	       /* CLOCK_BOOTTIME before our hooks went live */
	struct overlap *overlap;       /* while records of two sets are merged */
	struct net_side *net;	       /* NULL: the network is not watched */
	char error[1024];

	/* drain */
	struct ring ring;
	int uncommitted;	  /* something was handed out since the last commit */
	uint64_t told[KW_STAGES]; /* of the losses, what was handed out; control->told is what was committed */
	int poll_fd;
	int stop_fd;
	int inotify_fd;
	int paths_changed;
	int stopped;
	int interrupted;
	uint8_t *undecided; /* the record at which draining stopped, for somebody who reads command lines */
	uint64_t undecided_bytes;
	int undecided_again; /* an earlier daemon gave a verdict on it, and counted what follows */
	uint32_t nap_ms;
	uint64_t last_sync_ns;
	uint64_t last_look_ns; /* for what the kernel skipped */
	int sync_due;
	int64_t wall_ns;
	uint64_t polls, syncs;
	struct kw_engine *engine; /* during a drain */
	uint8_t *staging;
	uint64_t staged, batch_bytes;
	int64_t batch_records;
};

extern const char *const program_names[LINKS];
/* The map's name in its object. */
const char *map_name(enum map_index map);
/* Does the kernel skip this one's program sometimes? */
static inline int is_hook(int link)
{
	return link <= LINK_CGROUP_RMDIR || link >= LINKS_ALWAYS;
}
int loader_fail(struct kw_loader *loader, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* From here on keep what libbpf warns of in this thread, and what it warned of. */
void loader_libbpf_hear(void);
const char *loader_libbpf_said(void);
uint64_t file_hash(const char *path);
int remove_directory(const char *path);
void set_init(struct kernel_set *set);
void set_close(struct kernel_set *set);
int set_map_cells(struct kernel_set *set);
/* Open everything pinned at `pins`. -ENOENT: nothing there; another error: something, but not one whole set of ours. */
int set_open_pins(struct kernel_set *set, const char *pins);
/* On failure what was pinned before is pinned still. */
int set_pin(struct kw_loader *loader);
int ring_open(struct ring *ring, int map_fd);
void ring_close(struct ring *ring);
unsigned long ring_unread(const struct ring *ring);
const void *ring_next(struct ring *ring, uint32_t *size);
void ring_release(const struct ring *ring);
int drain_open(struct kw_loader *loader);
/* Count what the kernel skipped among what is lost. */
void skips_look(struct kw_loader *loader);
/* The sum of what `skipped` says of the network side's programs that the kernel may skip. */
uint64_t net_skipped(const struct kw_loader *loader, uint64_t (*skipped)(int program_fd));
/* Read on until the ring is empty, a batch is full (1) or a record is undecided (1). */
int drain_ring(struct kw_loader *loader);
void drain_tell_clock(struct kw_loader *loader, struct kw_engine *engine);
/* The ring position up to which verdicts on command lines are counted; it lives as long as the counters. */
uint64_t *drain_judged(struct kw_loader *loader);
void stage(struct kw_loader *loader, const void *record, uint64_t size);
void staging_flush(struct kw_loader *loader);
/* Run an iterator that counts what it changed in control->adopted until a run changes nothing. Returns the sum. */
int64_t run_to_fixed_point(struct kw_loader *loader, enum link_index link);
void edges_empty(struct kw_loader *loader);

/* enforce.c. User space kills whom the kernel could not. */
void enforce_delegated(struct kw_loader *loader, const struct kw_enforced *record);
/* No limit, no mode, for any slot. */
void enforce_init(struct kw_control *control);

/* swap.c. Tables and rows of the old set into ours, before and after our hooks are live; then, once theirs are gone,
 * the merge of what both saw. */
int swap_copy_tables(struct kw_loader *loader, const struct kernel_set *old);
int swap_hand_over(struct kw_loader *loader, struct kernel_set *old);
/* 1: it stopped at an undecided record and has to be called again. */
int swap_finish(struct kw_loader *loader);
int swap_old_ring(struct kw_loader *loader, struct ring *ring);
/* True: the old set has told this record already. */
int swap_is_told(struct kw_loader *loader, const struct kw_header *header);
void swap_free(struct kw_loader *loader);

/* netload.c. Between the opening and the loading of the first object: make the maps that both objects use, and load the
 * second in a thread. */
int net_load_meanwhile(struct kw_loader *loader, const char *path, uint32_t wanted);

/* netrun.c. Nothing where the network is not watched. */
void net_tend(struct kw_loader *loader);
int net_forget(struct kw_loader *loader, uint64_t watches);
int net_adopt(struct kw_loader *loader, uint64_t watches);
/* 1: of the sockets that are open an earlier daemon was told, and this one was not. */
int net_is_taken_over(const struct kw_loader *loader);
/* Tell the engine of every socket again. told: without lines. 0: there is nothing to do it with. */
int net_retell(struct kw_loader *loader, struct kw_engine *engine, int told);
/* A process became a root: it may have sockets from before. Looked at by the next net_tend(). */
void net_note_root(struct kw_loader *loader, uint32_t pid);
/* A listener's port was not known yet when it was told. The next net_tend() has it told. */
void net_note_portless(struct kw_loader *loader);
void net_free(struct kw_loader *loader, int keep);

void drain_close(struct kw_loader *loader);
/* Read all of an iterator; returns bytes read. `each` may be NULL. */
int64_t iterator_run(int link_fd, int (*each)(void *context, const uint8_t *bytes, uint64_t length), void *context);

static inline uint64_t slot_bit(uint32_t slot)
{
	return 1ULL << slot;
}

#endif
