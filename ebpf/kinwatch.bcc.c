/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The hooks of a process's life in BCC's dialect: compiled on the device, for a kernel without BTF. It follows event.h,
 * which stands before it when it is compiled, and tells the same records.
 *
 * Less is decided here than in kinwatch.bpf.c: which watch an image matches is user space's to say. The kernel keeps
 * those it follows alone, in `kin`: whoever is made by one of them is one before its first instruction. A stranger
 * whose image may match (`wanted`) is followed provisionally, so that none of its children can be missed. User space
 * says of which process, after how many images, nothing matched (`strangers`); its next image makes it provisional
 * again. A row stays as long as the process lives, so no verdict can hit a younger image or another process.
 *
 * Raw tracepoints hand over task_struct and linux_binprm as they are: no layout of a tracepoint is relied on, which
 * changes between kernels. Where a field is in its struct the headers of the running kernel say, or numbers on the
 * command line (KW_OFFSETS). Both may be another kernel's; monitor/capture/bccprobe.py finds out.
 *
 * BCC makes a program of each function that is not static, knows no global data, and reads kernel memory by itself
 * where a pointer is followed; here every read is spelled out, so addresses are numbers. Where the kernel takes no loop
 * (before 5.3), nor more than 4096 instructions (before 5.2), the one loop is unrolled (KW_UNROLLED): it takes clang
 * twice the time.
 */
#ifdef KW_OFFSETS
#define OFFSET(type, field) PASTED(type, field)
#define PASTED(type, field) KW_##type##__##field
#else
#include <linux/binfmts.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/mm_types.h>
#include <linux/mount.h>
#include <linux/path.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#define OFFSET(type, field) offsetof(struct type, field)
#endif

#ifdef KW_ONE_READ /* before 5.5 a program has one way of reading for kernel and user memory */
#define read_kernel bpf_probe_read
#define read_kernel_str bpf_probe_read_str
#define read_user bpf_probe_read
#else
#define read_kernel bpf_probe_read_kernel
#define read_kernel_str bpf_probe_read_kernel_str
#define read_user bpf_probe_read_user
#endif

#ifndef KW_START
#define KW_START start_boottime /* before 5.5: real_start_time */
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/*
 * struct mount is in no header that a distribution packs (fs/mount.h). Since 3.3 it begins with two pointers of a hash
 * list, the mount above and where it is mounted; then comes what others see of it.
 */
#define MOUNT_SEEN (4 * (long)sizeof(long)) /* where in struct mount that begins */
#define MOUNT_ABOVE (-2 * (long)sizeof(long))
#define MOUNT_POINT (-(long)sizeof(long))

enum {
	NAME_ROOM = 256, /* a path is written from its end; the last name written may start anywhere in it */
	PATH_DEPTH = KW_UNROLLED ? 20 : 48, /* names and mounts a path may have */
	GROUP_EXIT = 4,			    /* SIGNAL_GROUP_EXIT, include/linux/sched/signal.h */
	QUIET_NS = 1000000, /* least time between two wake-ups: the reader looks so often once it is awake */
};

typedef unsigned long address; /* as wide as the kernel's pointers, which may be 32 bits */

enum kw_cell {
	KW_CELL_EVERYBODY = 0, /* user space: tell of strangers too, while who runs is taken in */
	KW_CELL_UNDECIDED = 1, /* user space: any image may match */
	KW_CELL_RING_FULL = 2, /* records that found no room */
	KW_CELL_TABLE_FULL = 3,
	KW_CELL_WOKEN_NS = 4,
	KW_CELLS = 5,
};

/* A process as every capture can name it. */
struct kw_bcc_key {
	uint32_t pid;
	uint32_t reserved;
	uint64_t start_ticks;
};

struct kw_bcc_row {
	uint64_t start_ns;
	uint64_t parent_start_ns;
	uint32_t parent_pid; /* 0: not known */
	uint32_t images;     /* executed since it is followed */
};

/* What may match, one of: a comm or a base name's first 15 bytes, a file, a pid. */
struct kw_bcc_wanted {
	uint8_t name[16];
	uint64_t inode;
	uint32_t device;
	uint32_t pid;
};

struct kw_bcc_room {
	uint32_t busy;
	uint32_t used;
	uint32_t filled;
	uint32_t reserved;
	uint8_t path[KW_PATH_BYTES + NAME_ROOM];
	struct kw_image image;
	uint8_t tail[3 * KW_PATH_BYTES + KW_ARGV_BYTES];
};

