/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The image record: what a process runs. Put together in a scratch room, then copied to the ring with its true size.
 */
#ifndef KINWATCH_IMAGE_H
#define KINWATCH_IMAGE_H

#include "emit.h"
#include "judge.h"
#include <bpf/bpf_core_read.h>

enum {
	NAME_ROOM = 256, /* a path is written from its end; the last name written may start anywhere in it */
	PATH_DEPTH = 48, /* names and mounts a path may have */
	PATH_WHOLE = 1U << 31,
};

static __always_inline struct kw_scratch *scratch_take(uint32_t *index)
{
	for (uint32_t i = 0; i < SCRATCHES; i++) {
		uint32_t key = i;
		struct kw_scratch *room = bpf_map_lookup_elem(&scratch, &key);

		if (room && __sync_val_compare_and_swap(&room->busy, 0, 1) == 0) {
			*index = i;
			return room;
		}
	}
	return NULL;
}

static __always_inline bool name_put(struct kw_scratch *room, const struct dentry *dentry)
{
	uint32_t length = BPF_CORE_READ(dentry, d_name.len) & (NAME_ROOM - 1);
	uint32_t start = *(volatile uint32_t *)&room->used;

	if (length + 1 > start)
		return false;
	start -= length;
	bpf_probe_read_kernel(room->path + (start & (KW_PATH_BYTES - 1)), length, BPF_CORE_READ(dentry, d_name.name));
	start--;
	room->path[start & (KW_PATH_BYTES - 1)] = '/';
	*(volatile uint32_t *)&room->used = start;
	return true;
}

/*
 * A path as its mount namespace sees it: name by name from the leaf up, written into the scratch from the end down
 * (bpf_d_path is not allowed in these hooks). Returns where it starts, with PATH_WHOLE if all of it fitted.
 *
 * The position lives in memory on purpose: the verifier knows nothing about a number it loads from there, so that all
 * turns of the loop look alike to it and are checked once.
 */
__noinline uint32_t path_put(uint64_t path_address, uint32_t index)
{
	const struct path *path = (const struct path *)path_address;
	struct mount *mount = (void *)BPF_CORE_READ(path, mnt) - bpf_core_field_offset(struct mount, mnt);
	struct dentry *dentry = BPF_CORE_READ(path, dentry);
	struct kw_scratch *room = bpf_map_lookup_elem(&scratch, &index);
	uint32_t whole = 0;

	if (!room)
		return KW_PATH_BYTES;
	room->used = KW_PATH_BYTES;
	for (int i = 0; i < PATH_DEPTH; i++) {
		struct dentry *parent;

		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);

			if (above == mount) {
				whole = PATH_WHOLE;
				break;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		if (!name_put(room, dentry))
			break;
		parent = BPF_CORE_READ(dentry, d_parent);
		if (dentry == parent) { /* a memory file: no directory, its name is all */
			whole = PATH_WHOLE;
			break;
		}
		dentry = parent;
	}
	if (whole && room->used == KW_PATH_BYTES) { /* the root directory itself */
		room->path[KW_PATH_BYTES - 1] = '/';
		room->used = KW_PATH_BYTES - 1;
	}
	return room->used | whole;
}

static __always_inline void header_fill(struct kw_header *header, uint32_t size, uint16_t kind, uint16_t flags,
					uint64_t now_ns, const struct kw_kin *row)
{
	header->size = size;
	header->kind = kind;
	header->flags = flags;
	header->time_ns = now_ns;
	header->watches = row->watches;
	header->roots = row->roots;
}

static __always_inline void id_fill(struct kw_id *id, uint32_t pid, uint64_t start_ns)
{
	id->start_ns = start_ns;
	id->pid = pid;
	id->reserved = 0;
}

static __always_inline void comm_fill(uint8_t *comm, const struct task_struct *task)
{
	bpf_core_read(comm, KW_COMM_BYTES, &task->comm);
}

/* For a task that the verifier trusts: two loads instead of a call. comm is 8-aligned in every record. */
static __always_inline void comm_copy(uint8_t *comm, const struct task_struct *task)
{
	const uint64_t *from = (const uint64_t *)&task->comm[0];

	((uint64_t *)comm)[0] = from[0];
	((uint64_t *)comm)[1] = from[1];
}

/* The fixed part. */
static __always_inline void image_fill(struct kw_image *image, uint32_t size, uint16_t kind, uint16_t cause,
				       const struct task_struct *task, const struct kw_kin *row, uint64_t fresh)
{
	uint16_t flags = KW_HAS_ROOT | KW_HAS_CREDENTIALS | KW_HAS_PPID |
			 (row->flags & (KW_HAS_PARENT | KW_INFERRED | KW_UNDECIDED));

	header_fill(&image->header, size, kind, flags, bpf_ktime_get_boot_ns(), row);
	image->fresh = fresh;
	id_fill(&image->process, BPF_CORE_READ(task, tgid), row->start_ns);
	id_fill(&image->parent, row->parent_pid, row->parent_start_ns);
	id_fill(&image->root, row->root_pid, row->root_start_ns);
	image->inode = 0;
	image->device = 0;
	image->depth = row->depth;
	image->ppid = BPF_CORE_READ(task, real_parent, tgid);
	image->uid = BPF_CORE_READ(task, cred, uid.val);
	image->gid = BPF_CORE_READ(task, cred, gid.val);
	image->cause = cause;
	image->argv_bytes = 0;
	image->unexpected = 0;
	comm_fill(image->comm, task);
	image->exe = image->script = image->argv = image->cwd = (struct kw_text){};
}

