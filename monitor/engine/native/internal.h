/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the engine share: its structures, and the functions between them. Nobody else reads it.
 *
 * ingest.c    the door: checks records            events.c   what each kind of record means
 * process.c   who is alive, from which root       counters.c joining, leaving, losses
 * expect.c    instant expectations                exes.c     paths, and executables per watch
 * lines.c     one function per line               json.c     numbers, strings and times as JSON
 * engine.c    lifetime, watches, batches          tree.c     live kin as JSON
 * evicted.c   what a bounded set had to drop      network.h  the network's files
 * rules.h     the files of rules on lineage
 * rowset.c    distinct rows                       device.h   the device's files, which no engine uses
 */
#ifndef KINWATCH_INTERNAL_H
#define KINWATCH_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "event.h"

#include "engine.h"

enum {
	DEAD_KEPT = 4096,	 /* ended processes that can still be named as somebody's ancestor */
	DESCENTS_INLINE = 2,	 /* lineages a process has without asking the pool */
	PATHS_KEPT = 8192,	 /* distinct paths */
	EXES_KEPT = 256,	 /* distinct executables per watch */
	RECORD_BYTES = 64 << 10, /* no record is longer */
	EVICTED_KEPT = 1024,	 /* per watch and set: what had to go, known by hash */
	PATH_TEXT_BYTES = 8 << 20,
	BATCH_BYTES = 64 << 20, /* lines or records that wait to be taken */
	ALARM_BYTES = 1 << 20,	/* room beyond, for alarms and losses only */
	LINEAGE_SHOWN = 64,	/* processes in the lineage of an alarm */
	NONE = 0,		/* indices are kept plus one, so that zeroed memory is an empty table */
};

/* In these slots a process descends from this root, at this depth. */
struct kw_descent {
	uint64_t slots;
	uint64_t root_start_ns;
	uint32_t root_pid;
	uint32_t depth;
};

struct kw_descent_node {
	struct kw_descent descent;
	uint32_t next;
};

enum process_flag {
	PROCESS_LIVE = 1,
	PROCESS_DEAD = 2,      /* counted out already */
	PROCESS_EXITED = 4,    /* its exit record came */
	PROCESS_UNTRACKED = 8, /* not in the table, which is full */
	PROCESS_HAS_PARENT = 16,
	PROCESS_HAS_UID = 32,
	PROCESS_EXECUTED = 64, /* it, or a descendant it was forked from, executed what it runs */
	PROCESS_MEMFD = 128,   /* what is known of that image, as flags of a record tell it */
	PROCESS_DELETED = 256,
	PROCESS_TEMPORARY = 512,
	PROCESS_IMAGE = PROCESS_EXECUTED | PROCESS_MEMFD | PROCESS_DELETED | PROCESS_TEMPORARY,
};

struct kw_process {
	uint64_t start_ns;
	uint64_t parent_start_ns;
	uint64_t watches;   /* of defined slots only; in the dead: as it was */
	uint64_t roots;	    /* subset of watches */
	uint64_t announced; /* slots whose fork, root or adopt line was made */
	uint64_t seen_ns;   /* time of the last record about it */
	struct kw_descent
	    told; /* outermost root and depth as a record gave them, and the watches it meant; 0: nothing told */
	struct kw_descent descents[DESCENTS_INLINE];
	uint32_t more; /* further descents */
	uint32_t pid;
	uint32_t parent_pid;
	uint32_t uid;
	uint32_t path; /* what it runs */
	uint32_t device;
	uint64_t inode;	   /* of that file; 0: unknown */
	uint32_t breaches; /* rules that it breaks now */
	uint32_t next;	   /* in its hash chain, or in the free list */
	uint32_t sync;	   /* the last sync that mentioned it */
	uint32_t flags;
	uint8_t comm[KW_COMM_BYTES];
};

struct kw_table {
	struct kw_process *processes; /* capacity + DEAD_KEPT */
	struct kw_descent_node *nodes;
	uint32_t *live_chains, *dead_chains;
	uint32_t *order; /* scratch: live processes, oldest first */
	uint32_t *stack; /* scratch: a chain of ancestors */
	uint32_t live_shift, dead_shift;
	uint32_t capacity, live;
	uint32_t used, free_process; /* processes ever used; free list */
	uint32_t nodes_used, free_node;
	uint32_t dead[DEAD_KEPT]; /* a ring, oldest at dead_next once it is full */
	uint32_t dead_next;
	struct kw_process overflow; /* stands in for one that does not fit */
};

struct kw_path {
	char *text;
	uint64_t hash;
	uint32_t length, room;
	uint32_t users;
	uint32_t next;
};

