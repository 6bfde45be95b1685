/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Puts the network side in place: an object of its own that reads the first object's lineage table and writes into its
 * ring. Refuses to know what is done with it (netrun.c).
 *
 * The verifier's work is most of a start. So where both objects are new they are verified at once, on two processors
 * (net_load_meanwhile()); what they share is made before.
 *
 * Hooks come in groups (enum kw_net_hook). A group that the kernel does not offer is left out with a reason; the others
 * go on without it. A set that was pinned is taken over only if it came from this very object and reads this very
 * lineage table; else it is removed and loaded anew, and its counters begin again.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "netload.h"

static const char *const net_map_names[NET_MAPS] = {
    [NET_MAP_TAGS] = "socket_tags",
    [NET_MAP_COUNTERS] = "net_counters",
    [NET_MAP_CONTROL] = ".data.net",
};

static const struct {
	const char *name;
	uint32_t hook;
} programs[NET_PROGRAMS] = {
    [NET_STATE] = {"on_state", KW_NET_STATES},
    [NET_SOCK_CREATE] = {"on_sock_create", KW_NET_SOCKETS},
    [NET_SOCK_RELEASE] = {"on_sock_release", KW_NET_SOCKETS},
    [NET_CONNECT4] = {"on_connect4", KW_NET_SOCKETS},
    [NET_CONNECT6] = {"on_connect6", KW_NET_SOCKETS},
    [NET_SENDMSG4] = {"on_sendmsg4", KW_NET_SOCKETS},
    [NET_SENDMSG6] = {"on_sendmsg6", KW_NET_SOCKETS},
    [NET_RECVMSG4] = {"on_recvmsg4", KW_NET_SOCKETS},
    [NET_RECVMSG6] = {"on_recvmsg6", KW_NET_SOCKETS},
    [NET_POST_BIND4] = {"on_post_bind4", KW_NET_SOCKETS},
    [NET_POST_BIND6] = {"on_post_bind6", KW_NET_SOCKETS},
    [NET_SEND] = {"on_send", KW_NET_LENGTHS},
    [NET_RECV] = {"on_recv", KW_NET_LENGTHS},
    [NET_EGRESS] = {"on_egress", KW_NET_PACKETS},
    [NET_INGRESS] = {"on_ingress", KW_NET_PACKETS},
    [NET_WALK] = {"net_walk", KW_NET_BOOTSTRAP},
};

enum { ALL_HOOKS = (1 << KW_NET_HOOKS) - 1 };

/* Is its program kept, beside its link? Packet programs and the walk are attached anew. */
static int is_kept(int program)
{
	return programs[program].hook == KW_NET_PACKETS || program == NET_WALK || is_tracing(program);
}

static char *reason_of(struct net_side *net, uint32_t hook)
{
	return net->reasons[__builtin_ctz(hook) % KW_NET_HOOKS];
}

static void set_init_net(struct net_side *net)
{
	memset(net->maps, -1, sizeof(net->maps));
	memset(net->links, -1, sizeof(net->links));
	memset(net->programs, -1, sizeof(net->programs));
}

static void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void set_close_net(struct net_side *net)
{
	if (net->control)
		munmap(net->control, sizeof(*net->control));
	net->control = NULL;
	for (int i = 0; i < NET_PROGRAMS; i++) {
		fd_close(&net->links[i]);
		fd_close(&net->programs[i]);
	}
	for (int i = 0; i < NET_MAPS; i++)
		fd_close(&net->maps[i]);
	net->hooks = 0;
}

static int control_map(struct net_side *net)
{
	void *cells =
	    mmap(NULL, sizeof(*net->control), PROT_READ | PROT_WRITE, MAP_SHARED, net->maps[NET_MAP_CONTROL], 0);

	if (cells == MAP_FAILED)
		return -errno;
	net->control = cells;
	return 0;
}

static uint32_t map_id(int fd)
{
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);

	return bpf_obj_get_info_by_fd(fd, &info, &size) ? 0 : info.id;
}

/* fsopen(2) and its like, of 5.2: the C library may be older than the kernel, and their numbers are everywhere the
 * same.
 */
