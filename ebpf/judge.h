/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which file is it, and is it one that a watch expects? Owns a file's identity. Refuses to know kin, records and
 * signals.
 */
#ifndef KINWATCH_JUDGE_H
#define KINWATCH_JUDGE_H

#include "maps.h"
#include "quirk.h"
#include <bpf/bpf_core_read.h>

#include "expected.h"

enum {
	JUDGEMENT_FLAGS =
	    32, /* of a judgement: slots that do not expect the file, then from this bit on enum kw_flag */
	DIRECTORIES_ABOVE = 64 /* of a file, that are looked at */
};

/* Files here are the verifier's own pointers, which are read without a call: a judgement takes a tenth of the time. But
 * for each look at a pointer read so the verifier searches all names of the kernel's types, 0.1 ms: not in a loop. */
static __always_inline void identity_fill(struct kw_identity *identity, const struct file *file)
{
	const struct inode *inode = file->f_inode;

	identity->file.inode = inode->i_ino;
	identity->file.device = inode->i_sb->s_dev;
	identity->file.reserved = 0;
	identity->ctime_ns = ctime_of(inode);
	identity->size = inode->i_size;
}

/* KW_DELETED where it has no name any more, KW_MEMFD where it never had one. */
static __always_inline uint16_t file_state(const struct file *file)
{
	char begin[6] = {};

	if (BPF_CORE_READ(file, f_inode, __i_nlink) != 0)
		return 0;
	bpf_probe_read_kernel(begin, sizeof(begin), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (begin[0] == 'm' && begin[1] == 'e' && begin[2] == 'm' && begin[3] == 'f' && begin[4] == 'd' &&
	    begin[5] == ':')
		return KW_DELETED | KW_MEMFD;
	return KW_DELETED;
}

/*
 * KW_TEMPORARY: does it lie where anybody may write: in a file system in memory, or below a directory of its file
 * system that is open to all? Not only the directory it is in: who may write to /tmp may make one there that is closed,
 * or so many, one in the other, that the open one is out of sight: what lies deeper than we look is temporary.
 */
static __noinline uint32_t is_temporary(const struct file *file)
{
	const struct dentry *dentry = file->f_path.dentry;
	uint32_t magic = file->f_inode->i_sb->s_magic;

	if (magic == TMPFS_MAGIC || magic == (uint32_t)RAMFS_MAGIC)
		return KW_TEMPORARY;
	for (int i = 0; i < DIRECTORIES_ABOVE; i++) {
		const struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (parent == dentry)
			return 0;
		if (BPF_CORE_READ(parent, d_inode, i_mode) & S_IWOTH)
			return KW_TEMPORARY;
		dentry = parent;
	}
	return KW_TEMPORARY;
}

/* Slots that expect this file. The row may become another file's meanwhile: what counts was set before and after. */
static __always_inline uint64_t expecting(const struct kw_identity *identity)
{
	uint32_t index = expected_row(&identity->file);

	for (int i = 0; i < KW_EXPECTED_PROBES; i++, index = expected_next(index)) {
		const volatile struct kw_expected *row = bpf_map_lookup_elem(&expected, &index);
		uint64_t before;

		if (!row || !row->file.inode)
			return 0;
		before = row->watches;
		if (expected_is((const struct kw_expected *)row, identity))
			return before & row->watches;
	}
	return 0;
}

/* What is to be said of the image of a task for these watches: a judgement, as JUDGEMENT_FLAGS has it. */
static __noinline uint64_t judge_image(const struct task_struct *task, uint64_t watches)
{
	uint64_t judged = watches & control.judged, flags = 0;
	const struct mm_struct *mm = task->mm;
	const struct file *file;

	if (!mm)
		return 0;
	file = mm->exe_file;
	if (!file)
		return 0;
	if (file->f_inode->__i_nlink == 0)
		flags = file_state(file);
	if (watches & control.located && !(flags & KW_MEMFD))
		flags |= is_temporary(file);
	if (judged) {
		struct kw_identity identity;

		identity_fill(&identity, file);
		judged &= ~expecting(&identity);
		flags |= KW_JUDGED;
	}
	return flags << JUDGEMENT_FLAGS | (uint32_t)judged;
}

#endif
