/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tells the kernel what to judge and enforce, and kills whom it could not. Refuses to know why something is expected.
 *
 * The order of writes lets no hook see half of a change: what is allowed grows before it shrinks, and a mask that makes
 * hooks look at cells is set after the cells and cleared before them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "loader_parts.h"
#include "procstart.h"

#include "expected.h"

enum { REASONS = sizeof(((struct kw_control *)0)->enforced) / sizeof(uint64_t) };

static void mask_set(uint64_t *mask, uint32_t slot, int on)
{
	if (on)
		__sync_fetch_and_or(mask, slot_bit(slot));
	else
		__sync_fetch_and_and(mask, ~slot_bit(slot));
}

void enforce_init(struct kw_control *control)
{
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		control->limits[slot].children = KW_NO_LIMIT;
}

static int slot_check(struct kw_loader *loader, uint32_t slot)
{
	return slot < KW_WATCHES ? 0 : loader_fail(loader, -EINVAL, "slot %u is out of range", slot);
}

int kw_loader_enforce(struct kw_loader *loader, uint32_t slot, const struct kw_rules *rules)
{
	struct kw_control *control = loader->set.control;
	int error = slot_check(loader, slot);

	if (error)
		return error;
	if (rules->mode != KW_MODE_KILL)
		mask_set(&control->killing, slot, 0);
	if (rules->mode == KW_MODE_OFF)
		mask_set(&control->enforcing, slot, 0);
	control->limits[slot].depth = rules->depth;
	control->limits[slot].rate = rules->forks_per_minute;
	for (uint32_t n = 0; n < REASONS; n++)
		mask_set(&control->enforced[n], slot,
			 rules->mode != KW_MODE_OFF && (rules->reasons >> (KW_REASON_CHILDREN + n) & 1));
	if (rules->mode == KW_MODE_KILL)
		mask_set(&control->killing, slot, 1);
	if (rules->mode != KW_MODE_OFF)
		mask_set(&control->enforcing, slot, 1);
	return 0;
}

void kw_loader_locate(struct kw_loader *loader, uint32_t slot, int wanted)
{
	if (slot >= KW_WATCHES)
		return;
	mask_set(&loader->set.control->located, slot, wanted);
}

/* -------- executables -------- */

struct wanted {
	const int *fds;
	int count;
	struct kw_identity *found; /* by place in fds; inode 0: not found */
};

static int identity_keep(void *context, const uint8_t *bytes, uint64_t length)
{
	const struct kw_identity *rows = (const struct kw_identity *)bytes;
	struct wanted *wanted = context;

	for (uint64_t i = 0; i < length / sizeof(*rows); i++)
		for (int n = 0; n < wanted->count; n++)
			if ((uint32_t)wanted->fds[n] == rows[i].fd)
				wanted->found[n] = rows[i];
	return 0;
}

static int file_expect(struct kw_loader *loader, uint32_t slot, const struct kw_identity *identity)
{
	uint32_t index = expected_row(&identity->file);
	struct kw_expected *room = NULL;

	for (int i = 0; i < KW_EXPECTED_PROBES; i++, index = expected_next(index)) {
		struct kw_expected *row = &loader->set.expected[index];

		if (expected_is(row, identity)) {
			mask_set(&row->watches, slot, 1);
			return 0;
		}
		if (!row->watches && !room)
			room = row;
		if (!row->file.inode)
			break;
	}
	if (!room)
		return loader_fail(loader, -E2BIG,
				   "cannot add an expected executable: there are too many in all watches");
	room->file = identity->file;
	room->ctime_ns = identity->ctime_ns;
	room->size = identity->size;
	mask_set(&room->watches, slot, 1); /* from here on hooks heed it */
	return 0;
}

static int is_wanted(const struct wanted *wanted, const struct kw_expected *row)
{
	for (int n = 0; n < wanted->count; n++)
		if (expected_is(row, &wanted->found[n]))
			return 1;
	return 0;
}

/* Take slot's bit from the rows of all other files. */
static void files_drop(struct kw_loader *loader, uint32_t slot, const struct wanted *wanted)
{
	for (uint32_t index = 0; index < KW_EXPECTED_ROWS; index++) {
		struct kw_expected *row = &loader->set.expected[index];

		if (row->watches & slot_bit(slot) && !is_wanted(wanted, row))
			mask_set(&row->watches, slot, 0);
	}
}

static int files_expect(struct kw_loader *loader, uint32_t slot, struct wanted *wanted)
{
	int64_t bytes = iterator_run(loader->set.links[LINK_IDENTIFY], identity_keep, wanted);

	if (bytes < 0)
		return loader_fail(loader, bytes, "cannot identify the expected executables: %s", strerror(-bytes));
	for (int n = 0; n < wanted->count; n++) {
		int error = wanted->found[n].file.inode
				? file_expect(loader, slot, &wanted->found[n])
				: loader_fail(loader, -EBADF, "descriptor %d is not open", wanted->fds[n]);

		if (error)
			return error;
	}
	return 0;
}

