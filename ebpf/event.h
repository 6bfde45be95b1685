/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The wire: what a capture tells the engine, and the counters and table rows that kernel and user space share.
 *
 * Four compilers read this file as it stands: clang for BPF, BCC's clang, the host compiler and cffi's parser. So it
 * holds enums and structs only, no preprocessor line, fixed-width types that the including file has defined, padding
 * spelled out, no pointer, no bit-field, no packed. Every change here raises KW_LAYOUT.
 *
 * One record = struct kw_header, a body, perhaps a tail of bytes. Records stand back to back, each a multiple of 8
 * bytes.
 */

enum kw_limit {
	KW_LAYOUT = 5,	      /* of everything in this file; in record files and beside pinned maps */
	KW_SLOTS = 32,	      /* bits used of a watch mask */
	KW_WATCHES = 24,      /* configured watches take slots [0, 24); the others serve undecided command lines */
	KW_READERS = 4,	      /* readers of windows, each with a peak of its own */
	KW_COMM_BYTES = 16,   /* TASK_COMM_LEN, the terminating zero included */
	KW_NAME_BYTES = 64,   /* longest watch name and longest file base name that is matched */
	KW_PATH_BYTES = 4096, /* PATH_MAX: longest path in an image record */
	KW_ARGV_BYTES = 8192, /* argv kept of an image; longer: KW_TRUNCATED, true length in argv_bytes */
	KW_DNS_BYTES = 1536,  /* most of a DNS message that is looked at */
	KW_TICK_NS = 10000000 /* 1 s / USER_HZ: process ids count in ticks because every capture can */
};

enum kw_kind {
	KW_FORK = 1,  /* struct kw_fork: a child of kin was made; it has not run yet */
	KW_EXEC = 2,  /* struct kw_image: kin runs a new image, or a process became a root by its image */
	KW_EXIT = 3,  /* struct kw_exit: the last thread of kin is gone */
	KW_ADOPT = 4, /* struct kw_image: a process that was already running became kin */
	KW_FORGET =
	    5, /* struct kw_forget: no longer kin of some watches, though alive (a watch was removed or rejected) */
	KW_SYNC = 6,	 /* struct kw_sync: one row of the kernel's lineage map, after a loss or a takeover; no line */
	KW_LOST = 7,	 /* struct kw_lost: records that will never come */
	KW_CLOCK = 8,	 /* struct kw_clock: boot-to-wall offset from here on */
	KW_SOCKET = 9,	 /* struct kw_socket: something happened to a socket of kin */
	KW_DNS = 10,	 /* struct kw_dns: a DNS message of kin, as it went over the wire */
	KW_ENFORCED = 11 /* struct kw_enforced: a fork or exec that broke an expectation was acted on */
};

/* Header flags: which optional groups are known (a clear bit means unknown, and the line omits the key), then facts. */
enum kw_flag {
	KW_HAS_PARENT = 1,	/* parent */
	KW_HAS_ROOT = 2,	/* root and depth */
	KW_HAS_CREDENTIALS = 4, /* uid, gid */
	KW_HAS_STATUS = 8,	/* status of an exit */
	KW_HAS_PPID = 16,	/* ppid */
	KW_HAS_EXE = 32,	/* exe, device, inode */
	KW_HAS_ARGV = 64,	/* argv, argv_bytes */
	KW_TEMPORARY =
	    128, /* the image's file lies where anybody may write: tmpfs, or a directory that is open to all */
	KW_TRUNCATED = 256,    /* argv or a path is longer than what is kept */
	KW_MEMFD = 512,	       /* the image lives in memory only */
	KW_DELETED = 1024,     /* the image's file has no name any more */
	KW_INFERRED = 2048,    /* adopted though the chain of parents is broken: the session leader is kin */
	KW_APPROXIMATE = 4096, /* time_ns is when the poller saw it, not when it happened */
	KW_UNDECIDED =
	    8192, /* from the hooks to the loader alone: a command line decides, root is the process that has it */
	KW_JUDGED = 16384 /* unexpected of an image is known: the kernel compared the file with the expected ones */
};

/* Which expectation a fork or exec broke. */
enum kw_reason {
	KW_REASON_CHILDREN = 1,	  /* more descendants alive than child_processes */
	KW_REASON_EXECUTABLE = 2, /* an image that is none of executables */
	KW_REASON_DEPTH = 3,	  /* deeper below its root than depth */
	KW_REASON_RATE = 4,	  /* more forks within a minute than forks_per_minute */
	KW_REASON_UID = 5,	  /* runs as none of uids */
	KW_REASON_MEMFD = 6,	  /* an image in memory */
	KW_REASON_DELETED = 7,	  /* an image without a name */
	KW_REASON_TEMPORARY = 8,  /* an image where anybody may write */
	KW_REASON_UNTRACKED = 9	  /* there was no room to follow it */
};

