/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile bytes at the engine's door (libFuzzer). Whatever comes in: no sanitizer complains, lines are newline-ended
 * valid UTF-8 that is safe on a terminal, and the counters agree with each other and with the tree.
 *
 * Raw bytes seldom look like records, so an input is read twice: as it stands, then as a script that makes sound
 * records for a handful of processes and spoils them where the input says so.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "event.h"

#include "engine.h"

enum { PROCESSES = 6, SLOTS = 3, PIDS = 12, TREE_BYTES = 1 << 20, TAIL = 64, REMOTES = 64 };

static void require(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "broken: %s\n", what);
	abort();
}

/* Strict UTF-8 without any control character; returns the bytes used, 0: not so. */
static uint64_t character(const uint8_t *at, uint64_t left)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	uint32_t length = at[0] < 0x80 ? 1 : at[0] >> 5 == 6 ? 2 : at[0] >> 4 == 14 ? 3 : at[0] >> 3 == 30 ? 4 : 0;
	uint32_t code = length < 2 ? at[0] : at[0] & (0x7f >> length);

	if (!length || length > left)
		return 0;
	for (uint32_t i = 1; i < length; i++) {
		if (at[i] >> 6 != 2)
			return 0;
		code = code << 6 | (at[i] & 0x3f);
	}
	if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	if (code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029)
		return 0;
	return length;
}

static uint64_t check_lines(const char *lines, uint64_t bytes)
{
	const uint8_t *at = (const uint8_t *)lines;
	uint64_t count = 0, used;

	for (uint64_t i = 0; i < bytes; i += used) {
		bool first = i == 0 || at[i - 1] == '\n';

		require(!first || at[i] == '{', "a line begins with {");
		if (at[i] == '\n') {
			require(i > 0 && at[i - 1] == '}', "a line ends with }");
			count++;
			used = 1;
			continue;
		}
		used = character(at + i, bytes - i);
		require(used, "lines are harmless UTF-8");
	}
	require(bytes == 0 || at[bytes - 1] == '\n', "the last line is ended");
	return count;
}

static void check_counters(struct kw_engine *engine, bool forgets)
{
	struct kw_counters cells;

	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		require(!kw_engine_counters(engine, slot, (int)slot, &cells), "a defined slot has counters");
		require(cells.alive <= cells.spawned + cells.adopted, "nobody is alive who never came");
		require(cells.peak <= cells.spawned + cells.adopted, "no peak of who never came");
		require(cells.roots <= cells.root_starts, "no root is alive that never started");
		if (!forgets) { /* nor a sync under way, of which the peak waits for the end */
			require(cells.alive <= cells.peak, "the peak is at least what is");
			require(cells.alive == cells.spawned + cells.adopted - cells.exits, "alive = came - ended");
			require(cells.roots == cells.root_starts - cells.root_exits, "roots = started - ended");
		}
	}
}

static void check_network(struct kw_engine *engine)
{
	struct kw_remote remotes[REMOTES];
	uint32_t ports[REMOTES];
	uint64_t missed;
	int64_t all, newer;

	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		all = kw_engine_remotes(engine, slot, 0, remotes, REMOTES, &missed);
		newer = kw_engine_remotes(engine, slot, kw_engine_mark(engine), remotes, REMOTES, &missed);
		require(all >= newer && newer >= 0, "who is connected now belongs to every window");
		all = kw_engine_listening(engine, slot, 0, ports, REMOTES, &missed);
		for (int64_t i = 1; i < all && i < REMOTES; i++)
			require(ports[i - 1] < ports[i], "ports ascend, each once");
		newer = kw_engine_listening(engine, slot, kw_engine_mark(engine), ports, REMOTES, &missed);
		require(all >= newer && newer >= 0, "what listens now belongs to every window");
	}
}

static void check(struct kw_engine *engine, bool forgets)
{
	static char tree[TREE_BYTES];
	uint64_t losses[KW_STAGES], missed;
	struct kw_batch batch;
	int64_t bytes;

	check_counters(engine, forgets);
	bytes = kw_engine_tree(engine, tree, sizeof(tree));
	require(bytes >= 0, "the tree is told");
	if (bytes <= TREE_BYTES)
		require(check_lines(tree, (uint64_t)bytes) <= PROCESSES, "no more live than the table holds");
	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		bytes = kw_engine_exes(engine, slot, 0, tree, sizeof(tree), &missed);
		require(bytes >= 0 && (!bytes || bytes > TREE_BYTES || !tree[bytes - 1]), "paths are ended by zero");
	}
	check_network(engine);
	kw_engine_take(engine, &batch);
	require(check_lines(batch.lines, batch.lines_bytes) == batch.lines_count, "lines are counted");
	require(batch.alarms + batch.clears <= batch.lines_count, "alarms are lines");
	kw_engine_losses(engine, losses);
}

/* The script: bytes of the input, zeros when it is over. */
struct script {
	const uint8_t *at;
	size_t left;
};

static uint8_t next(struct script *script)
{
	if (!script->left)
		return 0;
	script->left--;
	return *script->at++;
}

