/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Puts the kernel side in place: loads it and attaches it, or takes over what an earlier daemon pinned (pins.c).
 * Refuses to know records (drain.c) and rules (tables.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "loader_parts.h"

#define TRACEFS "/sys/kernel/tracing"

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

const char *const program_names[LINKS] = {
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
    [LINK_FORK_AGAIN] = "on_fork_again",
    [LINK_EXEC_AGAIN] = "on_exec_again",
    [LINK_EXIT_AGAIN] = "on_exit_again",
    [LINK_DENY] = "on_task_alloc",
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

/* Of a message the line that helps: the first; of a verifier's log the last before its statistics. */
static char *message_line(char *message)
{
	char *end = strstr(message, "\nprocessed "), *line = message;

	if (end && strstr(message, "PROG LOAD LOG")) {
		*end = 0;
		line = strrchr(message, '\n') ? strrchr(message, '\n') + 1 : message;
	}
	line[strcspn(line, "\n")] = 0;
	return line;
}

static int libbpf_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	size_t used = strlen(libbpf_said);
	char *message, *line;

	if (level != LIBBPF_WARN || vasprintf(&message, format, arguments) < 0)
		return 0;
	line = message_line(message);
	if (!strstr(line, "missing .BTF.ext line info") && /* build/btf.py took it out */
	    used + strlen(line) + 3 < sizeof(libbpf_said))
		sprintf(libbpf_said + used, "%s%s", used ? "; " : "", line);
	free(message);
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
	memset(set->programs, -1, sizeof(set->programs));
	set->control = NULL;
	set->counters = NULL;
	set->expected = NULL;
}

void set_close(struct kernel_set *set)
{
	if (set->control)
		munmap(set->control, sizeof(*set->control));
	if (set->counters)
		munmap(set->counters, KW_SLOTS * sizeof(*set->counters));
	if (set->expected)
		munmap(set->expected, KW_EXPECTED_ROWS * sizeof(*set->expected));
	for (int i = 0; i < MAPS; i++)
		if (set->maps[i] >= 0)
			close(set->maps[i]);
	for (int i = 0; i < LINKS; i++) {
		if (set->links[i] >= 0)
			close(set->links[i]);
		if (set->programs[i] >= 0)
			close(set->programs[i]);
	}
	set_init(set);
}

static void *map_cells(int map_fd, size_t size)
{
	void *cells = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);

	return cells == MAP_FAILED ? NULL : cells;
}

int set_map_cells(struct kernel_set *set)
{
	set->control = map_cells(set->maps[MAP_CONTROL], sizeof(*set->control));
	set->counters = map_cells(set->maps[MAP_COUNTERS], KW_SLOTS * sizeof(*set->counters));
	set->expected = map_cells(set->maps[MAP_EXPECTED], KW_EXPECTED_ROWS * sizeof(*set->expected));
	return set->control && set->counters && set->expected ? 0 : -errno;
}

/* -------- loading -------- */

static int set_load(struct kw_loader *loader, const struct kw_loader_config *config)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "kinwatch",
		    .btf_custom_path = loader->btf[0] ? loader->btf : NULL);
	struct kernel_set *set = &loader->set;
	const uint32_t ways = kw_ways() | (config->paired ? KW_WAY_AGAIN : 0);
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
	for (int i = LINKS_ALWAYS; i < LINKS; i++) {
		struct bpf_program *program = bpf_object__find_program_by_name(loader->object, program_names[i]);

		if (program)
			bpf_program__set_autoload(program, ways & (i == LINK_DENY ? KW_WAY_DENY : KW_WAY_AGAIN));
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
	set->control->paired = ways & KW_WAY_AGAIN;
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

/* libbpf looks up the numbers of trace events there. 1: mounted, by us. */
static int tracefs_mount(void)
{
	return access(TRACEFS "/events", F_OK) &&
	       !mount("tracefs", TRACEFS, "tracefs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static int links_attach(struct kw_loader *loader)
{
	/* Hooks before iterators; exit before fork, so that no row can be made that no hook would remove. */
	static const int order[LINKS] = {LINK_EXIT,	    LINK_EXEC,		LINK_FORK,	 LINK_CGROUP_RMDIR,
					 LINK_CGROUP_MKDIR, LINK_CGROUP_ATTACH, LINK_WALK,	 LINK_FORGET,
					 LINK_SETTLE,	    LINK_DUMP,		LINK_SNAPSHOT,	 LINK_IDENTIFY,
					 LINK_EXIT_AGAIN,   LINK_EXEC_AGAIN,	LINK_FORK_AGAIN, LINK_DENY};

	for (int n = 0; n < LINKS; n++) {
		int i = order[n];
		struct bpf_program *program = bpf_object__find_program_by_name(loader->object, program_names[i]);
		struct bpf_link *link;

		if (!program)
			return loader_fail(loader, -EINVAL, "the object holds no program %s", program_names[i]);
		if (bpf_program__fd(program) < 0)
			continue; /* not for this kernel */
		link = bpf_program__attach(program);
		if (!link && i >= LINKS_ALWAYS)
			continue; /* without tracefs: what the first hook is skipped for is told as lost */
		if (!link)
			return loader_fail(loader, -errno, "cannot attach %s: %s (%s)", program_names[i],
					   strerror(errno), libbpf_said);
		loader->owned[i] = link;
		loader->set.links[i] = fcntl(bpf_link__fd(link), F_DUPFD_CLOEXEC, 3);
		if (is_hook(i))
			loader->set.programs[i] = fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 3);
		if (loader->set.links[i] < 0)
			return loader_fail(loader, -errno, "out of file descriptors");
	}
	return 0;
}

static int set_attach(struct kw_loader *loader)
{
	int mounted = loader->set.control->paired && tracefs_mount();
	int error = links_attach(loader);

	if (mounted)
		umount2(TRACEFS, MNT_DETACH);
	return error;
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
