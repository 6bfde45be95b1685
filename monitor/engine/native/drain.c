/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the ring to the door: waits, drains, adds what only user space knows (losses, the clock, arguments of adopted
 * processes), and puts the engine right after a loss.
 *
 * Records are handed out at least once. What is read keeps its room in the ring until kw_loader_commit(): a daemon that
 * is killed in between leaves it to the next one. A batch is at most a quarter of the ring, so that hooks have room
 * while the caller puts a batch where it is safe. Where nothing is pinned there is no next one, and the room is given
 * back at once.
 *
 * How it waits. After a drain it naps, first for 1 ms; while records keep coming and the ring stays nearly empty the
 * naps grow to 16 ms, so that a storm costs few wake-ups. A nap that brings nothing is followed by sleep without end.
 * The hooks wake a sleeper for the next record, a napper only for what is urgent or when the ring fills (see
 * ebpf/emit.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "loader_parts.h"

enum { NAP_FIRST_MS = 1, NAP_LONGEST_MS = 16, SYNC_SPACING_NS = 250000000, CLOCK_STEP_NS = 1000000 };
/* A full ring has no room for a knock: with room held back, losses are looked at this often. */
enum { HOLDING_MS = 250 };

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* -------- staging -------- */

void staging_flush(struct kw_loader *loader)
{
	if (loader->staged)
		kw_engine_ingest(loader->engine, loader->staging, loader->staged);
	loader->staged = 0;
}

void stage(struct kw_loader *loader, const void *record, uint64_t size)
{
	if (loader->staged + size > STAGING_BYTES)
		staging_flush(loader);
	if (size > STAGING_BYTES)
		return;
	memcpy(loader->staging + loader->staged, record, size);
	loader->staged += size;
	loader->batch_bytes += size;
	loader->batch_records++;
}

static void header_init(struct kw_header *header, uint32_t size, uint16_t kind)
{
	*header = (struct kw_header){.size = size, .kind = kind, .time_ns = clock_ns(CLOCK_BOOTTIME)};
}

/* The wall clock moves against the boot clock when somebody sets it: tell the engine, which has no clock. */
static void stage_clock(struct kw_loader *loader)
{
	int64_t wall_ns = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_BOOTTIME);
	int64_t moved = wall_ns - loader->wall_ns;
	struct kw_clock record = {.wall_ns = wall_ns};

	if (loader->wall_ns && moved < CLOCK_STEP_NS && moved > -CLOCK_STEP_NS)
		return;
	loader->wall_ns = wall_ns;
	header_init(&record.header, sizeof(record), KW_CLOCK);
	stage(loader, &record, sizeof(record));
}

static void stage_losses(struct kw_loader *loader)
{
	const struct kw_control *control = loader->set.control;

	for (uint32_t i = 0; i < KW_STAGES; i++) {
		uint64_t lost = control->lost[i];
		struct kw_lost record = {.count = lost - loader->told[i], .stage = i};

		if (lost == loader->told[i])
			continue;
		loader->told[i] = lost;
		header_init(&record.header, sizeof(record), KW_LOST);
		stage(loader, &record, sizeof(record));
		loader->sync_due |= i == KW_RING_FULL || i == KW_HOOK_MISSED;
	}
}

enum { LINK_BYTES = KW_PATH_BYTES };

struct adopted {
	struct kw_image image;
	char bytes[2 * LINK_BYTES + KW_ARGV_BYTES];
};

/* A link in /proc/PID as a text of the record, appended at *used. */
static struct kw_text link_keep(struct adopted *full, uint32_t *used, const char *name)
{
	struct kw_text text = {0};
	char path[64];
	ssize_t bytes;

	snprintf(path, sizeof(path), "/proc/%u/%s", full->image.process.pid, name);
	bytes = readlink(path, full->bytes + *used, LINK_BYTES);
	if (bytes <= 0)
		return text;
	text.offset = offsetof(struct adopted, bytes) + *used;
	text.length = bytes;
	*used += bytes;
	return text;
}

static void exe_keep(struct adopted *full, uint32_t *used)
{
	static const char deleted[] = " (deleted)", memfd[] = "/memfd:";
	const uint32_t suffix = sizeof(deleted) - 1;
	struct kw_text *exe = &full->image.exe;
	const char *text;

	*exe = link_keep(full, used, "exe");
	if (!exe->length)
		return;
	full->image.header.flags |= KW_HAS_EXE;
	text = (const char *)full + exe->offset;
	if (exe->length > suffix && memcmp(text + exe->length - suffix, deleted, suffix) == 0) {
		exe->length -= suffix;
		full->image.header.flags |= KW_DELETED;
	}
	if (exe->length >= sizeof(memfd) - 1 && memcmp(text, memfd, sizeof(memfd) - 1) == 0)
		full->image.header.flags |= KW_MEMFD;
}