static struct kw_id some_id(struct script *script)
{
	uint8_t byte = next(script);

	return (struct kw_id){.pid = byte % PIDS, .start_ns = 1000 + (byte >> 6)};
}

union record {
	struct kw_header header;
	struct kw_fork fork;
	struct kw_image image;
	struct kw_exit exit;
	struct kw_forget forget;
	struct kw_sync sync;
	struct kw_lost lost;
	struct kw_clock clock;
	struct kw_socket socket;
	struct kw_dns dns;
	struct kw_enforced enforced;
	uint8_t bytes[sizeof(struct kw_image) + TAIL];
};

static void image_make(struct kw_image *image, struct script *script)
{
	uint32_t half = TAIL / 2, tail = sizeof(*image);

	image->header.size += TAIL;
	image->fresh =
	    image->header.kind == KW_EXEC ? image->header.roots & next(script) : image->header.watches & next(script);
	image->process = some_id(script);
	image->parent = some_id(script);
	image->root = some_id(script);
	image->depth = next(script);
	image->cause = 1 + next(script) % 3;
	image->uid = next(script) % 4;
	image->inode = next(script) % 4;
	image->unexpected = (uint32_t)image->header.watches & next(script);
	image->exe = (struct kw_text){tail, 1 + next(script) % half};
	image->argv = (struct kw_text){tail + half, next(script) % half};
	image->cwd = (struct kw_text){tail, next(script) % half};
	for (uint32_t i = 0; i < TAIL; i++)
		((uint8_t *)(image + 1))[i] = next(script);
}

static void socket_make(struct kw_socket *socket, struct script *script)
{
	socket->process = some_id(script);
	socket->cookie = 1 + next(script) % 8;
	socket->event = 1 + next(script) % KW_SOCKET_LIVE;
	socket->family = socket->event == KW_SOCKET_FAMILY ? next(script) : next(script) % 2 ? 2 : 10;
	socket->protocol = socket->event == KW_SOCKET_PEER || next(script) % 2 ? 17 : 6;
	socket->type = next(script) % 8;
	socket->result = socket->event == KW_SOCKET_CONNECTED ? next(script) % 128
			 : socket->event == KW_SOCKET_LIVE    ? next(script) % 4
							      : 0;
	socket->state = next(script) % 13;
	socket->local_port = 1 + next(script) % 4;
	socket->remote_port = next(script) % 4;
	socket->local[0] = next(script);
	socket->remote[0] = next(script) % 4;
	socket->remote[15] = next(script);
	socket->bytes_in = next(script);
}

/* A response to one question, its length bytes and pointers as the input says. */
static void dns_make(struct kw_dns *dns, struct script *script)
{
	static const uint8_t start[] = {0, 1, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0};
	uint8_t *tail = (uint8_t *)(dns + 1);

	dns->header.size += TAIL;
	dns->process = some_id(script);
	dns->cookie = 1;
	dns->family = next(script) % 2 ? 2 : 10;
	dns->incoming = next(script) % 2;
	dns->message = (struct kw_text){sizeof(*dns), next(script) % (TAIL + 1)};
	dns->total = dns->message.length + next(script) % 2;
	for (uint32_t i = 0; i < TAIL; i++)
		tail[i] = i < sizeof(start) && next(script) % 16 ? start[i] : next(script);
}

static void enforced_make(struct kw_enforced *enforced, struct script *script)
{
	enforced->process = some_id(script);
	enforced->header.watches |= 1;
	enforced->slots = (enforced->header.watches & next(script)) | 1;
	enforced->reason = 1 + next(script) % KW_REASON_UNTRACKED;
	enforced->action = 1 + next(script) % KW_ACTION_DELEGATE;
}

static bool record_make(union record *record, struct script *script)
{
	static const uint32_t sizes[] = {
	    [KW_FORK] = sizeof(struct kw_fork),		[KW_EXEC] = sizeof(struct kw_image),
	    [KW_EXIT] = sizeof(struct kw_exit),		[KW_ADOPT] = sizeof(struct kw_image),
	    [KW_FORGET] = sizeof(struct kw_forget),	[KW_SYNC] = sizeof(struct kw_sync),
	    [KW_LOST] = sizeof(struct kw_lost),		[KW_CLOCK] = sizeof(struct kw_clock),
	    [KW_SOCKET] = sizeof(struct kw_socket),	[KW_DNS] = sizeof(struct kw_dns),
	    [KW_ENFORCED] = sizeof(struct kw_enforced),
	};
	uint16_t kind = 1 + next(script) % KW_ENFORCED;

	memset(record, 0, sizeof(*record));
	record->header = (struct kw_header){.size = sizes[kind],
					    .kind = kind,
					    .flags = (uint16_t)(next(script) | next(script) << 8),
					    .time_ns = 2000 + next(script),
					    .watches = next(script) % 16};
	record->header.roots = kind == KW_FORK ? 0 : record->header.watches & next(script);
	if (kind == KW_FORK) {
		record->fork.process = some_id(script);
		record->fork.parent = some_id(script);
		record->fork.root = some_id(script);
		record->fork.depth = next(script);
		record->fork.comm[0] = next(script);
	} else if (kind == KW_EXEC || kind == KW_ADOPT) {
		image_make(&record->image, script);
	} else if (kind == KW_EXIT) {
		record->exit.process = some_id(script);
		record->exit.root = some_id(script);
		record->exit.status = next(script);
	} else if (kind == KW_FORGET) {
		record->forget.process = some_id(script);
		record->forget.gone = next(script);
	} else if (kind == KW_SYNC) {
		record->sync.process = some_id(script);
		record->sync.parent = some_id(script);
		record->sync.root = some_id(script);
		record->sync.depth = next(script);
		record->sync.phase = next(script) % 5;
	} else if (kind == KW_LOST) {
		record->lost.stage = next(script) % KW_STAGES;
		record->lost.count = next(script);
	} else if (kind == KW_SOCKET) {
		socket_make(&record->socket, script);
	} else if (kind == KW_DNS) {
		dns_make(&record->dns, script);
	} else if (kind == KW_ENFORCED) {
		enforced_make(&record->enforced, script);
	} else {
		for (int i = 0; i < 8; i++)
			record->clock.wall_ns = (int64_t)((uint64_t)record->clock.wall_ns << 8 | next(script));
	}
	if (next(script) == 0x55)
		record->bytes[next(script) % sizeof(*record)] = next(script);
	return kind == KW_FORGET || kind == KW_SYNC; /* a row of a sync may forget, too */
}

