/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Puts the kernel side in place: loads it, attaches it, pins it, or takes over what an earlier daemon pinned. Refuses
 * to know records (drain.c) and rules (tables.c).
 *
 * Pins are made in a directory beside the final one, which is then renamed into place: a crash at any moment leaves
 * either the old set whole or the new one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "loader_parts.h"

static const char *const map_names[MAPS] = {
    [MAP_EVENTS] = "events",	 [MAP_TAGS] = "tags",	      [MAP_ROWS] = "rows",
    [MAP_OVERFLOW] = "overflow", [MAP_COUNTERS] = "counters", [MAP_WATCHES] = "watches",
    [MAP_NAMES] = "names",	 [MAP_FILES] = "files",	      [MAP_PLACES] = "places",
    [MAP_PIDS] = "pids",	 [MAP_CGROUPS] = "cgroups",   [MAP_CGROUP_PATHS] = "cgroup_paths",
    [MAP_EDGES] = "edges",	 [MAP_SEED] = "seed",	      [MAP_DECIDED] = "decided",
    [MAP_EXPECTED] = "expected", [MAP_UIDS] = "uids",	      [MAP_CONTROL] = ".bss",
};

const char *map_name(enum map_index map)
{
	return map_names[map];
}

/* "kinwatch.bss" is libbpf's name for it. */
static const char *map_pin(enum map_index map)
{
	return map == MAP_CONTROL ? "control" : map_names[map];
}

static const char *const program_names[LINKS] = {
    [LINK_FORK] = "on_fork",
    [LINK_EXEC] = "on_exec",
    [LINK_EXIT] = "on_exit",
    [LINK_CGROUP_ATTACH] = "on_cgroup_attach",
    [LINK_CGROUP_MKDIR] = "on_cgroup_mkdir",
    [LINK_CGROUP_RMDIR] = "on_cgroup_rmdir",
    [LINK_WALK] = "walk",
    [LINK_FORGET] = "forget",
    [LINK_SETTLE] = "settle",
    [LINK_DUMP] = "dump",
    [LINK_SNAPSHOT] = "snapshot",
    [LINK_IDENTIFY] = "identify",
};

int loader_fail(struct kw_loader *loader, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(loader->error, sizeof(loader->error), format, arguments);
	va_end(arguments);
	return error < 0 ? error : -EINVAL;
}

const char *kw_loader_error(const struct kw_loader *loader)
{
	return loader->error;
}

/* libbpf speaks through this; the last lines of a verifier log are what helps. Two objects are loaded at a time. */
static _Thread_local char libbpf_said[700];

static int libbpf_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	size_t used = strlen(libbpf_said);
	char line[4096];

	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(line, sizeof(line), format, arguments);
	line[strcspn(line, "\n")] = 0;
	if (used + strlen(line) + 3 < sizeof(libbpf_said))
		sprintf(libbpf_said + used, "%s%s", used ? "; " : "", line);
	return 0;
}

void loader_libbpf_hear(void)
{
	libbpf_said[0] = 0;
	libbpf_set_print(libbpf_print);
}

const char *loader_libbpf_said(void)
{
	return libbpf_said;
}

static uint64_t boot_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uint64_t file_hash(const char *path)
{
	uint64_t hash = 14695981039346656037ULL; /* FNV-1a */
	FILE *file = fopen(path, "re");
	int byte;

	if (!file)
		return 0;
	while ((byte = getc(file)) != EOF)
		hash = (hash ^ (uint8_t)byte) * 1099511628211ULL;
	fclose(file);
	return hash ^ KW_LAYOUT;
}

static uint32_t pid_max(void)
{
	uint32_t value = 4194304; /* PID_MAX_LIMIT */
	FILE *file = fopen("/proc/sys/kernel/pid_max", "re");

	if (file) {
		if (fscanf(file, "%u", &value) != 1)
			value = 4194304;
		fclose(file);
	}
	return value;
}

/* Rows of the lineage table: no two pids share one, or at least twice as many as processes (see ebpf/maps.h). */
static uint32_t table_rows(uint32_t max_processes)
{
	uint32_t pids = pid_max();
	uint32_t rows = 64;

	while (rows < pids && rows < 2 * max_processes)
		rows *= 2;
	return rows;
}

