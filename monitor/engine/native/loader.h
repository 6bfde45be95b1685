/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loader's C API: puts the kernel side in place, drains its ring into the engine, reads its counters. Declarations
 * only: cffi reads this file too. loader.c and facts.c alone know libbpf's objects.
 *
 * Results >= 0; failures are negative errno with a sentence in kw_loader_error(). One thread may sit in
 * kw_loader_poll(); kw_loader_stop(), kw_loader_snapshot() and kw_loader_losses() may be called from others meanwhile,
 * everything else not.
 */

struct kw_loader;

struct kw_loader_config {
	const char *object;  /* path of kinwatch.bpf.o */
	const char *btf;     /* BTF file that programs are relocated by, "" for the kernel's own */
	const char *pins;    /* directory in a bpffs to pin into and to take over from, "": no pins */
	uint32_t ring_bytes; /* a power of two, at least a page */
	uint32_t max_processes;
	const char *net_object; /* path of net.bpf.o, to be loaded meanwhile for kw_loader_net(); "": not */
	uint32_t net_hooks;	/* as that will be asked for */
	uint32_t paired;	/* second hooks of fork, exec and exit also where hooks cannot be preempted */
};

/* What kw_loader_open() found under the pins. */
enum kw_origin {
	KW_ORIGIN_NEW = 0,	  /* nothing: everything was loaded anew */
	KW_ORIGIN_TAKEN_OVER = 1, /* the same programs, live: their records, rows and counters go on */
	KW_ORIGIN_SWAPPED = 2	  /* other programs or sizes: ours went live before theirs were taken away */
};

struct kw_loader_state {
	uint64_t generation; /* names the life of the counters: random, made with the maps */
	uint64_t since_ns;   /* CLOCK_BOOTTIME when the maps were made */
	uint64_t kin;	     /* rows in the lineage map */
	uint64_t emitted;    /* records submitted by the hooks */
	uint64_t woken;	     /* wake-ups the hooks asked for */
	uint64_t polls;	     /* times the reader woke up, for whatever reason */
	uint64_t syncs;	     /* times the engine's table was put right from the lineage map */
	uint32_t origin;     /* enum kw_origin */
	uint32_t breaker;    /* 1: too many kills in a minute have stopped enforcement */
};

/* Open, load or take over; hooks are live when it returns, rules (if taken over) as they were. On failure *loader is
 * still set when there was memory for it: read kw_loader_error(), then free it. */
int kw_loader_open(const struct kw_loader_config *config, struct kw_loader **loader);
const char *kw_loader_error(const struct kw_loader *loader);
/* keep: leave the pins (the kernel goes on without us); else everything is unloaded. */
void kw_loader_free(struct kw_loader *loader, int keep);
/* Remove what any loader pinned at that directory. Returns 1 if there was something, 0 if not. */
int kw_loader_unpin(const char *pins, char *error, uint64_t error_capacity);

/* Who has a slot: kept beside the counters, so that the next daemon knows. name "": free. get: name has room for 72
 * bytes; returns 1 if the slot is taken, 0 if not. */
int kw_loader_set_watch(struct kw_loader *loader, uint32_t slot, const char *name, uint64_t identity);
int kw_loader_get_watch(struct kw_loader *loader, uint32_t slot, char *name, uint64_t *identity);

/* Match rules: what makes a process a root of slot. -E2BIG: the table is full. */
int kw_loader_match_name(struct kw_loader *loader, uint32_t slot, const char *name);
int kw_loader_match_file(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode);
int kw_loader_match_place(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode,
			  const char *name);
int kw_loader_match_pid(struct kw_loader *loader, uint32_t slot, uint32_t pid);
int kw_loader_match_cgroup(struct kw_loader *loader, uint32_t slot, uint64_t id);
int kw_loader_match_cgroup_path(struct kw_loader *loader, uint32_t slot, const char *path);
/* Take slot's rules away, all or one; its kin stay. */
int kw_loader_unmatch(struct kw_loader *loader, uint32_t slot);
void kw_loader_unmatch_file(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode);
void kw_loader_unmatch_place(struct kw_loader *loader, uint32_t slot, uint32_t major, uint32_t minor, uint64_t inode,
			     const char *name);
/* Let poll return when something is made, moved, removed or changed in a directory; paths_changed() says once that it
 * was. */
int kw_loader_watch_directory(struct kw_loader *loader, const char *directory);
int kw_loader_paths_changed(struct kw_loader *loader);
/* Most children alive before the hooks wake the reader at once, -1: no limit. */
int kw_loader_limit(struct kw_loader *loader, uint32_t slot, int64_t limit);