enum { CALL_FSOPEN = 430, CALL_FSCONFIG = 431, CALL_FSMOUNT = 432, CONFIG_CREATE = 6, CLOSE_ON_EXEC = 1 };

/*
 * The hierarchy is there where nobody has mounted it, as on devices with cgroup v1 alone, and all processes are in its
 * root. It is mounted for this descriptor only, nowhere that anybody would see. It takes CAP_SYS_ADMIN.
 */
static int cgroup_unmounted(void)
{
	int context = syscall(CALL_FSOPEN, "cgroup2", CLOSE_ON_EXEC), mount = -1, fd = -1;

	if (context < 0)
		return -1;
	if (!syscall(CALL_FSCONFIG, context, CONFIG_CREATE, NULL, NULL, 0))
		mount = syscall(CALL_FSMOUNT, context, CLOSE_ON_EXEC, 0);
	if (mount >= 0)
		fd = openat(mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	close(context);
	if (mount >= 0)
		close(mount);
	return fd;
}

static int cgroup_root(void)
{
	FILE *mounts = fopen("/proc/self/mounts", "re");
	char line[1024], where[512], kind[64];
	int fd = -1;

	if (!mounts)
		return -1;
	while (fd < 0 && fgets(line, sizeof(line), mounts))
		if (sscanf(line, "%*s %511s %63s", where, kind) == 2 && !strcmp(kind, "cgroup2"))
			fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fclose(mounts);
	return fd < 0 ? cgroup_unmounted() : fd;
}

/* -------- taking over -------- */

/* A bpffs has no names with dots. */
static const char *pin_name(const char *name)
{
	return name[0] == '.' ? "control" : name;
}

static int pin_open(const struct net_side *net, const char *kind, const char *name)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s_%s", net->pins, kind, pin_name(name));
	return bpf_obj_get(path);
}

/* 0: a whole set of ours that reads this lineage table. */
static int net_take_over(struct kw_loader *loader, struct net_side *net, uint64_t hash)
{
	int error = -EINVAL;

	for (int i = 0; i < NET_MAPS; i++) {
		net->maps[i] = pin_open(net, "map", net_map_names[i]);
		if (net->maps[i] < 0)
			goto broken;
	}
	error = control_map(net);
	if (error)
		goto broken;
	error = -ESTALE;
	if (net->control->object_hash != hash || net->control->rows_id != map_id(loader->set.maps[MAP_ROWS]))
		goto broken;
	net->control->adopt = 0; /* the last daemon may have been killed in a walk */
	net->hooks = net->control->hooks;
	for (int i = 0; i < NET_PROGRAMS; i++) {
		if (!(net->hooks & programs[i].hook))
			continue;
		net->links[i] = pin_open(net, "link", programs[i].name);
		if (is_kept(i))
			net->programs[i] = pin_open(net, "program", programs[i].name);
		if (programs[i].hook == KW_NET_PACKETS ? net->programs[i] < 0 : net->links[i] < 0)
			goto broken;
	}
	return 0;
broken:
	set_close_net(net);
	return error;
}

/* -------- loading -------- */

/* Of what is wanted, what has a place to be attached to. The caller has asked the kernel's BTF. */
static uint32_t hooks_placed(struct net_side *net, uint32_t wanted)
{
	static const uint32_t of_cgroups[] = {KW_NET_SOCKETS, KW_NET_PACKETS};

	for (int i = 0; net->cgroup < 0 && i < 2; i++) {
		wanted &= ~of_cgroups[i];
		snprintf(reason_of(net, of_cgroups[i]), sizeof(net->reasons[0]),
			 "no cgroup2 hierarchy is mounted, nor can it be");
	}
	return wanted;
}

/* The maps of the first object that these programs use. */
static const enum map_index shared[] = {MAP_EVENTS, MAP_TAGS, MAP_ROWS, MAP_OVERFLOW, MAP_CONTROL};

enum { SHARED = sizeof(shared) / sizeof(shared[0]) };

