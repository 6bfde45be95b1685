/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What loader and hooks share beyond the wire: the control cells and the keys of the match tables. Same rules as
 * event.h: enums and structs only. A change here raises KW_LAYOUT too.
 */

enum kw_reader_state {
	KW_READER_AWAKE = 0,	/* it will look again by itself: never wake it */
	KW_READER_NAPPING = 1,	/* sleeps for a short while: wake it for what is urgent or when the ring fills */
	KW_READER_SLEEPING = 2, /* sleeps without end: the next record wakes it */
};

/* What is to become of kin. */
enum kw_fate {
	KW_FATE_DOOMED =
	    1 /* the kernel could not signal it at its fork: its next exec is its last, user space kills it */
};

/* Why nobody is killed at present. */
enum kw_stop {
	KW_STOP_BREAKER = 1, /* more than max_kills within a minute; until a reload */
	KW_STOP_ORPHANED = 2 /* the daemon is gone, and enforcement fails open */
};

/* What a watch's forks are held against in numbers, by slot: together, because a fork pays for every cache line it
 * looks at. */
struct kw_slot_limits {
	uint64_t children; /* alive, whose breach is urgent; KW_NO_LIMIT */
	uint32_t depth;	   /* deepest that is expected */
	uint32_t rate;	   /* most forks in a minute */
	uint32_t uid;	   /* one of the users expected, the first to be compared with */
	uint32_t has_uid;
	uint64_t reserved; /* two slots to a cache line */
};

/* One row, in the object's .bss, mapped by the loader. User space writes the first group, the hooks the second. */
struct kw_control {
	uint32_t layout;		  /* KW_LAYOUT; first, whatever the layout */
	uint32_t reader;		  /* enum kw_reader_state */
	uint32_t bootstrapping;		  /* edges are kept while it is not zero */
	uint32_t rules;			  /* number of rows in the match tables: 0 makes every exec cheap */
	uint32_t cgroup_rules;		  /* of those, rows about cgroups */
	uint32_t file_rules;		  /* rows about files and places */
	uint32_t pid_rules;		  /* rows about pids */
	uint32_t urgent_ns;		  /* least time between two wake-ups out of a nap */
	uint64_t wake_bytes;		  /* wake a napping reader when the ring holds more */
	uint64_t cmdline;		  /* watches that a command line decides about */
	uint32_t row_mask;		  /* rows of the lineage table less one: a power of two less one */
	uint32_t max_kin;		  /* most kin at once */
	uint64_t nothing;		  /* always zero: a zero that the verifier cannot know, so that states merge */
	struct kw_slot_limits limits[32]; /* KW_SLOTS */

	/* What is judged and enforced here, in masks of slots; together what a fork and an exec look at while nothing
	 * is wrong, on one cache line. */
	uint64_t enforcing;   /* dry-run or kill */
	uint64_t judged;      /* those with expected executables */
	uint64_t located;     /* those that have to know whether an image is temporary */
	uint64_t enforced[9]; /* by enum kw_reason less 1: whose breach is acted on */
	uint64_t killing;     /* of those that enforce, kill */
	uint32_t max_kills;   /* in a minute, of all watches */
	uint32_t hiring;      /* the next run of `identify` makes its reader the daemon */
	uint32_t paired;      /* what is skipped by a hook is made up for by a second one (ebpf/again.bpf.h) */
	uint32_t reserved;
	uint32_t seeding;	  /* the task walk first looks into `seed` */
	int32_t snapshot_reader;  /* whose window the next snapshot begins, -1: none */
	uint64_t adopt_watches;	  /* watches whose running processes the task walk takes in */
	uint64_t forget_watches;  /* watches whose memberships the forget walk takes away */
	uint64_t generation;	  /* random, made when the maps were; names the life of these counters */
	uint64_t since_ns;	  /* CLOCK_BOOTTIME when the maps were made */
	uint64_t object_hash;	  /* of the object file the programs came from */
	uint64_t told[8];	  /* of lost[], what has become records already */
	uint64_t skipped;	  /* by the kernel, of what is in lost[] */
	uint64_t pad_to_line[2];  /* keep what hooks write off the lines above */
	uint32_t daemon_pid;	  /* whose end stops enforcement, 0: nobody's; beside what every exit reads */
	uint32_t stopped;	  /* mask of enum kw_stop */
	uint64_t daemon_start_ns; /* of that daemon */
	uint64_t activity;	  /* records submitted << 24 | kin alive: one atomic add moves both */
	uint64_t overflowed;	  /* kin whose row was taken by another */
	uint64_t woken;		  /* wake-ups asked for */
	uint64_t last_wake_ns;
	uint64_t adopted;	 /* processes the current task walk took in */
	uint64_t kills;		 /* when the minute began, in 2^20 ns << 24 | kills in it */
	uint64_t lost[8];	 /* by enum kw_stage */
	uint64_t spared_told_ns; /* when a record last told that the breaker spared somebody */
};

