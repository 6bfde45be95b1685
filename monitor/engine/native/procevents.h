/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel's process connector tells, cut down to who may be kin: the C API. Declarations only: cffi reads this
 * file too.
 *
 * The reader keeps a set of pids. A fork is handed on when its parent is in the set (the child then is, too), the end
 * of a thread when its process is, an exec always (and its process is in the set until somebody takes it out). So a
 * storm of strangers costs nothing beyond the receiving, and nothing of kin is dropped before Python has decided.
 *
 * One thread at a time uses a kw_proc_reader.
 */

enum kw_proc_kind {
	KW_PROC_FORK = 1,   /* process pid was made by other */
	KW_PROC_THREAD = 2, /* process pid has one thread more */
	KW_PROC_EXEC = 3,
	KW_PROC_EXIT = 4, /* one thread of process pid is gone: tid, and its exit code in value */
	KW_PROC_UID = 5,  /* process pid now runs as real uid value */
	KW_PROC_COMM = 6  /* process pid calls itself comm (its first thread does) */
};

/* Process ids of the initial pid namespace. */
struct kw_proc_event {
	uint64_t time_ns;     /* CLOCK_MONOTONIC */
	uint64_t start_ticks; /* field 22 of proc_pid_stat(5), read when a fork arrived; 0: it had gone by then */
	uint32_t kind;	      /* enum kw_proc_kind */
	uint32_t pid;
	uint32_t tid;
	uint32_t other;
	uint32_t value;
	uint32_t reserved;
	uint8_t comm[16];
};

struct kw_proc_reader;

/* NULL: no memory. */
struct kw_proc_reader *kw_proc_new(void);
void kw_proc_free(struct kw_proc_reader *reader);

/* Hand on forks and ends of everybody (0) or of those in the set (1). */
void kw_proc_filter(struct kw_proc_reader *reader, int on);

/* Put pid into the set, or take it out. */
void kw_proc_follow(struct kw_proc_reader *reader, uint32_t pid, int on);

/*
 * Take what the socket has, without waiting; at most room events, room at least 256. Returns how many events there
 * are, -EAGAIN when the socket had nothing at all, -ENOBUFS when it had to drop (events may be there at the next call),
 * or another negative errno. *lost: messages that never came, of anybody, by the kernel's own numbering.
 */
int kw_proc_read(struct kw_proc_reader *reader, int netlink, struct kw_proc_event *events, uint32_t room,
		 uint64_t *lost);

/*
 * As kw_proc_read(), but wait until there is an event or a loss, the descriptor wake is readable, or timeout_ms have
 * passed (-1: never); -EAGAIN for these two. Events that are not handed on wake nobody.
 */
int kw_proc_wait(struct kw_proc_reader *reader, int netlink, int wake, int timeout_ms, struct kw_proc_event *events,
		 uint32_t room, uint64_t *lost);