/* They get the first object's maps; of those that are not handed over only their own are made. */
static int maps_hand_over(struct kw_loader *loader, struct bpf_object *object)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
	{
		const char *name = bpf_map__name(map);
		int ours =
		    !strncmp(name, "net_", 4) || !strcmp(name, "socket_tags") || name[0] == '.' || strchr(name, '.');

		for (int i = 0; i < SHARED; i++) {
			const char *wanted = map_name(shared[i]);
			size_t length = strlen(wanted), have = strlen(name);

			if (have < length || strcmp(name + have - length, wanted) != 0 ||
			    (have != length && wanted[0] != '.'))
				continue;
			ours = 1;
			if (bpf_map__reuse_fd(map, loader->set.maps[shared[i]]))
				return -errno;
			break;
		}
		if (!ours)
			bpf_map__set_autocreate(map, false);
	}
	return 0;
}

static struct bpf_object *net_open(struct kw_loader *loader, const char *path, uint32_t hooks, int *error)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "kinwatch_net",
		    .btf_custom_path = loader->btf[0] ? loader->btf : NULL);
	struct bpf_object *object;

	loader_libbpf_hear();
	object = bpf_object__open_file(path, &options);
	if (!object) {
		*error = -errno;
		return NULL;
	}
	for (int i = 0; i < NET_PROGRAMS; i++) {
		struct bpf_program *program = bpf_object__find_program_by_name(object, programs[i].name);

		if (program)
			bpf_program__set_autoload(program, (hooks & programs[i].hook) != 0);
		else
			*error = -EINVAL;
	}
	*error = maps_hand_over(loader, object);
	if (!*error)
		*error = bpf_object__load(object);
	if (*error) {
		bpf_object__close(object);
		return NULL;
	}
	return object;
}

/* All that is offered; where the kernel refuses, group by group, to find out what it refuses. */
static struct bpf_object *net_load(struct kw_loader *loader, const char *path, uint32_t *hooks)
{
	struct net_side *net = loader->net;
	struct bpf_object *object;
	uint32_t good = 0;
	int error = 0;

	object = net_open(loader, path, *hooks, &error);
	if (object)
		return object;
	for (uint32_t hook = 1; hook < ALL_HOOKS; hook <<= 1) {
		if (!(*hooks & hook))
			continue;
		object = net_open(loader, path, hook, &error);
		if (object)
			good |= hook;
		else
			snprintf(reason_of(net, hook), sizeof(net->reasons[0]), "the kernel refused it: %s (%.180s)",
				 strerror(-error), loader_libbpf_said());
		bpf_object__close(object);
	}
	*hooks = good;
	return good ? net_open(loader, path, good, &error) : NULL;
}

static struct bpf_link *program_attach(const struct net_side *net, struct bpf_program *program, int index)
{
	if (programs[index].hook == KW_NET_SOCKETS)
		return bpf_program__attach_cgroup(program, net->cgroup);
	return bpf_program__attach(program);
}

/* Attach a group's programs, all or none. */
static void group_attach(struct net_side *net, struct bpf_object *object, uint32_t hook)
{
	/* The last close before the making: no socket is counted that nobody takes off. */
	static const int order[NET_PROGRAMS] = {
	    NET_WALK,	  NET_SOCK_RELEASE, NET_STATE,	  NET_POST_BIND4, NET_POST_BIND6, NET_CONNECT4,
	    NET_CONNECT6, NET_SENDMSG4,	    NET_SENDMSG6, NET_RECVMSG4,	  NET_RECVMSG6,	  NET_SEND,
	    NET_RECV,	  NET_SOCK_CREATE,  NET_EGRESS,	  NET_INGRESS,
	};

	for (int n = 0; n < NET_PROGRAMS; n++) {
		int i = order[n];
		struct bpf_program *program = bpf_object__find_program_by_name(object, programs[i].name);
		struct bpf_link *link;

		if (programs[i].hook != hook || !program)
			continue;
		if (is_kept(i))
			net->programs[i] = fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 3);
		if (hook == KW_NET_PACKETS)
			continue; /* attached when somebody is kin */
		link = program_attach(net, program, i);
		if (link)
			net->links[i] = fcntl(bpf_link__fd(link), F_DUPFD_CLOEXEC, 3);
		if (net->links[i] < 0) {
			snprintf(reason_of(net, hook), sizeof(net->reasons[0]), "cannot attach %s: %s",
				 programs[i].name, strerror(errno));
			net->hooks &= ~hook;
		}
		bpf_link__destroy(link); /* ours lives on */
	}
	if (net->hooks & hook)
		return;
	for (int i = 0; i < NET_PROGRAMS; i++) {
		if (programs[i].hook != hook)
			continue;
		fd_close(&net->links[i]);
		fd_close(&net->programs[i]);
	}
}