/* -------- a set in the kernel -------- */

void set_init(struct kernel_set *set)
{
	memset(set->maps, -1, sizeof(set->maps));
	memset(set->links, -1, sizeof(set->links));
	set->control = NULL;
	set->counters = NULL;
}

void set_close(struct kernel_set *set)
{
	if (set->control)
		munmap(set->control, sizeof(*set->control));
	if (set->counters)
		munmap(set->counters, KW_SLOTS * sizeof(*set->counters));
	for (int i = 0; i < MAPS; i++)
		if (set->maps[i] >= 0)
			close(set->maps[i]);
	for (int i = 0; i < LINKS; i++)
		if (set->links[i] >= 0)
			close(set->links[i]);
	set_init(set);
}

static void *map_cells(int map_fd, size_t size)
{
	void *cells = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);

	return cells == MAP_FAILED ? NULL : cells;
}

static int set_map_cells(struct kernel_set *set)
{
	set->control = map_cells(set->maps[MAP_CONTROL], sizeof(*set->control));
	set->counters = map_cells(set->maps[MAP_COUNTERS], KW_SLOTS * sizeof(*set->counters));
	return set->control && set->counters ? 0 : -errno;
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

/* Open everything pinned at `pins`. -ENOENT: nothing there; another error: something, but not one whole set of ours. */
static int set_open_pins(struct kernel_set *set, const char *pins)
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
	for (int i = 0; i < LINKS; i++) {
		snprintf(path, sizeof(path), "%s/link_%s", pins, program_names[i]);
		set->links[i] = bpf_obj_get(path);
		if (set->links[i] < 0)
			goto broken;
	}
	error = set_map_cells(set);
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
		if (bpf_obj_pin(loader->set.links[i], path))
			return loader_fail(loader, -errno, "cannot pin %s: %s", path, strerror(errno));
	}
	return 0;
}

/* On failure what was pinned before is pinned still. */
static int set_pin(struct kw_loader *loader)
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

/* -------- loading -------- */

static int set_load(struct kw_loader *loader, const struct kw_loader_config *config)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "kinwatch",
		    .btf_custom_path = loader->btf[0] ? loader->btf : NULL);
	struct kernel_set *set = &loader->set;
	struct bpf_map *map;
	int error;

	loader_libbpf_hear();
	loader->object = bpf_object__open_file(config->object, &options);
	if (!loader->object)
		return loader_fail(loader, -errno, "cannot open %s: %s (%s)", config->object, strerror(errno),
				   libbpf_said);
	for (int i = 0; i < MAPS; i++) {
		map = bpf_object__find_map_by_name(loader->object, map_names[i]);
		if (!map)
			return loader_fail(loader, -EINVAL, "%s holds no map %s: it was built from other sources",
					   config->object, map_names[i]);
		if (i == MAP_EVENTS)
			bpf_map__set_max_entries(map, config->ring_bytes);
		else if (i == MAP_TAGS || i == MAP_ROWS)
			bpf_map__set_max_entries(map, table_rows(config->max_processes));
		else if (i == MAP_OVERFLOW || i == MAP_SEED)
			bpf_map__set_max_entries(map, config->max_processes);
	}
	error = net_load_meanwhile(loader, config->net_object, config->net_hooks);
	if (error)
		return error;
	error = bpf_object__load(loader->object);
	if (error)
		return loader_fail(loader, error, "the kernel refused the programs%s%s: %s (%s)",
				   loader->btf[0] ? ", relocated by [capture] btf " : "", loader->btf, strerror(-error),
				   libbpf_said);
	for (int i = 0; i < MAPS; i++) {
		map = bpf_object__find_map_by_name(loader->object, map_names[i]);
		if (set->maps[i] < 0)
			set->maps[i] = fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3);
		if (set->maps[i] < 0)
			return loader_fail(loader, -errno, "out of file descriptors");
	}
	error = set_map_cells(set);
	if (error)
		return loader_fail(loader, error, "cannot map the control cells: %s", strerror(-error));
	set->control->layout = KW_LAYOUT;
	enforce_init(set->control);
	set->control->snapshot_reader = -1;
	set->control->urgent_ns = 1000000;
	set->control->wake_bytes = config->ring_bytes / 2;
	set->control->row_mask = table_rows(config->max_processes) - 1;
	set->control->max_kin = config->max_processes;
	set->control->since_ns = boot_ns();
	if (getrandom(&set->control->generation, sizeof(set->control->generation), 0) < 0)
		set->control->generation = set->control->since_ns;
	set->control->object_hash = file_hash(config->object);
	return 0;
}