static void argv_keep(struct adopted *full, uint32_t *used)
{
	char path[64], more;
	ssize_t bytes;
	int fd;

	snprintf(path, sizeof(path), "/proc/%u/cmdline", full->image.process.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	bytes = read(fd, full->bytes + *used, KW_ARGV_BYTES);
	if (bytes > 0) {
		full->image.argv = (struct kw_text){offsetof(struct adopted, bytes) + *used, bytes};
		full->image.argv_bytes = bytes;
		full->image.header.flags |= KW_HAS_ARGV;
		*used += bytes;
		if (bytes == KW_ARGV_BYTES && read(fd, &more, 1) == 1) {
			full->image.header.flags |= KW_TRUNCATED;
			full->image.argv_bytes++;
		}
	}
	close(fd);
}

/*
 * An adopted process runs elsewhere, so the kernel side read neither its paths nor its arguments: /proc can. The
 * process may have ended or changed since; then the record goes on without them.
 */
static void stage_adopted(struct kw_loader *loader, const struct kw_image *image)
{
	const struct kw_id *id = &image->process;
	struct adopted *full = kw_loader_watches_of(loader, id->pid, id->start_ns) ? calloc(1, sizeof(*full)) : NULL;
	uint32_t used = 0;

	if (!full)
		return stage(loader, image, image->header.size);
	full->image = *image;
	exe_keep(full, &used);
	full->image.cwd = link_keep(full, &used, "cwd");
	argv_keep(full, &used);
	full->image.header.size = (offsetof(struct adopted, bytes) + used + 7) & ~7u;
	stage(loader, full, full->image.header.size);
	free(full);
}

/* A listener whose port the kernel had not chosen yet: it is told once more, with the port. */
static int is_portless(const struct kw_header *header, uint32_t size)
{
	const struct kw_socket *record = (const struct kw_socket *)header;

	return size >= sizeof(*record) && header->kind == KW_SOCKET && record->event == KW_SOCKET_LISTENING &&
	       !record->local_port;
}

/* Hand one record on. 1: that is enough for now. */
static int on_record(struct kw_loader *loader, const struct kw_header *header, uint32_t size)
{
	unsigned long enough = loader->ring.bytes / 4 < BATCH_BYTES ? loader->ring.bytes / 4 : BATCH_BYTES;

	if (loader->overlap && swap_is_told(loader, header))
		return 0;
	if (header->flags & KW_UNDECIDED && size <= STAGING_BYTES) {
		memcpy(loader->undecided, header, size);
		loader->undecided_bytes = size;
		loader->undecided_again = (int64_t)(loader->ring.position - *drain_judged(loader)) <= 0;
		return 1;
	}
	if (size >= sizeof(struct kw_image) && header->kind == KW_EXEC && ((const struct kw_image *)header)->fresh)
		net_note_root(loader, ((const struct kw_image *)header)->process.pid);
	if (is_portless(header, size)) {
		net_note_portless(loader);
		return 0;
	}
	if (size >= sizeof(struct kw_enforced) && header->kind == KW_ENFORCED)
		enforce_delegated(loader, (const struct kw_enforced *)header);
	if (size >= sizeof(struct kw_image) && header->kind == KW_ADOPT)
		stage_adopted(loader, (const struct kw_image *)header);
	else
		stage(loader, header, size);
	return loader->batch_bytes >= enough;
}

/* -------- draining -------- */

uint64_t *drain_judged(struct kw_loader *loader)
{
	return &loader->set.counters[KW_SLOTS - 1].reserved[0]; /* no watch has that slot, and no hook that cell */
}

int drain_ring(struct kw_loader *loader)
{
	const struct kw_header *header;
	uint32_t size;

	while ((header = ring_next(&loader->ring, &size)))
		if (size >= sizeof(*header) && on_record(loader, header, size))
			return 1;
	return 0;
}

void kw_loader_commit(struct kw_loader *loader)
{
	ring_release(&loader->ring);
	memcpy(loader->set.control->told, loader->told, sizeof(loader->told));
	loader->uncommitted = 0;
}

/* What was passed over holds no room; without pins there is nobody to hold it for. */
static void commit_what_nobody_needs(struct kw_loader *loader)
{
	if (!loader->uncommitted || !loader->pins[0])
		kw_loader_commit(loader);
}

static int64_t drain_once(struct kw_loader *loader, struct kw_engine *engine)
{
	loader->engine = engine;
	loader->batch_bytes = 0;
	loader->batch_records = 0;
	stage_clock(loader);
	drain_ring(loader);
	stage_losses(loader);
	staging_flush(loader);
	if (loader->batch_records || loader->undecided_bytes)
		loader->uncommitted = 1;
	commit_what_nobody_needs(loader);
	net_tend(loader);
	return loader->batch_records;
}

void drain_tell_clock(struct kw_loader *loader, struct kw_engine *engine)
{
	loader->engine = engine;
	stage_clock(loader);
	staging_flush(loader);
}

static int sync_rows(void *context, const uint8_t *bytes, uint64_t length)
{
	struct kw_loader *loader = context;

	kw_engine_ingest(loader->engine, bytes, length);
	return 0;
}

static void sync_edge(struct kw_engine *engine, uint32_t phase)
{
	struct kw_sync edge = {.phase = phase};

	header_init(&edge.header, sizeof(edge), KW_SYNC);
	kw_engine_ingest(engine, (const uint8_t *)&edge, sizeof(edge));
}

/* told: an earlier daemon's lines about the sockets are there; otherwise some may be missing. */
static int sync_sockets(struct kw_loader *loader, struct kw_engine *engine, int told)
{
	int result;

	sync_edge(engine, 3);
	result = net_retell(loader, engine, told);
	if (result > 0)
		sync_edge(engine, 4);
	return result < 0 ? result : 0;
}

int kw_loader_sync(struct kw_loader *loader, struct kw_engine *engine)
{
	int lost = loader->sync_due;
	int64_t bytes;

	loader->engine = engine;
	loader->sync_due = 0;
	loader->last_sync_ns = clock_ns(CLOCK_BOOTTIME);
	loader->syncs++;
	sync_edge(engine, 0);
	bytes = iterator_run(loader->set.links[LINK_DUMP], sync_rows, loader);
	sync_edge(engine, 2);
	if (bytes < 0)
		return loader_fail(loader, bytes, "cannot read the lineage map: %s", strerror(-bytes));
	return lost || net_is_taken_over(loader) ? sync_sockets(loader, engine, !lost) : 0;
}

int64_t kw_loader_drain(struct kw_loader *loader, struct kw_engine *engine)
{
	int64_t total = 0, records;

	loader->undecided_bytes = 0;
	if (loader->overlap) {
		int stopped;

		drain_tell_clock(loader, engine);
		loader->uncommitted = 1;
		stopped = swap_finish(loader);
		if (stopped)
			return stopped;
	}
	do {
		records = drain_once(loader, engine);
		total += records;
		if (loader->undecided_bytes)
			return total + 1;
	} while (records);
	if (loader->sync_due)
		kw_loader_sync(loader, engine);
	return total;
}

static int losses_untold(const struct kw_loader *loader)
{
	const struct kw_control *control = loader->set.control;

	for (uint32_t i = 0; i < KW_STAGES; i++)
		if (__atomic_load_n(&control->lost[i], __ATOMIC_ACQUIRE) != loader->told[i])
			return 1;
	return 0;
}

/* Events of directories: what they say does not matter, the paths are looked at anew. */
static void look_at_inotify(struct kw_loader *loader)
{
	char events[4096] __attribute__((aligned(8)));

	while (read(loader->inotify_fd, events, sizeof(events)) > 0)
		loader->paths_changed = 1;
}

/* Wait for a wake-up, or for the nap to end. */
static void wait_for_hooks(struct kw_loader *loader, uint32_t state, int timeout_ms)
{
	struct kw_control *control = loader->set.control;
	struct epoll_event event;

	__atomic_store_n(&control->reader, state, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if ((state == KW_READER_NAPPING || (!ring_unread(&loader->ring) && !losses_untold(loader))) &&
	    !__atomic_load_n(&loader->stopped, __ATOMIC_ACQUIRE)) {
		if (epoll_wait(loader->poll_fd, &event, 1, timeout_ms) == 1 && event.data.fd == loader->inotify_fd)
			look_at_inotify(loader);
		loader->polls++;
	}
	__atomic_store_n(&control->reader, KW_READER_AWAKE, __ATOMIC_SEQ_CST);
}

/* Before a long sleep: what the kernel skipped woke nobody. 0: it was looked for a moment ago. */
static int skips_look_now_and_then(struct kw_loader *loader)
{
	uint64_t now_ns = clock_ns(CLOCK_BOOTTIME);

	if (now_ns - loader->last_look_ns < SYNC_SPACING_NS)
		return 0;
	loader->last_look_ns = now_ns;
	skips_look(loader);
	return 1;
}

int64_t kw_loader_poll(struct kw_loader *loader, struct kw_engine *engine)
{
	int napped = 0;

	while (!__atomic_load_n(&loader->stopped, __ATOMIC_ACQUIRE)) {
		unsigned long unread = ring_unread(&loader->ring);
		int64_t records;

		if (__atomic_exchange_n(&loader->interrupted, 0, __ATOMIC_ACQ_REL) || loader->paths_changed)
			return 0;
		if (napped && unread > loader->ring.bytes / 4)
			loader->nap_ms = loader->nap_ms > 1 ? loader->nap_ms / 2 : 1;
		else if (napped && unread > 0 && unread < loader->ring.bytes / 16 && loader->nap_ms < NAP_LONGEST_MS)
			loader->nap_ms *= 2;
		loader->undecided_bytes = 0;
		records = drain_once(loader, engine);
		if (loader->undecided_bytes)
			return records + 1;
		if (loader->sync_due &&
		    (!records || clock_ns(CLOCK_BOOTTIME) - loader->last_sync_ns > SYNC_SPACING_NS) &&
		    !ring_unread(&loader->ring)) {
			kw_loader_sync(loader, engine);
			return records + 1; /* an alarm may have come of it */
		}
		if (records)
			return records;
		if (napped) {
			int looked = skips_look_now_and_then(loader);

			loader->nap_ms = NAP_FIRST_MS;
			wait_for_hooks(loader, KW_READER_SLEEPING, loader->uncommitted || !looked ? HOLDING_MS : -1);
			napped = 0;
		} else {
			wait_for_hooks(loader, KW_READER_NAPPING, loader->nap_ms);
			napped = 1;
		}
	}
	return 0;
}

/* End a wait. The eventfd is edge-triggered too: each write wakes once, nobody has to read it. */
static void knock(struct kw_loader *loader)
{
	uint64_t one = 1;

	if (loader->stop_fd >= 0 && write(loader->stop_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: 2^64 knocks */
}

static int watch_fd(struct kw_loader *loader, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	return epoll_ctl(loader->poll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

int kw_loader_watch_directory(struct kw_loader *loader, const char *directory)
{
	static const uint32_t changes = IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ATTRIB |
					IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;

	if (loader->inotify_fd < 0) {
		loader->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
		if (loader->inotify_fd < 0 || watch_fd(loader, loader->inotify_fd, EPOLLIN | EPOLLET))
			return loader_fail(loader, -errno, "cannot watch directories: %s", strerror(errno));
	}
	if (inotify_add_watch(loader->inotify_fd, directory, changes) < 0 && errno != ENOENT && errno != ENOTDIR)
		return loader_fail(loader, -errno, "cannot watch %s: %s", directory, strerror(errno));
	return 0;
}

int kw_loader_paths_changed(struct kw_loader *loader)
{
	int changed = loader->paths_changed;

	loader->paths_changed = 0;
	return changed;
}

const struct kw_header *kw_loader_undecided(struct kw_loader *loader)
{
	return loader->undecided_bytes ? (const struct kw_header *)loader->undecided : NULL;
}

void kw_loader_stop(struct kw_loader *loader)
{
	__atomic_store_n(&loader->stopped, 1, __ATOMIC_RELEASE);
	knock(loader);
}

void kw_loader_interrupt(struct kw_loader *loader)
{
	__atomic_store_n(&loader->interrupted, 1, __ATOMIC_RELEASE);
	knock(loader);
}

/* -------- opening -------- */

int drain_open(struct kw_loader *loader)
{
	int ring_fd = loader->set.maps[MAP_EVENTS];
	int error = ring_open(&loader->ring, ring_fd);

	if (error)
		return loader_fail(loader, error, "cannot map the ring: %s", strerror(-error));
	loader->staging = malloc(STAGING_BYTES);
	loader->undecided = malloc(STAGING_BYTES);
	if (!loader->staging || !loader->undecided)
		return loader_fail(loader, -ENOMEM, "no memory for records");
	memcpy(loader->told, loader->set.control->told, sizeof(loader->told));
	loader->nap_ms = NAP_FIRST_MS;
	loader->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	loader->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	/* Edge-triggered: data that is there does not end a nap, only a wake-up does. */
	if (loader->poll_fd < 0 || loader->stop_fd < 0 || watch_fd(loader, ring_fd, EPOLLIN | EPOLLET) ||
	    watch_fd(loader, loader->stop_fd, EPOLLIN | EPOLLET))
		return loader_fail(loader, -errno, "cannot wait for the ring: %s", strerror(errno));
	return 0;
}

void drain_close(struct kw_loader *loader)
{
	ring_close(&loader->ring);
	if (loader->poll_fd >= 0)
		close(loader->poll_fd);
	if (loader->stop_fd >= 0)
		close(loader->stop_fd);
	if (loader->inotify_fd >= 0)
		close(loader->inotify_fd);
	free(loader->staging);
	free(loader->undecided);
}