/*
 * What the kernel judges and enforces of a watch. Its limit of children is kw_loader_limit()'s, its executables and
 * users are those below. Roots of a watch are never acted on for it, nor who is provisionally followed.
 */
enum kw_mode {
	KW_MODE_OFF = 0,
	KW_MODE_DRY_RUN = 1, /* says what it would do */
	KW_MODE_KILL = 2
};

struct kw_rules {
	uint32_t mode;		   /* enum kw_mode */
	uint32_t reasons;	   /* mask of 1 << enum kw_reason: whose breach is acted on */
	uint32_t depth;		   /* KW_REASON_DEPTH: deepest below the root */
	uint32_t forks_per_minute; /* KW_REASON_RATE: most in a minute that begins with a fork */
};

int kw_loader_enforce(struct kw_loader *loader, uint32_t slot, const struct kw_rules *rules);
/* Judge images by the executables that slot expects: files that the caller has open, in any mode, as they are now; one
 * that changes or is replaced afterwards is another. count 0: none is expected; -1: images are not judged. */
int kw_loader_expect_files(struct kw_loader *loader, uint32_t slot, const int *fds, int count);
/* Tell of each image of slot's kin whether it is temporary. */
void kw_loader_locate(struct kw_loader *loader, uint32_t slot, int wanted);
/* KW_REASON_UID: the users that slot may run as, really and effectively. */
int kw_loader_expect_uids(struct kw_loader *loader, uint32_t slot, const uint32_t *uids, uint32_t count);
/*
 * For all watches: most kills in a minute that begins with one; beyond, nobody is killed until this is called again.
 * fail_open: once this process has ended nobody is killed either, until this is called again; and a child for whose row
 * there is no room is let go. Otherwise enforcement goes on without it, and such a child is killed.
 */
int kw_loader_enforcement(struct kw_loader *loader, uint32_t max_kills_per_minute, int fail_open);

/*
 * Watches by command line: user space decides. The hooks follow every process that executes an image, and its
 * descendants, provisionally; poll and drain stop at each record about one, and kw_loader_undecided() hands it out
 * (NULL: there is none). It says KW_UNDECIDED, root is the process whose command line decides. What becomes of it is
 * the caller's: it gives a verdict where the record is an image, and pushes the record, put right, through the engine's
 * door or drops it.
 */
int kw_loader_cmdline(struct kw_loader *loader, uint64_t watches);
const struct kw_header *kw_loader_undecided(struct kw_loader *loader);
/* What the command line of a process made of it; its descendants become kin of watches. 0: nothing. */
int kw_loader_decide(struct kw_loader *loader, uint32_t pid, uint64_t start_ns, uint64_t watches, uint64_t roots);
/* Count a process that was gone before the verdict came. */
void kw_loader_count_ended(struct kw_loader *loader, uint64_t watches, uint64_t roots);
/* Count an image that a provisional descendant ran. */
void kw_loader_count_exec(struct kw_loader *loader, uint64_t watches);
/* Watches that a process is kin of now; and of those, what it was kin of before a verdict on the undecided record. */
uint64_t kw_loader_watches_of(struct kw_loader *loader, uint32_t pid, uint64_t start_ns);
uint64_t kw_loader_inherited_by(struct kw_loader *loader, uint32_t pid, uint64_t start_ns);
/* The last verdict on a process, this daemon's or an earlier one's; 0: none, or it is nobody's kin. */
uint64_t kw_loader_verdict(struct kw_loader *loader, uint32_t pid, uint64_t start_ns, uint64_t *roots);

/* Take in running processes that match, and their descendants, for the slots in `watches`; to a fixed point. Returns
 * how many. */
int64_t kw_loader_adopt(struct kw_loader *loader, uint64_t watches);
/* No process is kin of the slots in `watches` any more; their counters go to zero. */
int kw_loader_forget(struct kw_loader *loader, uint64_t watches);

/* Wait for records and push them through the engine's door. Returns their number; 0: kw_loader_stop() was called. */
int64_t kw_loader_poll(struct kw_loader *loader, struct kw_engine *engine);
/* The same without waiting: everything that is there. */
int64_t kw_loader_drain(struct kw_loader *loader, struct kw_engine *engine);
/*
 * Everything that poll and drain handed out is safe: its room in the ring is free, and no later daemon reads it again.
 * Without it reading goes on, and the ring fills. Not while poll or drain runs.
 */
void kw_loader_commit(struct kw_loader *loader);
/*
 * After a takeover or a swap, before the first drain, with the watches and their limits defined in the engine: tell it
 * who was kin when the oldest record in the ring was written. Returns the mask of the watches that those records speak
 * of.
 */