BPF_TABLE("hash", struct kw_bcc_key, struct kw_bcc_row, kin, KW_MAX_PROCESSES);
BPF_TABLE("hash", struct kw_bcc_key, uint32_t, strangers, KW_MAX_PROCESSES);
BPF_TABLE("hash", struct kw_bcc_wanted, uint32_t, wanted, 1024);
BPF_ARRAY(cells, uint64_t, KW_CELLS);
BPF_PERCPU_ARRAY(rooms, struct kw_bcc_room, 1);
#ifdef KW_PERF
BPF_PERF_OUTPUT(events);
#else
BPF_RINGBUF_OUTPUT(events, KW_RING_PAGES);
#endif

#if KW_UNROLLED
#define LOOP _Pragma("unroll")
#else
#define LOOP _Pragma("nounroll")
#endif

#define hold(number) asm volatile("" : "+r"(number)) /* or clang forgets the bound that the verifier wants to see */

#define GET(type, where, from, field)                                                                                  \
	({                                                                                                             \
		type value = 0;                                                                                        \
		read_kernel(&value, sizeof(value), (void *)((where) + OFFSET(from, field)));                           \
		value;                                                                                                 \
	})

static __always_inline uint64_t cell(uint32_t number)
{
	uint64_t *value = cells.lookup(&number);

	return value ? *value : 0;
}

static __always_inline void lose(uint32_t number)
{
	uint64_t *value = cells.lookup(&number);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline void tell(void *context, void *record, uint64_t size, uint64_t now_ns)
{
#ifdef KW_PERF
	if (events.perf_submit(context, record, size))
		lose(KW_CELL_RING_FULL);
#else
	uint32_t number = KW_CELL_WOKEN_NS;
	uint64_t *woken_ns = cells.lookup(&number);
	uint64_t flags = BPF_RB_NO_WAKEUP;

	if (!woken_ns)
		return;
	if (now_ns - *woken_ns > QUIET_NS) {
		*woken_ns = now_ns;
		flags = BPF_RB_FORCE_WAKEUP;
	}
	if (events.ringbuf_output(record, size, flags))
		lose(KW_CELL_RING_FULL);
#endif
}

static __always_inline void id_fill(struct kw_id *id, uint32_t pid, uint64_t start_ns)
{
	id->start_ns = start_ns;
	id->pid = pid;
	id->reserved = 0;
}

/* time_ns is CLOCK_MONOTONIC here, for kernels before 5.8; user space knows how far the two clocks are apart. */
static __always_inline void header_fill(struct kw_header *header, uint32_t size, uint16_t kind, uint16_t flags)
{
	header->size = size;
	header->kind = kind;
	header->flags = flags;
	header->time_ns = bpf_ktime_get_ns();
	header->watches = 0;
	header->roots = 0;
}

static __always_inline uint64_t start_of(uint64_t task)
{
	return GET(uint64_t, GET(address, task, task_struct, group_leader), task_struct, KW_START);
}

static __always_inline void key_fill(struct kw_bcc_key *key, uint32_t pid, uint64_t start_ns)
{
	key->pid = pid;
	key->reserved = 0;
	key->start_ticks = start_ns / KW_TICK_NS;
}

static __always_inline void comm_fill(uint8_t *comm, uint64_t task)
{
	read_kernel(comm, KW_COMM_BYTES, (void *)(task + OFFSET(task_struct, comm)));
}

static __always_inline uint32_t uid_of(uint64_t task)
{
	return GET(uint32_t, GET(address, task, task_struct, cred), cred, uid);
}

/* User space has looked at all its images, and none matched. */
static __always_inline bool is_stranger(struct kw_bcc_key *key, const struct kw_bcc_row *row)
{
	uint32_t *images = strangers.lookup(key);

	return images && *images == row->images;
}

/* The first argument is the forker, whatever CLONE_PARENT makes of the parent; the child has not run yet. */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	uint64_t maker = ctx->args[0], child = ctx->args[1];
	uint32_t pid = GET(uint32_t, child, task_struct, pid);
	struct kw_fork record = {};
	struct kw_bcc_row row = {}, *above;
	struct kw_bcc_key key;

	if (pid != GET(uint32_t, child, task_struct, tgid))
		return 0; /* a thread */
	row.parent_pid = bpf_get_current_pid_tgid() >> 32;
	row.parent_start_ns = start_of(maker);
	key_fill(&key, row.parent_pid, row.parent_start_ns);
	above = kin.lookup(&key);
	if ((!above || is_stranger(&key, above)) && !cell(KW_CELL_EVERYBODY))
		return 0;
	row.start_ns = GET(uint64_t, child, task_struct, KW_START);
	key_fill(&key, pid, row.start_ns);
	if (kin.update(&key, &row)) {
		lose(KW_CELL_TABLE_FULL);
		return 0;
	}
	header_fill(&record.header, sizeof(record), KW_FORK, KW_HAS_PARENT | KW_HAS_CREDENTIALS);
	id_fill(&record.process, pid, row.start_ns);
	id_fill(&record.parent, row.parent_pid, row.parent_start_ns);
	record.uid = uid_of(child);
	comm_fill(record.comm, child);
	tell(ctx, &record, sizeof(record), record.header.time_ns);
	return 0;
}

