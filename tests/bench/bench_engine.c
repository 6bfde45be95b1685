/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one record costs in the engine, from bytes to line: 200,000 children of one root start and end, no exec between,
 * in batches of 1,000 records, one watch; then as many connections of that root, with 64 open at once, to 32 addresses.
 * Synthesises its records, reads nothing, prints one line for each.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "event.h"

#include "engine.h"

enum { CHILDREN = 200000, BATCH = 500, ALIVE = 64 };

struct pair {
	struct kw_fork fork;
	struct kw_exit exit;
};

static const struct kw_id root_id = {.start_ns = 5000000000, .pid = 1000};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void child_id(struct kw_id *id, uint64_t number)
{
	*id = (struct kw_id){.start_ns = 6000000000 + number * 40000, .pid = (uint32_t)(2000 + number % 30000)};
}

/* Child `number` starts, and the one that started ALIVE earlier ends. */
static void pair_fill(struct pair *pair, uint64_t number)
{
	struct kw_fork *fork = &pair->fork;
	struct kw_exit *end = &pair->exit;

	memset(pair, 0, sizeof(*pair));
	child_id(&fork->process, number);
	fork->header = (struct kw_header){.size = sizeof(*fork),
					  .kind = KW_FORK,
					  .flags = KW_HAS_PARENT | KW_HAS_ROOT | KW_HAS_CREDENTIALS,
					  .time_ns = fork->process.start_ns + 3000,
					  .watches = 1};
	fork->parent = fork->root = root_id;
	fork->depth = 1;
	fork->uid = 1000;
	memcpy(fork->comm, "myapp", 6);
	child_id(&end->process, number < ALIVE ? CHILDREN + number : number - ALIVE);
	end->header = (struct kw_header){.size = sizeof(*end),
					 .kind = KW_EXIT,
					 .flags = KW_HAS_ROOT | KW_HAS_CREDENTIALS | KW_HAS_STATUS,
					 .time_ns = fork->process.start_ns + 20000,
					 .watches = 1};
	end->root = root_id;
	end->depth = 1;
	memcpy(end->comm, "myapp", 6);
	if (number < ALIVE) /* nobody to end yet: a record of the same size that does nothing */
		end->header = (struct kw_header){.size = sizeof(*end), .kind = KW_FORGET};
}

static void root_add(struct kw_engine *engine)
{
	struct kw_image root = {
	    .header = {.size = sizeof(root), .kind = KW_EXEC, .time_ns = 5000000000, .watches = 1, .roots = 1},
	    .fresh = 1,
	    .process = root_id,
	    .cause = KW_CAUSE_EXEC,
	    .comm = "myapp"};
	struct kw_clock clock = {.header = {.size = sizeof(clock), .kind = KW_CLOCK}, .wall_ns = 1790000000000000000};

	kw_engine_ingest(engine, (const uint8_t *)&clock, sizeof(clock));
	kw_engine_ingest(engine, (const uint8_t *)&root, sizeof(root));
}

static void socket_fill(struct kw_socket *record, uint64_t number, uint16_t event)
{
	static const uint8_t here[4] = {10, 0, 0, 1};

	*record = (struct kw_socket){.header = {.size = sizeof(*record),
						.kind = KW_SOCKET,
						.flags = KW_HAS_ROOT,
						.time_ns = 20000000000 + number * 40000,
						.watches = 1},
				     .process = root_id,
				     .root = root_id,
				     .cookie = number + 1,
				     .bytes_in = 1000,
				     .bytes_out = 1000,
				     .event = event,
				     .family = 2,
				     .protocol = 6,
				     .type = 1,
				     .local_port = (uint16_t)(10000 + number % 50000),
				     .remote_port = 443};
	memcpy(record->local, here, sizeof(here));
	memcpy(record->remote, here, sizeof(here));
	record->remote[3] = (uint8_t)(number % 32);
}

/* Connection after connection, each closed when ALIVE newer ones are open. 0: the engine refused a record. */
static int connections(struct kw_engine *engine)
{
	static struct kw_socket records[2 * BATCH];
	uint64_t spent_ns = 0, bytes = 0;
	int64_t accepted = 0;

	for (uint64_t i = 0; i < CHILDREN; i += BATCH) {
		struct kw_batch batch;
		uint64_t count = 0, start_ns;

		for (uint64_t number = i; number < i + BATCH; number++) {
			socket_fill(&records[count++], number, KW_SOCKET_CONNECTED);
			if (number >= ALIVE)
				socket_fill(&records[count++], number - ALIVE, KW_SOCKET_CLOSED);
		}
		start_ns = now_ns();
		accepted += kw_engine_ingest(engine, (const uint8_t *)records, count * sizeof(records[0]));
		kw_engine_take(engine, &batch);
		spent_ns += now_ns() - start_ns;
		bytes += batch.lines_bytes;
	}
	if (accepted != 2 * CHILDREN - ALIVE)
		return 0;
	printf("sockets: %.0f ns per record (%lld records, %.0f bytes of lines each)\n",
	       (double)spent_ns / (double)accepted, (long long)accepted, (double)bytes / (double)accepted);
	return 1;
}

int main(void)
{
	struct kw_engine *engine = kw_engine_new(32768);
	struct pair *pairs = malloc(CHILDREN * sizeof(*pairs));
	struct kw_counters counters;
	struct kw_batch batch;
	uint64_t start_ns, spent_ns, bytes = 0;
	int64_t accepted = 0;

	if (!engine || !pairs || kw_engine_watch(engine, 0, "myapp", -1))
		return 1;
	root_add(engine);
	for (uint64_t i = 0; i < CHILDREN; i++)
		pair_fill(&pairs[i], i);
	start_ns = now_ns();
	for (uint64_t i = 0; i < CHILDREN; i += BATCH) {
		accepted += kw_engine_ingest(engine, (const uint8_t *)&pairs[i], BATCH * sizeof(*pairs));
		kw_engine_take(engine, &batch);
		bytes += batch.lines_bytes;
	}
	spent_ns = now_ns() - start_ns;
	kw_engine_counters(engine, 0, -1, &counters);
	if (accepted != 2 * CHILDREN || counters.spawned != CHILDREN || counters.alive != ALIVE) {
		fprintf(stderr, "bench_engine: the engine miscounted: accepted %lld, spawned %llu, alive %llu\n",
			(long long)accepted, (unsigned long long)counters.spawned, (unsigned long long)counters.alive);
		return 1;
	}
	printf("engine: %.0f ns per record (%lld records, %.0f bytes of lines each)\n",
	       (double)spent_ns / (double)accepted, (long long)accepted, (double)bytes / (double)accepted);
	if (!connections(engine)) {
		fprintf(stderr, "bench_engine: the engine refused a socket\n");
		return 1;
	}
	free(pairs);
	kw_engine_free(engine);
	return 0;
}