struct kw_paths {
	struct kw_path *cells; /* PATHS_KEPT */
	uint32_t *chains;      /* PATHS_KEPT */
	uint32_t used, free_cell;
	uint64_t text_bytes;
};

struct kw_exe {
	uint64_t mark; /* of its last run */
	uint32_t path;
};

struct kw_evicted {
	uint64_t hash, mark;
};

/* Distinct things a bounded set had no room for, by hash, each with the mark of its last use. */
struct kw_evictions {
	struct kw_evicted cells[EVICTED_KEPT];
	uint32_t count;
	uint64_t forgotten, forgotten_mark; /* fell out even here, and the newest mark among them */
};

struct kw_exes {
	struct kw_exe kept[EXES_KEPT];
	uint32_t count;
	struct kw_evictions evictions;
};

#include "network.h"
#include "rules.h"

struct kw_slot {
	char name[KW_NAME_BYTES];
	uint32_t name_length;
	struct kw_counters counters;
	uint64_t untracked[2]; /* counted as alive but in no table: descendants, roots */
	uint64_t stale[2];     /* part of untracked that the sync under way has not found yet */
	int64_t limit;	       /* most descendants alive, -1: any number */
	bool alarmed;
	uint64_t since_wall_ns; /* of the alarm */
	struct kw_id offender;	/* pid 0: unknown */
	struct kw_exes *exes;
	struct kw_remotes *remotes, *ports;
	struct kw_net_expect net;
	struct kw_rules *rules; /* NULL: none */
};

struct kw_out {
	char *data;
	uint64_t length, capacity;
	uint64_t lines, alarms, clears;
};

struct kw_engine {
	pthread_mutex_t lock;
	uint64_t defined; /* slots that have a watch */
	uint64_t ruled;	  /* slots that have rules on lineage */
	uint64_t hurried; /* slots that fork too often now */
	struct kw_breaches breaches;
	struct kw_breaker breaker;
	struct kw_slot slots[KW_SLOTS];
	struct kw_table table;
	struct kw_paths paths;
	struct kw_out lines[2], records[2];
	int filling; /* which of the two */
	bool recording;
	uint64_t losses[KW_STAGES];
	uint64_t unsaid[KW_STAGES]; /* losses no line has told yet */
	uint64_t now_ns;	    /* time of the last record */
	int64_t wall_ns;	    /* offset */
	uint64_t second;	    /* the wall second that second_text shows */
	char second_text[20];
	bool lossy; /* the line being written had bytes replaced */
	uint64_t mark;
	uint32_t sync; /* number of the current or last sync */
	bool syncing;
	uint64_t sync_ns; /* when the current sync began, 0: unknown */
	struct kw_sockets sockets;
	struct kw_names names;
	struct kw_dns_message dns;	    /* the message being looked at */
	uint64_t aligned[RECORD_BYTES / 8]; /* a record from an odd address is copied here first */
};

/* Bits */
static inline uint32_t lowest_slot(uint64_t mask)
{
	return (uint32_t)__builtin_ctzll(mask);
}

static inline uint64_t slot_bit(uint32_t slot)
{
	return 1ULL << slot;
}

/* process.c */
int kw_table_new(struct kw_table *table, uint32_t capacity);
void kw_table_free(struct kw_table *table);
struct kw_process *kw_process_live(struct kw_engine *engine, uint32_t pid);
struct kw_process *kw_process_find(struct kw_engine *engine, uint32_t pid, uint64_t start_ns);
struct kw_process *kw_process_add(struct kw_engine *engine, const struct kw_id *id, bool dead);
void kw_process_bury(struct kw_engine *engine, struct kw_process *process);
void kw_process_drop(struct kw_engine *engine, struct kw_process *process);
void kw_process_runs(struct kw_engine *engine, struct kw_process *process, uint32_t path);
struct kw_process *kw_process_parent(struct kw_engine *engine, const struct kw_process *process);
const struct kw_descent *kw_descent_of(const struct kw_engine *engine, const struct kw_process *process, uint32_t slot);
void kw_descend(struct kw_engine *engine, struct kw_process *process, uint64_t slots);
uint64_t kw_descent_unknown(const struct kw_engine *engine, const struct kw_process *process);
void kw_descent_forget(struct kw_engine *engine, struct kw_process *process, uint64_t slots);
uint32_t kw_table_order(struct kw_engine *engine);

/* counters.c */
enum joining {
	JOIN_FORKED,
	JOIN_ADOPTED,
	JOIN_IMPLIED, /* some record speaks of a process whose beginning was never told */
	JOIN_SYNCED,  /* the same, in a sync: it is not sure yet who else is alive, so the peak waits for its end */
};
void kw_join(struct kw_engine *engine, uint32_t slot, const struct kw_process *process, enum joining how);
void kw_leave(struct kw_engine *engine, uint32_t slot, struct kw_process *process, bool ended);
void kw_peak(struct kw_slot *slot);
void kw_lose(struct kw_engine *engine, enum kw_stage stage, uint64_t count);