/* Once per thread. The last one ends the process; two that go at the same moment both see that nobody is left. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	uint64_t task = ctx->args[0];
	uint64_t signal = GET(address, task, task_struct, signal);
	uint64_t leader = GET(address, task, task_struct, group_leader);
	struct kw_exit record = {};
	struct kw_bcc_row *row;
	struct kw_bcc_key key;
	uint64_t start_ns;
	bool stranger;

	if (GET(int32_t, signal, signal_struct, live) != 0)
		return 0;
	start_ns = GET(uint64_t, leader, task_struct, KW_START);
	key_fill(&key, GET(uint32_t, task, task_struct, tgid), start_ns);
	row = kin.lookup(&key);
	stranger = !row || is_stranger(&key, row);
	if (row) { /* The row first: user space takes a verdict back that it finds without one. */
		if (kin.delete(&key))
			stranger = true;
		strangers.delete(&key);
	}
	if (stranger && !cell(KW_CELL_EVERYBODY))
		return 0;
	header_fill(&record.header, sizeof(record), KW_EXIT, KW_HAS_CREDENTIALS | KW_HAS_STATUS);
	id_fill(&record.process, key.pid, start_ns);
	if (GET(uint32_t, signal, signal_struct, flags) & GROUP_EXIT)
		record.status = GET(uint32_t, signal, signal_struct, group_exit_code);
	else
		record.status = GET(uint32_t, leader, task_struct, exit_code);
	record.uid = uid_of(task);
	comm_fill(record.comm, leader);
	tell(ctx, &record, sizeof(record), record.header.time_ns);
	return 0;
}

static __always_inline bool is_wanted(const struct kw_bcc_wanted *key)
{
	return wanted.lookup((struct kw_bcc_wanted *)key) != NULL;
}

/* May user space find that this image matches? It looks closer; here nothing is missed. */
static __always_inline bool may_match(uint64_t task, uint64_t exe, uint32_t pid)
{
	uint64_t inode = GET(address, exe, file, f_inode);
	uint64_t dentry = GET(address, exe + OFFSET(file, f_path), path, dentry);
	struct kw_bcc_wanted name = {}, base = {}, file = {}, number = {};

	if (cell(KW_CELL_EVERYBODY) || cell(KW_CELL_UNDECIDED))
		return true;
	comm_fill(name.name, task);
	read_kernel_str(base.name, sizeof(base.name),
			(void *)GET(address, dentry + OFFSET(dentry, d_name), qstr, name));
	file.inode = GET(unsigned long, inode, inode, i_ino);
	file.device = GET(uint32_t, GET(address, inode, inode, i_sb), super_block, s_dev);
	number.pid = pid;
	return is_wanted(&name) || is_wanted(&base) || is_wanted(&file) || is_wanted(&number);
}

static __always_inline bool name_write(struct kw_bcc_room *room, uint64_t dentry)
{
	uint64_t qstr = dentry + OFFSET(dentry, d_name);
	uint64_t length = GET(uint32_t, qstr, qstr, len) & (NAME_ROOM - 1);
	uint64_t start = *(volatile uint32_t *)&room->used;

	if (length + 1 > start)
		return false;
	start -= length;
	read_kernel(room->path + (start & (KW_PATH_BYTES - 1)), length, (void *)GET(address, qstr, qstr, name));
	start--;
	room->path[start & (KW_PATH_BYTES - 1)] = '/';
	*(volatile uint32_t *)&room->used = start;
	return true;
}