static int set_attach(struct kw_loader *loader)
{
	/* Hooks before iterators; exit before fork, so that no row can be made that no hook would remove. */
	static const int order[LINKS] = {LINK_EXIT,	    LINK_EXEC,		LINK_FORK,     LINK_CGROUP_RMDIR,
					 LINK_CGROUP_MKDIR, LINK_CGROUP_ATTACH, LINK_WALK,     LINK_FORGET,
					 LINK_SETTLE,	    LINK_DUMP,		LINK_SNAPSHOT, LINK_IDENTIFY};

	for (int n = 0; n < LINKS; n++) {
		int i = order[n];
		struct bpf_program *program = bpf_object__find_program_by_name(loader->object, program_names[i]);
		struct bpf_link *link;

		if (!program)
			return loader_fail(loader, -EINVAL, "the object holds no program %s", program_names[i]);
		link = bpf_program__attach(program);
		if (!link)
			return loader_fail(loader, -errno, "cannot attach %s: %s (%s)", program_names[i],
					   strerror(errno), libbpf_said);
		loader->owned[i] = link;
		loader->set.links[i] = fcntl(bpf_link__fd(link), F_DUPFD_CLOEXEC, 3);
		if (loader->set.links[i] < 0)
			return loader_fail(loader, -errno, "out of file descriptors");
	}
	return 0;
}

/* Were these maps made for these sizes? */
static int has_sizes(const struct kernel_set *set, const struct kw_loader_config *config)
{
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);

	return set->control->max_kin == config->max_processes &&
	       !bpf_obj_get_info_by_fd(set->maps[MAP_EVENTS], &info, &size) && info.max_entries == config->ring_bytes;
}

int kw_loader_open(const struct kw_loader_config *config, struct kw_loader **result)
{
	struct kw_loader *loader = calloc(1, sizeof(*loader));
	struct kernel_set old;
	int error;

	*result = loader;
	if (!loader)
		return -ENOMEM;
	set_init(&loader->set);
	pthread_mutex_init(&loader->snapshot_lock, NULL);
	loader->poll_fd = loader->stop_fd = loader->inotify_fd = -1;
	if (strlen(config->pins) + 8 >= sizeof(loader->pins))
		return loader_fail(loader, -ENAMETOOLONG, "the pin directory's name is too long: %s", config->pins);
	strcpy(loader->pins, config->pins);
	if (strlen(config->btf) >= sizeof(loader->btf))
		return loader_fail(loader, -ENAMETOOLONG, "the BTF file's name is too long: %s", config->btf);
	strcpy(loader->btf, config->btf);
	set_init(&old);
	if (loader->pins[0]) {
		error = set_open_pins(&old, loader->pins);
		if (!error && old.control->layout == KW_LAYOUT &&
		    old.control->object_hash == file_hash(config->object) && has_sizes(&old, config)) {
			loader->set = old;
			loader->origin = KW_ORIGIN_TAKEN_OVER;
			return drain_open(loader);
		}
		if (!error && old.control->layout == KW_LAYOUT)
			loader->origin = KW_ORIGIN_SWAPPED;
		else /* another layout: our hooks go live before its are removed, but nothing is handed over */
			set_close(&old);
	}
	loader->begun_ns = boot_ns();
	error = set_load(loader, config);
	if (!error && loader->origin == KW_ORIGIN_SWAPPED)
		error = swap_copy_tables(loader, &old);
	if (!error)
		error = set_attach(loader);
	if (!error)
		error = drain_open(loader);
	if (!error && loader->pins[0])
		error = set_pin(loader); /* the old set's pins go here; ours are in place */
	if (!error && loader->origin == KW_ORIGIN_SWAPPED)
		error = swap_hand_over(loader, &old);
	else
		set_close(&old);
	return error;
}