enum kw_action {
	KW_ACTION_KILL = 1,	/* SIGKILL is pending before its first instruction */
	KW_ACTION_WOULD = 2,	/* dry-run: nothing was done */
	KW_ACTION_SPARED = 3,	/* the breaker has stopped enforcement */
	KW_ACTION_DELEGATE = 4, /* the kernel cannot signal it here: user space kills it, through a pidfd */
	KW_ACTION_DENY = 5	/* its fork was refused: there is no child, and the record is of who wanted one */
};

enum kw_cause {
	KW_CAUSE_EXEC = 1,    /* matched when it executed an image */
	KW_CAUSE_RUNNING = 2, /* was running when the watch began */
	KW_CAUSE_MOVED = 3    /* was moved into a watched cgroup */
};

/* Where details are lost. Counts of processes stay exact in all of them but table_full. */
enum kw_stage {
	KW_RING_FULL = 0,   /* the reader was too slow for the ring */
	KW_TABLE_FULL = 1,  /* more kin at once than max_processes */
	KW_BAD_RECORD = 2,  /* the door refused bytes */
	KW_SINK_FULL = 3,   /* a sink was slower than the events */
	KW_SPOOL_FULL = 4,  /* the spool had to drop */
	KW_HOOK_MISSED = 5, /* the kernel skipped a hook (recursion) */
	KW_STAGES = 6
};

/* What happened to a socket. Addresses are known from KW_SOCKET_CONNECTING on. */
enum kw_socket_event {
	KW_SOCKET_CONNECTING = 1, /* TCP: the first SYN is about to leave. No line; result is not known yet */
	KW_SOCKET_CONNECTED =
	    2, /* result 0: established (TCP), or a peer was set (UDP); else why not, a positive errno */
	KW_SOCKET_ACCEPTED = 3,	 /* an established connection of a listener of kin */
	KW_SOCKET_LISTENING = 4, /* TCP: listens; UDP: bound to a port without a peer */
	KW_SOCKET_CLOSED = 5,	 /* an established connection, or a listener, is over; bytes are final */
	KW_SOCKET_PEER =
	    6, /* UDP without a peer of its own: a datagram to or from this remote address, first of late */
	KW_SOCKET_FAMILY = 7, /* a socket of another family than IP was made: unix, bluetooth, can, ... No addresses */
	KW_SOCKET_LIVE = 8    /* the socket existed when watching began: as the event its state stands for */
};

/* Of a KW_SOCKET_LIVE, in `result`. */
enum kw_live {
	KW_LIVE_INCOMING = 1, /* it came through a listener of kin; without it, that is to be guessed from the port */
	KW_LIVE_TOLD = 2      /* an earlier daemon told of it: no line */
};

/* A process: pid is the thread group id in the initial pid namespace, start_ns the group leader's start_boottime.
 * All zero: unknown. As text "pid-ticks", ticks = start_ns / KW_TICK_NS. */
struct kw_id {
	uint64_t start_ns;
	uint32_t pid;
	uint32_t reserved; /* zero */
};

struct kw_header {
	uint32_t size;	  /* bytes of the whole record, this header and padding included */
	uint16_t kind;	  /* enum kw_kind */
	uint16_t flags;	  /* enum kw_flag */
	uint64_t time_ns; /* CLOCK_BOOTTIME */
	uint64_t watches; /* slots this process is kin of: after the event, at an exit before it */
	uint64_t roots;	  /* subset of watches: slots it is a root of */
};

struct kw_fork {
	struct kw_header header;
	struct kw_id process;
	struct kw_id parent; /* the process that forked, whatever real_parent says (CLONE_PARENT) */
	struct kw_id root;   /* the outermost root of the lineage */
	uint32_t depth;	     /* from that root; a root is 0 */
	uint32_t uid;
	uint8_t comm[16];
};

struct kw_exit {
	struct kw_header header;
	struct kw_id process;
	struct kw_id root;
	uint32_t depth;
	uint32_t status; /* as wait(2): low 7 bits signal, 0x80 core dumped, next byte the exit code */
	uint32_t uid;
	uint32_t reserved;
	uint8_t comm[16];
};

/* A piece of the tail: offset from the start of the record. length 0 = absent. */
struct kw_text {
	uint32_t offset;
	uint32_t length;
};

struct kw_image {
	struct kw_header header;
	uint64_t fresh; /* subset of watches: slots that this very record made it kin of */
	struct kw_id process;
	struct kw_id parent; /* the creator, where known; for a root the parent at that moment */
	struct kw_id root;
	uint64_t inode;	 /* of the mapped file */
	uint32_t device; /* kernel dev_t: major << 20 | minor */
	uint32_t depth;
	uint32_t ppid; /* real parent now */
	uint32_t uid;
	uint32_t gid;
	uint32_t cause;	     /* enum kw_cause, for the slots in fresh */
	uint32_t argv_bytes; /* true length of the argument block */
	uint32_t unexpected; /* subset of watches, below KW_WATCHES: slots whose executables it is none of; KW_JUDGED */
	uint8_t comm[16];
	struct kw_text exe;    /* path of the mapped file, as /proc/PID/exe without " (deleted)" */
	struct kw_text script; /* path of the script that named exe as its interpreter */
	struct kw_text argv;   /* arguments, each ended by a zero byte (the last one perhaps cut) */
	struct kw_text cwd;
};