/* Append the path just put to the tail. */
static __always_inline void path_keep(struct kw_scratch *room, struct kw_text *text, uint32_t put)
{
	uint32_t start = put & (KW_PATH_BYTES - 1);
	uint32_t length = KW_PATH_BYTES - start;
	uint32_t used = room->filled;

	if (!(put & PATH_WHOLE))
		room->image.header.flags |= KW_TRUNCATED;
	if ((put & ~PATH_WHOLE) >= KW_PATH_BYTES || used > sizeof(room->tail) - KW_PATH_BYTES)
		return;
	barrier_var(length);
	if (length > KW_PATH_BYTES)
		return;
	bpf_probe_read_kernel(room->tail + used, length, room->path + start);
	text->offset = sizeof(room->image) + used;
	text->length = length;
	room->filled = used + length;
}

static __always_inline void exe_keep(struct kw_scratch *room, const struct file *exe, uint32_t index)
{
	path_keep(room, &room->image.exe, path_put((uint64_t)__builtin_preserve_access_index(&exe->f_path), index));
	room->image.inode = BPF_CORE_READ(exe, f_inode, i_ino);
	room->image.device = BPF_CORE_READ(exe, f_inode, i_sb, s_dev);
	room->image.header.flags |= KW_HAS_EXE | file_state(exe);
}

static __always_inline void script_keep(struct kw_scratch *room, const char *script)
{
	uint32_t used = room->filled;
	long bytes;

	if (used > sizeof(room->tail) - KW_PATH_BYTES)
		return;
	bytes = bpf_probe_read_kernel_str(room->tail + used, KW_PATH_BYTES, script);
	if (bytes <= 1)
		return;
	if (bytes == KW_PATH_BYTES)
		room->image.header.flags |= KW_TRUNCATED;
	room->image.script.offset = sizeof(room->image) + used;
	room->image.script.length = bytes - 1;
	room->filled = used + bytes - 1;
}

static __always_inline void argv_keep(struct kw_scratch *room, const struct mm_struct *mm)
{
	uint64_t from = BPF_CORE_READ(mm, arg_start);
	uint64_t length = BPF_CORE_READ(mm, arg_end) - from;
	uint64_t bytes = length < KW_ARGV_BYTES ? length : KW_ARGV_BYTES;
	uint32_t used = room->filled;

	room->image.argv_bytes = length;
	if (length > KW_ARGV_BYTES)
		room->image.header.flags |= KW_TRUNCATED;
	if (used > sizeof(room->tail) - KW_ARGV_BYTES)
		return;
	barrier_var(bytes); /* or clang forgets the bound that the verifier needs to see */
	if (!bytes || bytes > KW_ARGV_BYTES || bpf_probe_read_user(room->tail + used, bytes, (const void *)from))
		return;
	room->image.argv.offset = sizeof(room->image) + used;
	room->image.argv.length = bytes;
	room->image.header.flags |= KW_HAS_ARGV;
	room->filled = used + bytes;
}

/* The image that the current task begins to run, and the judgement on it. */
static __always_inline void exec_emit(const struct task_struct *task, const struct kw_kin *row, uint64_t fresh,
				      const char *script, uint64_t judgement)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct kw_scratch *room;
	struct file *exe;
	uint32_t index, size;

	room = scratch_take(&index);
	if (!room) {
		lose(KW_RING_FULL);
		return;
	}
	image_fill(&room->image, 0, KW_EXEC, KW_CAUSE_EXEC, task, row, fresh);
	room->image.unexpected = judgement;
	room->image.header.flags |= judgement >> JUDGEMENT_FLAGS;
	room->filled = 0;
	exe = BPF_CORE_READ(mm, exe_file);
	if (exe)
		exe_keep(room, exe, index);
	if (script)
		script_keep(room, script);
	path_keep(room, &room->image.cwd, path_put((uint64_t)__builtin_preserve_access_index(&fs->pwd), index));
	argv_keep(room, mm);

	size = (sizeof(room->image) + room->filled + 7) & ~7U;
	room->image.header.size = size;
	if (size <= sizeof(room->image) + sizeof(room->tail))
		output(&room->image, size, room->image.header.time_ns);
	room->busy = 0;
}

/* A process that runs already, elsewhere: its paths and arguments are read by user space, from /proc. */
static __always_inline void adopt_emit(const struct task_struct *task, const struct kw_kin *row, uint64_t fresh,
				       uint16_t cause)
{
	struct kw_image *image = bpf_ringbuf_reserve(&events, sizeof(*image), 0);

	if (!image) {
		lose(KW_RING_FULL);
		return;
	}
	image_fill(image, sizeof(*image), KW_ADOPT, cause, task, row, fresh);
	submit(image, image->header.time_ns, false, 0);
}

#endif