enum {
	KW_NO_LIMIT = 1073741824, /* more than can be alive */
	KW_PACKED_BITS =
	    24, /* of the lower number in a packed cell; more processes than PID_MAX_LIMIT cannot be alive */
	KW_PACKED_MASK = 16777215,
};

/* row of `counters`: cells that move together share a word, so that one atomic add keeps them consistent; what can be
 * derived is (ended = begun - alive). */
struct kw_counters_row {
	/* what a fork looks at, on one cache line */
	uint64_t children; /* forked << 24 | alive, descendants */
	uint64_t peak;
	uint64_t window_peak[4]; /* KW_READERS */
	uint64_t rate;		 /* when the minute began, in 2^20 ns << 24 | forks in it; of watches with a rate */
	uint64_t roots;		 /* begun << 24 | alive */
	/* and the other */
	uint64_t adopted;
	uint64_t execs;
	uint64_t enforced;
	uint64_t would_enforce;
	uint64_t reserved[4];
};

/* key of `files`: the executed file itself */
struct kw_file_key {
	uint64_t inode;
	uint32_t device; /* kernel dev_t */
	uint32_t reserved;
};

enum {
	KW_EXPECTED_ROWS = 4096, /* of `expected`, a power of two: twice what has to find room */
	KW_EXPECTED_PROBES = 64	 /* rows from where a file should lie on that may hold it */
};

/* row of `expected`: a file as it was when it was named; one that changed since is another. One cache line. Who the
 * file is never changes while a slot expects it; a row that no slot expects may be another file's next. */
struct kw_expected {
	struct kw_file_key file; /* inode 0: never used, and the search ends here */
	uint64_t ctime_ns;
	uint64_t size;
	uint64_t watches; /* slots that expect it */
	uint64_t reserved[3];
};

/* what `identify` writes of every file its reader has open */
struct kw_identity {
	struct kw_file_key file;
	uint64_t ctime_ns;
	uint64_t size;
	uint32_t fd;
	uint32_t reserved;
};

/* key of `places`: a name in a directory, so that a replaced file is matched at its first exec */
struct kw_place_key {
	uint64_t directory_inode;
	uint32_t directory_device;
	uint32_t reserved;
	uint8_t name[64];
};

/* key of `cgroup_paths`: path below the cgroup2 root, zero padded */
struct kw_cgroup_path {
	uint8_t path[256];
};

/* row of `decided`, by the kw_id of a process: what its command line made of it; its descendants get watches alone */
struct kw_verdict {
	uint64_t watches;
	uint64_t roots; /* subset: slots it is a root of */
};

/* row of `edges`: who made a process that was not kin, while the task walk runs */
struct kw_edge {
	uint64_t start_ns;
	uint64_t parent_start_ns;
	uint32_t parent_pid;
	uint32_t reserved;
};

/* row of `watches`, by slot; user space alone reads and writes it: how a new daemon knows whose slot is whose */
struct kw_watch_row {
	uint8_t name[72];  /* the watch's name, zero padded; empty: the slot is free */
	uint64_t identity; /* hash of what the watch matches */
};