struct kw_forget {
	struct kw_header header; /* watches, roots: what is left */
	struct kw_id process;
	uint64_t gone; /* slots it is no longer kin of */
};

/* phase 0: a sync begins, the engine marks all processes it knows; 1: a row; 2: ends, what was not mentioned is gone. 3
 * and 4: the same of sockets, whose rows are KW_SOCKET_LIVE. */
struct kw_sync {
	struct kw_header header;
	struct kw_id process;
	struct kw_id parent;
	struct kw_id root;
	uint32_t depth;
	uint32_t phase;
	uint32_t uid;
	uint32_t reserved;
	uint8_t comm[16];
};

struct kw_lost {
	struct kw_header header;
	uint64_t count; /* lost at this stage since the last such record */
	uint32_t stage; /* enum kw_stage */
	uint32_t reserved;
};

/*
 * A socket belongs to the process that made it, connected it or first used it as kin; an accepted one to the owner of
 * its listener; whoever uses or closes it. The header's watches and roots are the owner's.
 */
struct kw_socket {
	struct kw_header header;
	struct kw_id process; /* the owner */
	struct kw_id root;
	uint64_t cookie;      /* names the socket as long as the machine runs */
	uint64_t bytes_in;    /* payload so far */
	uint64_t bytes_out;   /* payload so far, retransmissions not counted */
	uint32_t depth;	      /* of the owner */
	uint32_t result;      /* errno; KW_SOCKET_CONNECTED. enum kw_live; KW_SOCKET_LIVE */
	uint16_t event;	      /* enum kw_socket_event */
	uint16_t family;      /* AF_* */
	uint16_t protocol;    /* IPPROTO_* */
	uint16_t type;	      /* SOCK_* */
	uint16_t local_port;  /* host byte order; 0: none */
	uint16_t remote_port; /* host byte order; 0: none */
	uint32_t state;	      /* TCP_* of the kernel, KW_SOCKET_LIVE */
	uint8_t local[16];    /* network byte order; AF_INET: the first four */
	uint8_t remote[16];
	uint8_t comm[16]; /* of the owner, as it was when it became that */
};

/* One message of at most KW_DNS_BYTES; tail: its bytes. TCP: without the two bytes of length. */
struct kw_dns {
	struct kw_header header;
	struct kw_id process; /* owner of the socket */
	struct kw_id root;
	uint64_t cookie;
	uint32_t depth;
	uint32_t total;	   /* true length of the message; more than the tail has: cut */
	uint16_t family;   /* AF_* */
	uint16_t protocol; /* IPPROTO_* */
	uint16_t incoming; /* 1: from the server, 0: to it */
	uint16_t remote_port;
	uint8_t remote[16]; /* the server */
	struct kw_text message;
};

/* Comes after the fork or exec it is about. One record, whatever the number of watches. */
struct kw_enforced {
	struct kw_header header;
	struct kw_id process; /* the one that was acted on */
	struct kw_id root;
	uint64_t slots; /* subset of watches: whose expectation it broke */
	uint32_t depth;
	uint32_t uid;
	uint16_t reason; /* enum kw_reason */
	uint16_t action; /* enum kw_action */
	uint32_t reserved;
	uint8_t comm[16];
};

struct kw_clock {
	struct kw_header header;
	int64_t wall_ns; /* CLOCK_REALTIME - CLOCK_BOOTTIME */
};

/* Per watch; monotonic but for roots and alive. "Descendants" never includes roots. */
struct kw_counters {
	uint64_t roots;	  /* roots alive */
	uint64_t alive;	  /* descendants alive */
	uint64_t peak;	  /* most descendants alive at once, ever */
	uint64_t spawned; /* descendants forked */
	uint64_t adopted; /* descendants taken in while running */
	uint64_t execs;	  /* images executed by descendants */
	uint64_t exits;	  /* descendants ended */
	uint64_t root_starts;
	uint64_t root_exits;
	uint64_t window_peak[4]; /* KW_READERS: as peak, since that reader began its window */
	uint64_t enforced;	 /* processes killed, or to be killed by user space */
	uint64_t would_enforce;	 /* processes that a dry run, or a breaker that had tripped, let go */
};

/* A row of the kernel's lineage map, keyed by pid. */
struct kw_kin {
	uint64_t start_ns;
	uint64_t watches;
	uint64_t roots;
	uint64_t parent_start_ns;
	uint64_t root_start_ns;
	uint32_t parent_pid;
	uint32_t root_pid;
	uint32_t depth;
	uint16_t flags;		     /* enum kw_flag: KW_HAS_PARENT, KW_INFERRED */
	uint16_t image;		     /* which of its execs was told last; 0: none, or nobody asks */
	uint32_t ended;		     /* subset of watches: slots that count it no more, for it was killed unborn */
	uint32_t fate;		     /* enum kw_fate (table.h) */
	uint64_t undecided_start_ns; /* the process whose command line decides about this one too */
	uint32_t undecided_pid;	     /* 0: nothing is undecided */
	uint32_t undecided_depth;    /* from that process */
};