/*
 * A path as its mount namespace sees it, name by name from the leaf up, written from the end down. True: all of it
 * fitted. The position is kept in memory: a number loaded from there is any number to the verifier, so that the steps
 * look alike to it and it checks few paths through them.
 */
static __always_inline bool path_write(struct kw_bcc_room *room, uint64_t path)
{
	uint64_t mount = GET(address, path, path, mnt); /* what others see of struct mount */
	uint64_t dentry = GET(address, path, path, dentry);
	bool whole = false;

	room->used = KW_PATH_BYTES;
	LOOP for (int i = 0; i < PATH_DEPTH; i++)
	{
		uint64_t parent;

		if (whole)
			continue;
		if (dentry == GET(address, mount, vfsmount, mnt_root)) {
			address above = 0, point = 0;

			read_kernel(&above, sizeof(above), (void *)(mount + MOUNT_ABOVE));
			read_kernel(&point, sizeof(point), (void *)(mount + MOUNT_POINT));
			dentry = point;
			above += MOUNT_SEEN;
			whole = above == mount;
			mount = above;
			continue;
		}
		if (!name_write(room, dentry))
			return false;
		parent = GET(address, dentry, dentry, d_parent);
		whole = parent == dentry; /* a memory file: no directory, its name is all */
		dentry = parent;
	}
	if (whole && room->used == KW_PATH_BYTES) { /* the root directory itself */
		room->path[KW_PATH_BYTES - 1] = '/';
		room->used = KW_PATH_BYTES - 1;
	}
	return whole;
}

/* Append the path to the tail. */
static __always_inline struct kw_text path_keep(struct kw_bcc_room *room, uint64_t path)
{
	struct kw_text text = {};
	uint64_t start, length, used;

	if (!path_write(room, path))
		room->image.header.flags |= KW_TRUNCATED;
	start = *(volatile uint32_t *)&room->used & (KW_PATH_BYTES - 1);
	used = *(volatile uint32_t *)&room->filled;
	length = KW_PATH_BYTES - start;
	if (*(volatile uint32_t *)&room->used >= KW_PATH_BYTES || used > sizeof(room->tail) - KW_PATH_BYTES)
		return text;
	hold(length);
	if (length > KW_PATH_BYTES)
		return text;
	read_kernel(room->tail + used, length, room->path + start);
	text.offset = sizeof(room->image) + used;
	text.length = length;
	room->filled = used + length;
	return text;
}

/* Of the mapped file and of the directory it runs in; in a loop, so that clang has one path to compile. */
static __always_inline void paths_keep(struct kw_bcc_room *room, uint64_t exe, uint64_t cwd)
{
	LOOP for (int i = 0; i < 2; i++)
	{
		uint64_t path = i ? cwd : exe;
		struct kw_text text = {};

		if (path)
			text = path_keep(room, path);
		if (i)
			room->image.cwd = text;
		else
			room->image.exe = text;
	}
}

/* KW_DELETED where it has no name any more, KW_MEMFD where it never had one. */
static __always_inline uint16_t file_state(uint64_t exe, uint64_t inode)
{
	uint64_t dentry = GET(address, exe + OFFSET(file, f_path), path, dentry);
	char begin[6] = {};

	if (GET(uint32_t, inode, inode, i_nlink))
		return 0;
	read_kernel(begin, sizeof(begin), (void *)GET(address, dentry + OFFSET(dentry, d_name), qstr, name));
	if (begin[0] == 'm' && begin[1] == 'e' && begin[2] == 'm' && begin[3] == 'f' && begin[4] == 'd' &&
	    begin[5] == ':')
		return KW_DELETED | KW_MEMFD;
	return KW_DELETED;
}

static __always_inline void script_keep(struct kw_bcc_room *room, uint64_t script)
{
	uint64_t used = *(volatile uint32_t *)&room->filled;
	int bytes;

	if (used > sizeof(room->tail) - KW_PATH_BYTES)
		return;
	bytes = read_kernel_str(room->tail + used, KW_PATH_BYTES, (void *)script);
	if (bytes <= 1)
		return;
	if (bytes == KW_PATH_BYTES)
		room->image.header.flags |= KW_TRUNCATED;
	room->image.script.offset = sizeof(room->image) + used;
	room->image.script.length = bytes - 1;
	room->filled = used + bytes - 1;
}