/* Make what both objects use, in place of the first object's loading. */
static int maps_make(struct kw_loader *loader)
{
	for (int i = 0; i < SHARED; i++) {
		struct bpf_map *map = bpf_object__find_map_by_name(loader->object, map_name(shared[i]));
		LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = bpf_map__map_flags(map));
		int fd = bpf_map_create(bpf_map__type(map), bpf_map__name(map), bpf_map__key_size(map),
					bpf_map__value_size(map), bpf_map__max_entries(map), &options);

		loader->set.maps[shared[i]] = fd < 0 ? -1 : fd;
		if (fd < 0 || bpf_map__reuse_fd(map, fd))
			return loader_fail(loader, -errno, "cannot make the map %s: %s", map_name(shared[i]),
					   strerror(errno));
	}
	return 0;
}

static void *load_meanwhile(void *context)
{
	struct kw_loader *loader = context;
	struct net_side *net = loader->net;

	net->loaded = net_load(loader, net->path, &net->wanted);
	return NULL;
}

static int net_make(struct kw_loader *loader)
{
	struct net_side *net = calloc(1, sizeof(*net));

	if (!net)
		return loader_fail(loader, -ENOMEM, "no memory for the network side");
	set_init_net(net);
	net->cgroup = cgroup_root();
	if (loader->pins[0])
		snprintf(net->pins, sizeof(net->pins), "%s_net", loader->pins);
	loader->net = net;
	return 0;
}

int net_load_meanwhile(struct kw_loader *loader, const char *path, uint32_t wanted)
{
	sigset_t all, before;
	int error;

	if (!path[0] || strlen(path) >= sizeof(loader->net->path))
		return 0;
	error = net_make(loader);
	if (error)
		return error;
	strcpy(loader->net->path, path);
	loader->net->wanted = hooks_placed(loader->net, wanted);
	if (!loader->net->wanted)
		return 0;
	error = maps_make(loader);
	if (error)
		return error;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for who waits for them */
	loader->net->loading = !pthread_create(&loader->net->thread, NULL, load_meanwhile, loader);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return 0; /* without a thread it is loaded later */
}

static void net_wait(struct net_side *net)
{
	if (net->loading)
		pthread_join(net->thread, NULL);
	net->loading = 0;
}

/* The object, and which of the hooks it has. */
static struct bpf_object *net_loaded(struct kw_loader *loader, const char *path, uint32_t *hooks)
{
	struct net_side *net = loader->net;
	struct bpf_object *object;

	if (!net->loading) {
		*hooks = hooks_placed(net, *hooks);
		return *hooks ? net_load(loader, path, hooks) : NULL;
	}
	net_wait(net);
	*hooks = net->wanted;
	object = net->loaded;
	net->loaded = NULL;
	return object;
}