/* Rules on lineage of two slots: all of them, and those that bit by bit are asked for. */
static void expect_lineage(struct kw_engine *engine, uint8_t asked)
{
	static const struct kw_file files[] = {{.inode = 1}, {.inode = 2}};
	static const uint32_t uids[] = {0, 1};
	struct kw_expected_lineage all = {.executables = "a\0/b",
					  .edges = "a -> /b",
					  .root = "a",
					  .files = files,
					  .uids = uids,
					  .executables_count = 2,
					  .edges_count = 1,
					  .files_count = 2,
					  .uids_count = 2,
					  .depth = 2,
					  .forks_per_minute = 3,
					  .forbidden = KW_MEMFD | KW_DELETED | KW_TEMPORARY};
	struct kw_expected_lineage some = all;

	require(!kw_engine_expect_lineage(engine, 0, &all), "rules");
	some.executables_count = asked & 1 ? 1 : -1;
	some.edges_count = asked & 2 ? 0 : -1;
	some.uids_count = asked & 4 ? 1 : -1;
	some.files_count = asked & 8 ? 1 : -1;
	some.depth = asked & 16 ? 0 : -1;
	some.forks_per_minute = asked & 32 ? 0 : -1;
	some.forbidden = asked & 64 ? KW_MEMFD : 0;
	some.root = asked & 128 ? "/b" : NULL;
	require(!kw_engine_expect_lineage(engine, 2, &some), "rules");
	require(!kw_engine_breaker(engine, asked), "a breaker");
}

/* 0 to 3: more or fewer networks and ports, or none in particular. */
static void expect(struct kw_engine *engine, int32_t count)
{
	static const uint8_t rows[2 * 19] = {[0] = 1,	       [16] = 8,       [19 + 10] = 0xff,
					     [19 + 11] = 0xff, [19 + 16] = 97, [19 + 18] = 53};
	static const uint16_t ports[2] = {1, 2};
	static const char names[] = "a\0*.b\0";

	require(!kw_engine_expect_destinations(engine, 0, rows, count == 3 ? -1 : count, names,
					       count == 2 ? sizeof(names) - 1 : 0),
		"destinations");
	require(!kw_engine_expect_ports(engine, 0, ports, count == 3 ? -1 : count), "ports");
}

static struct kw_engine *engine_make(void)
{
	static const char *const names[SLOTS] = {"one", "two", "three"};
	struct kw_engine *engine = kw_engine_new(PROCESSES);

	require(engine, "an engine");
	for (uint32_t slot = 0; slot < SLOTS; slot++)
		require(!kw_engine_watch(engine, slot, names[slot], (int64_t)slot - 1), "a watch");
	expect(engine, 0);
	expect_lineage(engine, 0xff);
	return engine;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kw_engine *engine = engine_make();
	struct script script = {data, size};
	union record record;
	bool forgets = false;

	kw_engine_record(engine, 1);
	require(kw_engine_ingest(engine, data, size) >= 0, "ingest counts");
	check(engine, true);
	kw_engine_free(engine);

	engine = engine_make();
	while (script.left) {
		forgets |= record_make(&record, &script);
		kw_engine_ingest(engine, record.bytes,
				 record.header.size < sizeof(record) ? record.header.size : sizeof(record));
		check_counters(engine, forgets);
		if (next(&script) == 0x66)
			expect(engine, next(&script) % 4);
		if (next(&script) == 0x44)
			expect_lineage(engine, next(&script));
		if (next(&script) == 0x77) {
			require(!kw_engine_unwatch(engine, 1), "unwatch");
			require(!kw_engine_watch(engine, 1, "again", 1), "watch");
		}
	}
	check(engine, forgets);
	kw_engine_free(engine);
	return 0;
}
