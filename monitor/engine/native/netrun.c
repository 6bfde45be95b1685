/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network side at work: packet programs come and go with those who need them, walks over sockets, the counters.
 * Refuses to know how it came into the kernel (netload.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "netload.h"

static void link_pin(const struct net_side *net, int i, const char *name)
{
	char path[400];

	if (!net->pins[0])
		return;
	snprintf(path, sizeof(path), "%s/link_%s", net->pins, name);
	if (net->links[i] >= 0)
		bpf_obj_pin(net->links[i], path);
	else
		unlink(path);
}

/*
 * While nobody is kin and no socket of kin is left, a packet costs nothing. The hooks wake the reader for the first
 * root and for the last socket; what passes between a root's exec and this call is not counted.
 */
static void packets_tend(struct kw_loader *loader, struct net_side *net)
{
	static const enum bpf_attach_type types[2] = {BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS};
	static const char *const names[2] = {"on_egress", "on_ingress"};
	int wanted;

	if (!(net->hooks & KW_NET_PACKETS) || net->packets_failed)
		return;
	wanted = (__atomic_load_n(&loader->set.control->activity, __ATOMIC_ACQUIRE) & KW_PACKED_MASK) ||
		 __atomic_load_n(&net->control->sockets, __ATOMIC_ACQUIRE);
	for (int n = 0; n < 2; n++) {
		int i = NET_EGRESS + n;

		if (wanted == (net->links[i] >= 0))
			continue;
		if (!wanted) {
			close(net->links[i]);
			net->links[i] = -1;
		} else {
			net->links[i] = bpf_link_create(net->programs[i], net->cgroup, types[n], NULL);
			if (net->links[i] < 0) {
				net->packets_failed = errno;
				snprintf(net->reasons[3], sizeof(net->reasons[3]), "cannot attach %s: %s", names[n],
					 strerror(errno));
				net->hooks &= ~KW_NET_PACKETS;
			}
		}
		link_pin(net, i, names[n]);
	}
}

static int64_t walk(struct kw_loader *loader)
{
	return iterator_run(loader->net->links[NET_WALK], NULL, NULL);
}

/* Tags are told apart by epoch: no walk would find them all. */
int net_forget(struct kw_loader *loader, uint64_t watches)
{
	struct net_side *net = loader->net;
	int cpus = libbpf_num_possible_cpus();
	struct kw_net_row *rows;
	uint32_t epoch;

	if (!net || !net->control || cpus < 1)
		return 0;
	rows = calloc(cpus, sizeof(*rows));
	if (!rows)
		return loader_fail(loader, -ENOMEM, "no memory for the network's counters");
	epoch = net->control->epoch + 1;
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		if (watches & slot_bit(slot))
			net->control->forgotten[slot] = epoch;
	__atomic_store_n(&net->control->epoch, epoch, __ATOMIC_SEQ_CST);
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		if (watches & slot_bit(slot))
			bpf_map_update_elem(net->maps[NET_MAP_COUNTERS], &slot, rows, BPF_ANY);
	free(rows);
	return 0;
}

int net_adopt(struct kw_loader *loader, uint64_t watches)
{
	struct net_side *net = loader->net;
	int64_t error;

	if (!net || net->links[NET_WALK] < 0)
		return 0;
	pthread_mutex_lock(&loader->snapshot_lock);
	net->control->adopt = watches;
	__sync_synchronize();
	error = walk(loader);
	net->control->adopt = 0;
	pthread_mutex_unlock(&loader->snapshot_lock);
	return error < 0 ? loader_fail(loader, error, "cannot walk the open files: %s", strerror(-error)) : 0;
}

int net_is_taken_over(const struct kw_loader *loader)
{
	return loader->net && loader->net->taken_over;
}

static int retold(void *context, const uint8_t *bytes, uint64_t length)
{
	kw_engine_ingest(context, bytes, length);
	return 0;
}

int net_retell(struct kw_loader *loader, struct kw_engine *engine, int told)
{
	struct net_side *net = loader->net;
	int64_t error;

	if (!net || net->links[NET_WALK] < 0)
		return 0;
	pthread_mutex_lock(&loader->snapshot_lock);
	net->control->retell = told ? 1 | KW_LIVE_TOLD : 1;
	__sync_synchronize();
	error = iterator_run(net->links[NET_WALK], retold, engine);
	net->control->retell = 0;
	pthread_mutex_unlock(&loader->snapshot_lock);
	return error < 0 ? loader_fail(loader, error, "cannot walk the open files: %s", strerror(-error)) : 1;
}

void net_note_root(struct kw_loader *loader, uint32_t pid)
{
	struct net_side *net = loader->net;

	if (!net || net->programs[NET_WALK] < 0)
		return;
	if (net->roots_noted < NET_ROOTS)
		net->roots[net->roots_noted] = pid;
	net->roots_noted++;
}

/* What a fresh root has open, by an iterator for that process alone (in v6.1); before, everybody's files. */
static void root_walk(const struct net_side *net, uint32_t pid)
{
	union bpf_iter_link_info info = {.task = {.pid = pid}};
	LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info));
	int link = bpf_link_create(net->programs[NET_WALK], 0, BPF_TRACE_ITER, &options);

	iterator_run(link >= 0 ? link : net->links[NET_WALK], NULL, NULL);
	if (link >= 0)
		close(link);
}

