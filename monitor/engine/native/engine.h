/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's C API. Declarations only, no preprocessor line: cffi reads this file, after ebpf/event.h, as its cdef.
 *
 * The engine owns the lineage table, counters, instant expectations and JSON lines. It refuses to know clocks, file
 * descriptors, the kernel, sinks: it is a function of the bytes that come through kw_engine_ingest().
 *
 * Any thread may call; one mutex per engine, held per batch. Results >= 0; failures are negative errno.
 */

struct kw_engine;

/* What one take hands out. The pointers stay valid until the next take; the caller copies. */
struct kw_batch {
	const char *lines; /* JSON lines, each ended by \n, valid UTF-8 */
	uint64_t lines_bytes;
	uint64_t lines_count;
	const uint8_t *records; /* accepted records, raw; only while recording */
	uint64_t records_bytes;
	uint64_t alarms;  /* alarm lines among them */
	uint64_t clears;  /* clear lines among them */
	uint64_t hurried; /* slots with an alarm that time alone clears: a clock record a second later may do it */
};

/* An engine for at most max_processes live kin. NULL: out of memory. */
struct kw_engine *kw_engine_new(uint32_t max_processes);
void kw_engine_free(struct kw_engine *engine);

/* Define slot's watch (or rename it, or change its limit). child_limit: most descendants alive before an alarm, -1:
 * none. -EINVAL: slot out of range, name empty or too long. */
int kw_engine_watch(struct kw_engine *engine, uint32_t slot, const char *name, int64_t child_limit);
/* Forget slot's watch, its memberships and counters. */
int kw_engine_unwatch(struct kw_engine *engine, uint32_t slot);

/* The one door: records back to back, any bytes. Returns the number of records accepted; what is refused is counted
 * as KW_BAD_RECORD and, when a record's size cannot be trusted, the rest of the bytes with it. */
int64_t kw_engine_ingest(struct kw_engine *engine, const uint8_t *bytes, uint64_t length);

/* Hand out the lines made since the last take. */
void kw_engine_take(struct kw_engine *engine, struct kw_batch *batch);
/* Also keep accepted records for kw_engine_take, from now on (on = 1) or no more (0). */
void kw_engine_record(struct kw_engine *engine, int on);

/* Counters of slot as the records tell them. reader >= 0: also begin that reader's window (window_peak := alive). */
int kw_engine_counters(struct kw_engine *engine, uint32_t slot, int reader, struct kw_counters *counters);
/* Losses by enum kw_stage since the engine was made, KW_STAGES cells. */
void kw_engine_losses(struct kw_engine *engine, uint64_t *losses);

/* A mark for kw_engine_exes: executables noted after it are newer. */
uint64_t kw_engine_mark(struct kw_engine *engine);
/* Distinct executables run by descendants of slot after mark: paths, each ended by a zero byte, into out. Returns the
 * bytes needed (> capacity: nothing was written); *missed: distinct executables beyond the bounded set. */
int64_t kw_engine_exes(struct kw_engine *engine, uint32_t slot, uint64_t mark, char *out, uint64_t capacity,
		       uint64_t *missed);

/* Live kin, one JSON object a line, parents before children: for tree and status. Returns the bytes needed
 * (> capacity: nothing was written). */
int64_t kw_engine_tree(struct kw_engine *engine, char *out, uint64_t capacity);

/*
 * Network. A watch expects nothing about it until told. rows: count times 19 bytes, an address of 16 bytes (IPv4 as
 * ::ffff:a.b.c.d), the length of its prefix (of IPv4 plus 96) and a port, its high byte first (0: any). count -1: any
 * destination is expected; 0: none is, but for names. Addresses that a DNS answer to kin gave to one of names are
 * expected, too: names of a-z, 0-9, '-', '_' and '.', "*." in front for all names below, a zero byte behind each;
 * names_bytes of all, 0 with count -1.
 */
int kw_engine_expect_destinations(struct kw_engine *engine, uint32_t slot, const uint8_t *rows, int32_t count,
				  const char *names, uint32_t names_bytes);
/* TCP and UDP ports that kin may listen on. count -1: any; 0: none. */
int kw_engine_expect_ports(struct kw_engine *engine, uint32_t slot, const uint16_t *ports, int32_t count);

/* A file, as image records name it. */
struct kw_file {
	uint64_t inode;
	uint32_t device;
	uint32_t reserved;
};

/* Rules about descendants. A count or number of -1: not judged. */
struct kw_expected_lineage {
	const char *executables; /* paths that may be executed, each ended by a zero byte */
	const char *edges;	 /* "BEFORE -> EXECUTED", likewise */
	const char *root;	 /* path, or name of process, file or script, that a root may execute; NULL: anything */
	const struct kw_file *files; /* which files the executables are; files_count -1: paths are compared, and the
					kernel's word (KW_JUDGED) was about others */
	const uint32_t *uids;
	int32_t executables_count, edges_count, files_count, uids_count;
	int64_t depth, forks_per_minute;
	uint64_t forbidden; /* KW_MEMFD, KW_DELETED, KW_TEMPORARY: images that there must not be */
};
/* Put all rules of slot in the place of what they were. Everybody who lives is judged anew, by what is known of them.
 */
int kw_engine_expect_lineage(struct kw_engine *engine, uint32_t slot, const struct kw_expected_lineage *expected);
/* Enforcement has begun, or begun anew: beyond so many kills within a minute it stops (KW_ACTION_SPARED), which raises
 * an alarm. A standing one is cleared. -1: there is none. */
int kw_engine_breaker(struct kw_engine *engine, int64_t most);

/* A remote address that kin of a watch had to do with. */
struct kw_remote {
	uint8_t address[16]; /* IPv4 as ::ffff:a.b.c.d */
	uint16_t port;	     /* of the remote side when kin connected or sent there; of ours when it accepted */
	uint8_t protocol;    /* IPPROTO_* */
	uint8_t incoming;    /* 1: it connected to kin */
	uint32_t reserved;
};
/* Distinct ones of slot that were used after mark, or belong to a connection that is still open; oldest first. Returns
 * their number (> capacity: only capacity were written); *missed: distinct ones beyond the bounded set. */
int64_t kw_engine_remotes(struct kw_engine *engine, uint32_t slot, uint64_t mark, struct kw_remote *out,
			  uint64_t capacity, uint64_t *missed);
/* Ports kin of slot listened on after mark, or do now: protocol << 16 | port, ascending, each once. As above. */
int64_t kw_engine_listening(struct kw_engine *engine, uint32_t slot, uint64_t mark, uint32_t *out, uint64_t capacity,
			    uint64_t *missed);
