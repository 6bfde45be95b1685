/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps and links under names in a bpffs: made, opened again by the next daemon, removed. Refuses to know what they do.
 *
 * Pins are made in a directory beside the final one, which is then renamed into place: a crash at any moment leaves
 * either the old set whole or the new one.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "loader_parts.h"

/* "kinwatch.bss" is libbpf's name for it. */
static const char *map_pin(enum map_index map)
{
	return map == MAP_CONTROL ? "control" : map_name(map);
}

/* A loader that died between the two renames of set_pin() left the new set whole, and in the wrong place. */
static void finish_rename(const char *pins)
{
	char fresh[512], old[512];

	snprintf(fresh, sizeof(fresh), "%s_new", pins);
	snprintf(old, sizeof(old), "%s_old", pins);
	if (access(pins, F_OK) && !access(old, F_OK) && rename(fresh, pins))
		rename(old, pins);
}

int set_open_pins(struct kernel_set *set, const char *pins)
{
	char path[512];
	int error;

	finish_rename(pins);
	if (access(pins, F_OK))
		return -ENOENT;
	for (int i = 0; i < MAPS; i++) {
		snprintf(path, sizeof(path), "%s/map_%s", pins, map_pin(i));
		set->maps[i] = bpf_obj_get(path);
		if (set->maps[i] < 0)
			goto broken;
	}
	error = set_map_cells(set);
	for (int i = 0; !error && i < LINKS; i++) {
		snprintf(path, sizeof(path), "%s/link_%s", pins, program_names[i]);
		set->links[i] = bpf_obj_get(path);
		if (i < LINKS_ALWAYS && set->links[i] < 0)
			goto broken;
		snprintf(path, sizeof(path), "%s/program_%s", pins, program_names[i]);
		if (is_hook(i))
			set->programs[i] = bpf_obj_get(path);
	}
	if (!error)
		return 0;
broken:
	set_close(set);
	return -EINVAL;
}

int remove_directory(const char *path)
{
	struct dirent *entry;
	DIR *directory = opendir(path);
	char name[1024];
	int error = 0;

	if (!directory)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(directory))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		if (unlink(name) && !error)
			error = -errno;
	}
	closedir(directory);
	if (rmdir(path) && !error)
		error = -errno;
	return error;
}

/* The network side's, whole or half made. */
static int remove_net(const char *pins)
{
	char path[512];

	snprintf(path, sizeof(path), "%s_net_new", pins);
	remove_directory(path);
	snprintf(path, sizeof(path), "%s_net", pins);
	return remove_directory(path);
}

/* The directories a crash can leave beside the final one. */
static void remove_leftovers(const char *pins)
{
	char path[512];

	snprintf(path, sizeof(path), "%s_new", pins);
	remove_directory(path);
	snprintf(path, sizeof(path), "%s_old", pins);
	remove_directory(path);
}

int kw_loader_unpin(const char *pins, char *error, uint64_t error_capacity)
{
	int there = access(pins, F_OK) == 0;
	int result = there ? remove_directory(pins) : 0;

	remove_leftovers(pins);
	if (!result)
		result = remove_net(pins);
	if (result)
		snprintf(error, error_capacity, "cannot remove %s: %s", pins, strerror(-result));
	return result ? result : there;
}

static int pin_all(struct kw_loader *loader, const char *directory)
{
	char path[1024];

	if (mkdir(directory, 0700))
		return loader_fail(loader, -errno, "cannot make %s: %s; is a bpffs mounted at /sys/fs/bpf?", directory,
				   strerror(errno));
	for (int i = 0; i < MAPS; i++) {
		snprintf(path, sizeof(path), "%s/map_%s", directory, map_pin(i));
		if (bpf_obj_pin(loader->set.maps[i], path))
			return loader_fail(loader, -errno, "cannot pin %s: %s", path, strerror(errno));
	}
	for (int i = 0; i < LINKS; i++) {
		snprintf(path, sizeof(path), "%s/link_%s", directory, program_names[i]);
		if (loader->set.links[i] >= 0 && bpf_obj_pin(loader->set.links[i], path))
			return loader_fail(loader, -errno, "cannot pin %s: %s", path, strerror(errno));
		snprintf(path, sizeof(path), "%s/program_%s", directory, program_names[i]);
		if (loader->set.programs[i] >= 0 && bpf_obj_pin(loader->set.programs[i], path))
			return loader_fail(loader, -errno, "cannot pin %s: %s", path, strerror(errno));
	}
	return 0;
}

int set_pin(struct kw_loader *loader)
{
	char fresh[512], old[512];
	int error;

	snprintf(fresh, sizeof(fresh), "%s_new", loader->pins);
	snprintf(old, sizeof(old), "%s_old", loader->pins);
	remove_leftovers(loader->pins);
	error = pin_all(loader, fresh);
	if (error) {
		remove_directory(fresh);
		return error;
	}
	if (rename(loader->pins, old) && errno != ENOENT)
		error = loader_fail(loader, -errno, "cannot move %s away: %s", loader->pins, strerror(errno));
	else if (rename(fresh, loader->pins))
		error = loader_fail(loader, -errno, "cannot move %s into place: %s", fresh, strerror(errno));
	if (error && access(loader->pins, F_OK))
		rename(old, loader->pins);
	remove_leftovers(loader->pins);
	return error;
}