static void roots_tend(struct kw_loader *loader, struct net_side *net)
{
	uint32_t roots = net->roots_noted;

	if (!roots)
		return;
	net->roots_noted = 0;
	if (roots > NET_ROOTS) {
		net_adopt(loader, ~0ULL);
		return;
	}
	pthread_mutex_lock(&loader->snapshot_lock);
	net->control->adopt = ~0ULL;
	__sync_synchronize();
	for (uint32_t i = 0; i < roots; i++)
		root_walk(net, net->roots[i]);
	net->control->adopt = 0;
	pthread_mutex_unlock(&loader->snapshot_lock);
}

void net_note_portless(struct kw_loader *loader)
{
	if (loader->net && loader->net->links[NET_WALK] >= 0)
		loader->net->portless = 1;
}

static void portless_tend(struct kw_loader *loader, struct net_side *net)
{
	if (!net->portless)
		return;
	net->portless = 0;
	pthread_mutex_lock(&loader->snapshot_lock);
	walk(loader);
	pthread_mutex_unlock(&loader->snapshot_lock);
}

void net_tend(struct kw_loader *loader)
{
	struct net_side *net = loader->net;

	if (!net || !net->control)
		return;
	packets_tend(loader, net);
	roots_tend(loader, net);
	portless_tend(loader, net);
}

void kw_loader_net_expecting(struct kw_loader *loader, uint64_t watches)
{
	if (loader->net && loader->net->control)
		__atomic_store_n(&loader->net->control->expecting, watches, __ATOMIC_SEQ_CST);
}

int kw_loader_net_snapshot(struct kw_loader *loader, struct kw_net_counters *counters)
{
	struct net_side *net = loader->net;
	int cpus = libbpf_num_possible_cpus();
	struct kw_net_row *rows;
	int64_t error = 0;

	memset(counters, 0, KW_SLOTS * sizeof(*counters));
	if (!net || !net->control || cpus < 1)
		return loader_fail(loader, -ENOTSUP, "the network is not watched");
	rows = calloc(cpus, sizeof(*rows));
	if (!rows)
		return loader_fail(loader, -ENOMEM, "no memory for the network's counters");
	pthread_mutex_lock(&loader->snapshot_lock);
	if (net->links[NET_WALK] >= 0 && net->control->sockets)
		error = walk(loader);
	pthread_mutex_unlock(&loader->snapshot_lock);
	for (uint32_t slot = 0; slot < KW_SLOTS && error >= 0; slot++) {
		uint64_t *sum = (uint64_t *)&counters[slot];

		if (bpf_map_lookup_elem(net->maps[NET_MAP_COUNTERS], &slot, rows)) {
			error = -errno;
			break;
		}
		for (int cpu = 0; cpu < cpus; cpu++)
			for (size_t cell = 0; cell < sizeof(*counters) / sizeof(uint64_t); cell++)
				sum[cell] += ((const uint64_t *)&rows[cpu].cells)[cell];
	}
	free(rows);
	return error < 0 ? loader_fail(loader, error, "cannot read the network's counters: %s", strerror(-error)) : 0;
}

uint64_t net_skipped(const struct kw_loader *loader, uint64_t (*skipped)(int program_fd))
{
	uint64_t sum = 0;

	for (int i = 0; loader->net && i < NET_PROGRAMS; i++)
		if (is_tracing(i))
			sum += skipped(loader->net->programs[i]);
	return sum;
}