/* expect.c */
void kw_judge(struct kw_engine *engine, uint32_t slot, struct kw_process *offender);
void kw_limit(struct kw_engine *engine, uint32_t slot, int64_t limit);

struct kw_lineage {
	struct kw_process *members[LINEAGE_SHOWN]; /* the process itself first */
	uint32_t count;
	uint64_t room; /* its text takes at most */
};
void kw_lineage_of(struct kw_engine *engine, uint32_t slot, struct kw_process *process, struct kw_lineage *lineage);
char *kw_put_lineage(struct kw_engine *engine, char *at, uint32_t slot, const struct kw_lineage *lineage);

/* evicted.c */
void kw_evicted_note(struct kw_evictions *evictions, uint64_t hash, uint64_t mark);
void kw_evicted_remove(struct kw_evictions *evictions, uint64_t hash);
uint64_t kw_evicted_since(const struct kw_evictions *evictions, uint64_t mark);
uint64_t kw_hash(const uint8_t *bytes, uint64_t length);

/* exes.c */
int kw_paths_new(struct kw_paths *paths);
void kw_paths_free(struct kw_paths *paths);
uint32_t kw_path_keep(struct kw_engine *engine, const uint8_t *text, uint32_t length);
void kw_path_use(struct kw_engine *engine, uint32_t path);
void kw_path_release(struct kw_engine *engine, uint32_t path);
const struct kw_path *kw_path_at(const struct kw_engine *engine, uint32_t path);
void kw_exe_note(struct kw_engine *engine, uint32_t slot, uint32_t path);
void kw_exes_clear(struct kw_engine *engine, uint32_t slot);

/* json.c: each writes at `at`, into room that was reserved before, and returns the end of what it wrote */
char *kw_out_reserve(struct kw_out *out, uint64_t bytes, uint64_t limit);
char *kw_put_number(char *at, uint64_t number);
char *kw_put_string(char *at, const uint8_t *bytes, uint64_t length, bool *lossy);
char *kw_put_strings(char *at, const uint8_t *bytes, uint64_t length, bool *lossy);
char *kw_put_time(struct kw_engine *engine, char *at, uint64_t wall_ns);
uint64_t kw_wall(const struct kw_engine *engine, uint64_t boot_ns);

static inline char *kw_put(char *at, const char *bytes, size_t length)
{
	memcpy(at, bytes, length);
	return at + length;
}

#define PUT(at, literal) kw_put((at), (literal), sizeof(literal) - 1)

static inline char *kw_put_process_id(char *at, uint32_t pid, uint64_t start_ns)
{
	*at++ = '"';
	at = kw_put_number(at, pid);
	*at++ = '-';
	at = kw_put_number(at, start_ns / KW_TICK_NS);
	*at++ = '"';
	return at;
}

static inline uint32_t kw_comm_length(const uint8_t *comm)
{
	return (uint32_t)strnlen((const char *)comm, KW_COMM_BYTES);
}

/* events.c */
void kw_happen(struct kw_engine *engine, const struct kw_header *header);

/* engine.c */
void kw_keep_record(struct kw_engine *engine, const uint8_t *bytes, uint64_t length);
void kw_say_losses(struct kw_engine *engine, uint64_t stages);

/* lines.c */
enum { STRING_GROWTH = 6, LINE_ROOM = 1024 }; /* a byte becomes at most \u00xx; all of a line but long strings */
char *kw_line_begin(struct kw_engine *engine, uint64_t room, uint64_t limit, uint64_t wall_ns);
void kw_line_end(struct kw_engine *engine, char *at);
void kw_line_fork(struct kw_engine *engine, uint32_t slot, const struct kw_fork *record,
		  const struct kw_process *process);
void kw_line_exit(struct kw_engine *engine, uint32_t slot, const struct kw_exit *record,
		  const struct kw_process *process);
enum image_line { LINE_ROOT, LINE_EXEC, LINE_ADOPT };
void kw_line_image(struct kw_engine *engine, uint32_t slot, const struct kw_image *record,
		   const struct kw_process *process, enum image_line which);
/* Parts of lines. */
char *kw_put_watch(const struct kw_engine *engine, char *at, uint32_t slot);
char *kw_put_process(char *at, const struct kw_id *id);

bool kw_line_lost(struct kw_engine *engine, enum kw_stage stage, uint64_t count);

#endif
