/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one record costs in the engine, from bytes to line: 200,000 children of one root start and end, no exec between,
 * in batches of 1,000 records, one watch. Synthesises its records, reads nothing, prints one line.
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
	free(pairs);
	kw_engine_free(engine);
	return 0;
}