static __always_inline void argv_keep(struct kw_bcc_room *room, uint64_t mm)
{
	uint64_t from = GET(unsigned long, mm, mm_struct, arg_start);
	uint64_t length = GET(unsigned long, mm, mm_struct, arg_end) - from;
	uint64_t bytes = length < KW_ARGV_BYTES ? length : KW_ARGV_BYTES;
	uint64_t used = *(volatile uint32_t *)&room->filled;

	room->image.argv_bytes = length;
	if (length > KW_ARGV_BYTES)
		room->image.header.flags |= KW_TRUNCATED;
	if (used > sizeof(room->tail) - KW_ARGV_BYTES)
		return;
	hold(bytes);
	if (!bytes || bytes > KW_ARGV_BYTES || read_user(room->tail + used, bytes, (void *)from))
		return;
	room->image.argv.offset = sizeof(room->image) + used;
	room->image.argv.length = bytes;
	room->image.header.flags |= KW_HAS_ARGV;
	room->filled = used + bytes;
}

/* The fixed part. */
static __always_inline void image_fill(struct kw_image *image, uint64_t task, uint32_t pid, uint64_t start_ns)
{
	uint64_t parent = GET(address, task, task_struct, real_parent);
	uint64_t cred = GET(address, task, task_struct, cred);

	header_fill(&image->header, 0, KW_EXEC, KW_HAS_CREDENTIALS | KW_HAS_PPID);
	image->fresh = 0;
	id_fill(&image->process, pid, start_ns);
	id_fill(&image->parent, 0, 0);
	id_fill(&image->root, 0, 0);
	image->inode = image->device = image->depth = image->cause = image->argv_bytes = image->unexpected = 0;
	image->ppid = GET(uint32_t, parent, task_struct, tgid);
	image->uid = GET(uint32_t, cred, cred, uid);
	image->gid = GET(uint32_t, cred, cred, gid);
	comm_fill(image->comm, task);
	image->exe = image->script = image->argv = image->cwd = (struct kw_text){};
}

/* On success only, with the new image in place and all other threads gone, before its first instruction. */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	uint64_t task = ctx->args[0], binary = ctx->args[2];
	uint32_t pid = bpf_get_current_pid_tgid() >> 32, zero = 0;
	uint64_t start_ns = start_of(task), size;
	uint64_t mm = GET(address, task, task_struct, mm);
	uint64_t exe = GET(address, mm, mm_struct, exe_file);
	uint64_t filename, inode;
	struct kw_bcc_row *row, fresh = {.start_ns = start_ns, .images = 1};
	struct kw_bcc_room *room;
	struct kw_bcc_key key;

	key_fill(&key, pid, start_ns);
	row = kin.lookup(&key);
	if ((!row || is_stranger(&key, row)) && !may_match(task, exe, pid))
		return 0;
	if (row) {
		fresh.images = row->images + 1;
		row->images = fresh.images;
	} else if (kin.update(&key, &fresh)) {
		lose(KW_CELL_TABLE_FULL);
		return 0;
	}
	room = rooms.lookup(&zero);
	if (!room)
		return 0;
	if (room->busy) { /* a hook on top of this one, where a hook can be interrupted */
		lose(KW_CELL_RING_FULL);
		return 0;
	}
	room->busy = 1;
	image_fill(&room->image, task, pid, start_ns);
	room->image.cause = fresh.images; /* for the verdict; user space writes the cause */
	room->filled = 0;
	paths_keep(room, exe ? exe + OFFSET(file, f_path) : 0,
		   GET(address, task, task_struct, fs) + OFFSET(fs_struct, pwd));
	if (exe) {
		inode = GET(address, exe, file, f_inode);
		room->image.inode = GET(unsigned long, inode, inode, i_ino);
		room->image.device = GET(uint32_t, GET(address, inode, inode, i_sb), super_block, s_dev);
		room->image.header.flags |= KW_HAS_EXE | file_state(exe, inode);
	}
	filename = GET(address, binary, linux_binprm, filename);
	if (filename != GET(address, binary, linux_binprm, interp)) /* where an interpreter runs it, it is the script */
		script_keep(room, filename);
	argv_keep(room, mm);
	size = (sizeof(room->image) + *(volatile uint32_t *)&room->filled + 7) & ~7ULL;
	room->image.header.size = size;
	hold(size);
	if (size <= sizeof(room->image) + sizeof(room->tail))
		tell(ctx, &room->image, size, room->image.header.time_ns);
	room->busy = 0;
	return 0;
}