int64_t kw_loader_resume(struct kw_loader *loader, struct kw_engine *engine);
/* Put the engine's table right from the lineage map. */
int kw_loader_sync(struct kw_loader *loader, struct kw_engine *engine);
/* Make poll return 0, from any thread: now and later, or once. */
void kw_loader_stop(struct kw_loader *loader);
void kw_loader_interrupt(struct kw_loader *loader);

/* KW_SLOTS rows of counters, one consistent struct each; reader >= 0 begins that reader's window. */
int kw_loader_snapshot(struct kw_loader *loader, int reader, struct kw_counters *counters);
/* KW_STAGES cells, since the maps were made. */
int kw_loader_losses(struct kw_loader *loader, uint64_t *losses);
void kw_loader_read_state(struct kw_loader *loader, struct kw_loader_state *state);

/*
 * The network side: an object of its own beside the first one, whose lineage table and ring it uses. What the kernel
 * does not offer is left out, and what is missing has a reason.
 */
enum kw_net_hook {
	KW_NET_STATES = 1,     /* tracepoint inet_sock_set_state: TCP connections, payload bytes of TCP */
	KW_NET_SOCKETS = 2,    /* cgroup programs: who made a socket, UDP peers, listening UDP */
	KW_NET_LENGTHS = 4,    /* tracepoints sock_send_length, sock_recv_length: payload bytes of UDP */
	KW_NET_PACKETS = 8,    /* cgroup packet programs: wire bytes, packets, DNS; attached while kin own sockets */
	KW_NET_BOOTSTRAP = 16, /* iterators: sockets from before the start, bytes of live sockets */
	KW_NET_HOOKS = 5       /* how many there are */
};
/* Load or take over and attach the hooks of the mask `wanted`. Returns the mask of what is live, 0 perhaps; negative:
 * nothing is, kw_loader_error() says why. After kw_loader_open(). */
int kw_loader_net(struct kw_loader *loader, const char *object, uint32_t wanted);
uint32_t kw_loader_net_hooks(const struct kw_loader *loader);
/* Why a hook (one bit) is not live; "": it is. */
const char *kw_loader_net_reason(const struct kw_loader *loader, uint32_t hook);
/* Watches that expect certain destinations: a connection is told when it begins (KW_SOCKET_CONNECTING), too. */
void kw_loader_net_expecting(struct kw_loader *loader, uint64_t watches);
/* KW_SLOTS rows, live sockets included. */
int kw_loader_net_snapshot(struct kw_loader *loader, struct kw_net_counters *counters);

/* What the kernel offers: facts without a decision. 1: yes, 0: no. */
struct kw_facts {
	int btf;		      /* the kernel's own type information can be read: /sys/kernel/btf/vmlinux */
	int btf_file_bad;	      /* the named file, if one is, holds no type information */
	int btf_file_foreign;	      /* a task is larger or smaller in it than in the kernel's own */
	int tracing;		      /* it knows the tracepoints and iterators the programs attach to */
	int atomics;		      /* programs can add and fetch, exchange, compare and exchange in one step */
	int ring_buffer;	      /* ring buffer maps can be made */
	int capable;		      /* CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN */
	int bpffs;		      /* a bpffs is mounted at /sys/fs/bpf */
	int lockdown_confidentiality; /* programs may not read kernel memory */
	int signal_task;	      /* a child can be killed before it runs: bpf_send_signal_task() */
	int hooks_preemptible;	      /* and skipped meanwhile: second hooks are loaded (7.0) */
	int lsm;		      /* programs can refuse an exec: the BPF LSM is active */
};
void kw_facts_probe(const char *btf, struct kw_facts *facts);
/* Of these facts the one that needs no look through the kernel's BTF: kw_facts.bpffs. */
int kw_bpffs_mounted(void);

/*
 * Where fields are in their structs, in bytes; fields: "task_struct.pid", ... btf: as above. offsets: -1 where there is
 * no such struct or field. Returns 0, or a negative errno: there is no type information to read.
 */
int kw_btf_offsets(const char *btf, const char *const *fields, uint32_t count, int32_t *offsets);
/* Programs that only some kernels need. */
enum kw_way {
	KW_WAY_AGAIN = 1, /* hooks can be preempted, and are skipped on that processor until they go on (7.0) */
	KW_WAY_DENY =
	    2 /* a fork that must not be cannot be killed (no bpf_send_signal_task), and the BPF LSM is active */
};
uint32_t kw_ways(void);
/* Programs read kernel memory and user memory by a helper each (bpf_probe_read_kernel, in 5.5): 1; by the one: 0. */
int kw_reads_apart(void);
/* Programs may loop, as long as the loop ends (5.3): 1. */
int kw_loops(void);
/* Programs attach to tracepoints as the kernel calls them, without a layout of their own (4.17): 1. */
int kw_raw_tracepoints(void);