void kw_loader_free(struct kw_loader *loader, int keep)
{
	char error[256];

	if (!loader)
		return;
	swap_free(loader);
	net_free(loader, keep);
	drain_close(loader);
	for (int i = 0; i < LINKS; i++)
		bpf_link__destroy(loader->owned[i]); /* a pinned link lives on */
	if (loader->pins[0] && !keep)
		kw_loader_unpin(loader->pins, error, sizeof(error));
	set_close(&loader->set);
	bpf_object__close(loader->object);
	free(loader);
}

void kw_loader_read_state(struct kw_loader *loader, struct kw_loader_state *state)
{
	const struct kw_control *control = loader->set.control;

	*state = (struct kw_loader_state){
	    .generation = control->generation,
	    .since_ns = control->since_ns,
	    .kin = control->activity & KW_PACKED_MASK,
	    .emitted = control->activity >> KW_PACKED_BITS,
	    .woken = control->woken,
	    .polls = loader->polls,
	    .syncs = loader->syncs,
	    .origin = loader->origin,
	    .breaker = control->stopped & KW_STOP_BREAKER ? 1 : 0,
	};
}

int64_t iterator_run(int link_fd, int (*each)(void *context, const uint8_t *bytes, uint64_t length), void *context)
{
	const uint64_t capacity = 8 * (uint64_t)sysconf(_SC_PAGESIZE); /* bpf_seq_read()'s own: whole records only */
	uint8_t *buffer = malloc(capacity);
	int64_t total = 0;
	int fd = buffer ? bpf_iter_create(link_fd) : -ENOMEM;

	if (fd < 0) {
		free(buffer);
		return fd;
	}
	for (;;) {
		ssize_t bytes = read(fd, buffer, capacity);

		if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (bytes <= 0) {
			if (bytes < 0)
				total = -errno;
			break;
		}
		total += bytes;
		if (each)
			each(context, buffer, bytes);
	}
	close(fd);
	free(buffer);
	return total;
}

struct rows {
	uint8_t *bytes;
	uint64_t used, capacity;
};

static int rows_add(void *context, const uint8_t *bytes, uint64_t length)
{
	struct rows *rows = context;

	if (rows->used + length > rows->capacity)
		length = rows->capacity - rows->used;
	memcpy(rows->bytes + rows->used, bytes, length);
	rows->used += length;
	return 0;
}

int kw_loader_snapshot(struct kw_loader *loader, int reader, struct kw_counters *counters)
{
	struct rows rows = {(uint8_t *)counters, 0, KW_SLOTS * sizeof(*counters)};
	int64_t bytes;

	pthread_mutex_lock(&loader->snapshot_lock);
	loader->set.control->snapshot_reader = reader;
	bytes = iterator_run(loader->set.links[LINK_SNAPSHOT], rows_add, &rows);
	loader->set.control->snapshot_reader = -1;
	pthread_mutex_unlock(&loader->snapshot_lock);
	if (bytes < 0)
		return loader_fail(loader, bytes, "cannot read the counters: %s", strerror(-bytes));
	return rows.used == rows.capacity ? 0 : loader_fail(loader, -EIO, "the counters came incomplete");
}

int kw_loader_losses(struct kw_loader *loader, uint64_t *losses)
{
	uint64_t missed = 0;

	for (int i = 0; i < KW_STAGES; i++)
		losses[i] = loader->set.control->lost[i];
	/* What the kernel skipped because the hook was running on that CPU already. */
	for (int i = LINK_FORK; i <= LINK_CGROUP_RMDIR; i++) {
		struct bpf_link_info link = {};
		struct bpf_prog_info program = {};
		uint32_t size = sizeof(link);
		int fd;

		if (bpf_obj_get_info_by_fd(loader->set.links[i], &link, &size))
			continue;
		fd = bpf_prog_get_fd_by_id(link.prog_id);
		if (fd < 0)
			continue;
		size = sizeof(program);
		if (!bpf_obj_get_info_by_fd(fd, &program, &size))
			missed += program.recursion_misses;
		close(fd);
	}
	losses[KW_HOOK_MISSED] += missed;
	return 0;
}