static int net_begin(struct kw_loader *loader, const char *path, uint64_t hash, uint32_t hooks)
{
	struct net_side *net = loader->net;
	struct bpf_object *object = net_loaded(loader, path, &hooks);
	int error = 0;

	if (!object)
		return loader_fail(loader, -ENOTSUP, "the kernel offers no hook for the network");
	for (int i = 0; i < NET_MAPS && !error; i++) {
		struct bpf_map *map = bpf_object__find_map_by_name(object, net_map_names[i]);

		net->maps[i] = map ? fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3) : -1;
		if (net->maps[i] < 0)
			error = -EINVAL;
	}
	if (!error)
		error = control_map(net);
	if (error) {
		bpf_object__close(object);
		return loader_fail(loader, error, "cannot reach the maps of %s", path);
	}
	net->control->object_hash = hash;
	net->control->rows_id = map_id(loader->set.maps[MAP_ROWS]);
	net->control->desk = !(hooks & KW_NET_PACKETS);
	net->hooks = hooks;
	for (uint32_t hook = KW_NET_BOOTSTRAP; hook; hook >>= 1)
		if (net->hooks & hook)
			group_attach(net, object, hook);
	net->control->hooks = net->hooks;
	bpf_object__close(object);
	return 0;
}

/* -------- pins -------- */

static int pin_make(struct kw_loader *loader, const char *directory, const char *kind, const char *name, int fd)
{
	char path[500];

	if (fd < 0)
		return 0;
	snprintf(path, sizeof(path), "%s/%s_%s", directory, kind, pin_name(name));
	return bpf_obj_pin(fd, path) ? loader_fail(loader, -errno, "cannot pin %s: %s", path, strerror(errno)) : 0;
}

static int net_pin(struct kw_loader *loader)
{
	struct net_side *net = loader->net;
	char fresh[320];
	int error = 0;

	snprintf(fresh, sizeof(fresh), "%s_new", net->pins);
	remove_directory(fresh);
	remove_directory(net->pins);
	if (mkdir(fresh, 0700))
		return loader_fail(loader, -errno, "cannot make %s: %s", fresh, strerror(errno));
	for (int i = 0; i < NET_MAPS && !error; i++)
		error = pin_make(loader, fresh, "map", net_map_names[i], net->maps[i]);
	for (int i = 0; i < NET_PROGRAMS && !error; i++) {
		error = pin_make(loader, fresh, "link", programs[i].name, net->links[i]);
		if (!error)
			error = pin_make(loader, fresh, "program", programs[i].name, net->programs[i]);
	}
	if (error) {
		remove_directory(fresh);
		return error;
	}
	if (rename(fresh, net->pins))
		return loader_fail(loader, -errno, "cannot move %s into place: %s", fresh, strerror(errno));
	return 0;
}

int kw_loader_net(struct kw_loader *loader, const char *object, uint32_t wanted)
{
	uint64_t hash = file_hash(object) + wanted; /* other hooks are wanted: another set */
	int error = loader->net ? 0 : net_make(loader), begun = 0;
	struct net_side *net = loader->net;

	if (error)
		return error;
	error = net->pins[0] ? net_take_over(loader, net, hash) : -ENOENT;
	if (error) {
		begun = 1;
		if (net->pins[0])
			remove_directory(net->pins); /* another version's, or of another life of the lineage table */
		error = net_begin(loader, object, hash, wanted);
		if (!error && net->pins[0])
			error = net_pin(loader);
	}
	if (error) {
		set_close_net(net);
		return error;
	}
	net->taken_over = !begun;
	net_tend(loader);
	if (begun && loader->origin != KW_ORIGIN_NEW)
		net_adopt(loader, ~0ULL);
	return net->hooks;
}

uint32_t kw_loader_net_hooks(const struct kw_loader *loader)
{
	return loader->net ? loader->net->hooks : 0;
}

const char *kw_loader_net_reason(const struct kw_loader *loader, uint32_t hook)
{
	const char *reason;

	if (!hook || hook > ALL_HOOKS)
		return "no such hook";
	if (!loader->net)
		return "not loaded";
	if (loader->net->hooks & hook)
		return "";
	reason = reason_of(loader->net, hook);
	return reason[0] ? reason : "not loaded";
}

void net_free(struct kw_loader *loader, int keep)
{
	struct net_side *net = loader->net;

	if (!net)
		return;
	net_wait(net);
	bpf_object__close(net->loaded);
	if (net->pins[0] && !keep)
		remove_directory(net->pins);
	set_close_net(net);
	fd_close(&net->cgroup);
	free(net);
	loader->net = NULL;
}