int kw_loader_expect_files(struct kw_loader *loader, uint32_t slot, const int *fds, int count)
{
	struct kw_control *control = loader->set.control;
	struct wanted wanted = {.fds = fds, .count = count > 0 ? count : 0};
	int error = slot_check(loader, slot);

	if (error)
		return error;
	wanted.found = calloc(wanted.count + 1, sizeof(*wanted.found));
	if (!wanted.found)
		return loader_fail(loader, -ENOMEM, "no memory for the expected executables");
	if (count < 0)
		mask_set(&control->judged, slot, 0);
	else if (count > 0)
		error = files_expect(loader, slot, &wanted);
	if (!error) {
		files_drop(loader, slot, &wanted);
		if (count >= 0)
			mask_set(&control->judged, slot, 1);
	}
	free(wanted.found);
	return error;
}

/* -------- users -------- */

static int uid_is_wanted(const uint32_t *uids, uint32_t count, uint32_t uid)
{
	for (uint32_t n = 0; n < count; n++)
		if (uids[n] == uid)
			return 1;
	return 0;
}

int kw_loader_expect_uids(struct kw_loader *loader, uint32_t slot, const uint32_t *uids, uint32_t count)
{
	int fd = loader->set.maps[MAP_UIDS];
	struct kw_slot_limits *limits;
	uint32_t key, next;
	void *previous = NULL;
	uint64_t mask;
	int error = slot_check(loader, slot);

	if (error)
		return error;
	limits = &loader->set.control->limits[slot];
	limits->has_uid = 0; /* the table decides meanwhile */
	for (uint32_t n = 0; n < count && !error; n++) {
		if (bpf_map_lookup_elem(fd, &uids[n], &mask))
			mask = 0;
		mask |= slot_bit(slot);
		if (bpf_map_update_elem(fd, &uids[n], &mask, BPF_ANY))
			error = loader_fail(loader, -errno, "cannot add an expected user: %s", strerror(errno));
	}
	while (!error && bpf_map_get_next_key(fd, previous, &next) == 0) {
		key = next;
		previous = &key;
		if (bpf_map_lookup_elem(fd, &key, &mask) || !(mask & slot_bit(slot)) || uid_is_wanted(uids, count, key))
			continue;
		mask &= ~slot_bit(slot);
		if (mask) {
			bpf_map_update_elem(fd, &key, &mask, BPF_ANY);
			continue;
		}
		bpf_map_delete_elem(fd, &key);
		previous = NULL;
	}
	if (!error && count) {
		limits->uid = uids[0];
		__atomic_store_n(&limits->has_uid, 1, __ATOMIC_RELEASE);
	}
	return error;
}

/* -------- all watches -------- */

int kw_loader_enforcement(struct kw_loader *loader, uint32_t max_kills_per_minute, int fail_open)
{
	struct kw_control *control = loader->set.control;
	int64_t bytes = 0;

	control->max_kills = max_kills_per_minute;
	if (fail_open) {
		control->hiring = 1;
		bytes = iterator_run(loader->set.links[LINK_IDENTIFY], NULL, NULL);
		control->hiring = 0;
	} else {
		control->daemon_pid = 0;
	}
	if (bytes < 0)
		return loader_fail(loader, bytes, "cannot name the daemon to the kernel: %s", strerror(-bytes));
	__atomic_store_n(&control->kills, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&control->stopped, 0, __ATOMIC_SEQ_CST);
	return 0;
}

/* -------- what the kernel leaves to us -------- */

/*
 * The descriptor is of whoever has the pid now. The start time that is read afterwards is of who has it then: if it is
 * the recorded one, the process has had the pid ever since the record, and the descriptor is its.
 */
void enforce_delegated(struct kw_loader *loader, const struct kw_enforced *record)
{
	const struct kw_control *control = loader->set.control;
	uint64_t slots = record->slots & control->killing;
	int fd;

	if (record->action != KW_ACTION_DELEGATE || control->stopped)
		return;
	if (record->reason != KW_REASON_UNTRACKED)
		slots &= kw_loader_watches_of(loader, record->process.pid, record->process.start_ns);
	if (!slots)
		return; /* no watch of it enforces any more */
	fd = syscall(SYS_pidfd_open, record->process.pid, 0);
	if (fd < 0)
		return;
	if (start_ticks(record->process.pid) == record->process.start_ns / KW_TICK_NS)
		syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
	close(fd);
}
