/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which watches does an image or a process match? Table look-ups only, so their number does not depend on the number of
 * watches. Knows nothing of kin: whoever is kin already is sorted out by the caller ("kinship beats matching").
 */
#ifndef KINWATCH_MATCH_H
#define KINWATCH_MATCH_H

#include "maps.h"
#include <bpf/bpf_core_read.h>

enum { CGROUP_LEVELS = 32 };

/* Global functions are verified once, not per caller; they take addresses as plain numbers and read through helpers. */

static __always_inline uint64_t mask_of(void *map, const void *key)
{
	const uint64_t *mask = bpf_map_lookup_elem(map, key);

	return mask ? *mask : 0;
}

/* Length of a kernel string, at most PATH_MAX. */
static __always_inline uint32_t string_length(const char *string)
{
	char chunk[128];
	uint32_t length = 0;

	for (int i = 0; i < KW_PATH_BYTES / 127 + 1; i++) {
		long bytes = bpf_probe_read_kernel_str(chunk, sizeof(chunk), string + length);

		if (bytes <= 0)
			break;
		length += bytes - 1;
		if (bytes < (long)sizeof(chunk))
			break;
	}
	return length;
}

/* By the base name of a path; a name that does not fit a key cannot be watched. */
__noinline uint64_t match_base_name(uint64_t kernel_string)
{
	const char *path = (const char *)kernel_string;
	struct kw_name_key key = {};
	char tail[KW_NAME_BYTES] = {};
	uint32_t length = string_length(path);
	uint32_t kept = length < KW_NAME_BYTES ? length : KW_NAME_BYTES;
	const char *end = path + length;
	uint32_t i;

	barrier_var(kept); /* clang knows the bound, the verifier wants to see it tested */
	if (kept > KW_NAME_BYTES)
		return 0;
	bpf_probe_read_kernel(tail, kept, end - kept);
	for (i = 0; i < KW_NAME_BYTES; i++)
		if (i == kept || tail[(kept - 1 - i) & (KW_NAME_BYTES - 1)] == '/')
			break;
	if (i == KW_NAME_BYTES || bpf_probe_read_kernel_str(key.name, sizeof(key.name), end - i) <= 0)
		return 0;
	return mask_of(&names, &key);
}

/* By the mapped file itself, and its place. */
__noinline uint64_t match_file(uint64_t file_address)
{
	const struct file *exe = (const struct file *)file_address;
	struct kw_place_key place = {};
	struct kw_file_key file = {};
	struct dentry *dentry = BPF_CORE_READ(exe, f_path.dentry);
	uint64_t mask;

	file.inode = BPF_CORE_READ(exe, f_inode, i_ino);
	file.device = BPF_CORE_READ(exe, f_inode, i_sb, s_dev);
	mask = mask_of(&files, &file);
	place.directory_inode = BPF_CORE_READ(dentry, d_parent, d_inode, i_ino);
	place.directory_device = BPF_CORE_READ(dentry, d_parent, d_inode, i_sb, s_dev);
	if (bpf_probe_read_kernel_str(place.name, sizeof(place.name), BPF_CORE_READ(dentry, d_name.name)) > 0 &&
	    BPF_CORE_READ(dentry, d_name.len) < KW_NAME_BYTES)
		mask |= mask_of(&places, &place);
	return mask;
}

/* By the mapped file's name. */
__noinline uint64_t match_file_name(uint64_t file_address)
{
	const struct file *exe = (const struct file *)file_address;
	struct dentry *dentry = BPF_CORE_READ(exe, f_path.dentry);
	struct kw_name_key key = {};

	if (BPF_CORE_READ(dentry, d_name.len) >= KW_NAME_BYTES ||
	    bpf_probe_read_kernel_str(key.name, sizeof(key.name), BPF_CORE_READ(dentry, d_name.name)) <= 0)
		return 0;
	return mask_of(&names, &key);
}

/* By membership in a cgroup2 cgroup or one below it. */
__noinline uint64_t match_cgroup(uint64_t cgroup_address)
{
	const struct cgroup *cgroup = (const struct cgroup *)cgroup_address;
	uint64_t mask = control.nothing;

	for (int i = 0; i < CGROUP_LEVELS && cgroup; i++) {
		uint64_t id = BPF_CORE_READ(cgroup, kn, id);

		mask |= mask_of(&cgroups, &id);
		cgroup = (const struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
	}
	return mask;
}

/* By what is true of a process at any time: comm, mapped file, cgroup, pid. */
__noinline uint64_t match_process(uint64_t task_address)
{
	const struct task_struct *task = (const struct task_struct *)task_address;
	uint32_t pid = BPF_CORE_READ(task, tgid);
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct kw_name_key comm = {};
	uint64_t mask;

	bpf_core_read_str(comm.name, KW_COMM_BYTES, &task->comm);
	mask = mask_of(&names, &comm);
	if (exe)
		mask |= match_file_name((uint64_t)exe);
	if (exe && control.file_rules)
		mask |= match_file((uint64_t)exe);
	if (control.pid_rules)
		mask |= mask_of(&pids, &pid);
	if (control.cgroup_rules)
		mask |= match_cgroup((uint64_t)BPF_CORE_READ(task, cgroups, dfl_cgrp));
	return mask;
}

enum { ANCESTORS = 32 };

/* Of `mask`, what no ancestor matches: whose ancestor does is a descendant, though it may be walked first. */
__noinline uint64_t match_outermost(uint64_t task_address, uint64_t mask)
{
	const struct task_struct *task = (const struct task_struct *)task_address;

	for (int i = 0; i < ANCESTORS && mask; i++) {
		const struct task_struct *parent = BPF_CORE_READ(task, real_parent, group_leader);

		if (!parent || parent == task || BPF_CORE_READ(parent, tgid) <= 1)
			break;
		mask &= ~match_process((uint64_t)parent);
		task = parent;
	}
	return mask;
}

#endif
