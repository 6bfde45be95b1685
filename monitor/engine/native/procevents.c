/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the kernel's process connector over a netlink socket that somebody opened, and drops what cannot concern kin.
 * Knows the layout of the messages and how the kernel numbers them, not who is kin: monitor/capture/netlink.py does.
 */
#include <errno.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "procevents.h"
#include "procstart.h"

enum {
	BATCH = 256,
	MESSAGE_BYTES = 252, /* a message has 76 */
	LEAD = 4,	     /* before a message: then its event, 36 bytes on, is aligned as it says it is */
	PIDS = 1 << 22,	     /* PID_MAX_LIMIT of a 64-bit kernel */
	CPUS = 8192,	     /* the most that a kernel can be built for (NR_CPUS) */
};

struct kw_proc_reader {
	bool filtering;
	int failed; /* an errno that the next call returns: this one had events */
	uint8_t set[PIDS / 8];
	bool numbered[CPUS]; /* next[] is known */
	uint32_t next[CPUS]; /* the number that the next message from this processor has to have */
	struct mmsghdr headers[BATCH];
	struct iovec pieces[BATCH];
	struct sockaddr_nl senders[BATCH];
	_Alignas(8) uint8_t messages[BATCH][LEAD + MESSAGE_BYTES];
};

struct kw_proc_reader *kw_proc_new(void)
{
	return calloc(1, sizeof(struct kw_proc_reader));
}

void kw_proc_free(struct kw_proc_reader *reader)
{
	free(reader);
}

void kw_proc_filter(struct kw_proc_reader *reader, int on)
{
	reader->filtering = on != 0;
}

void kw_proc_follow(struct kw_proc_reader *reader, uint32_t pid, int on)
{
	uint8_t bit = (uint8_t)(1 << pid % 8);

	if (pid >= PIDS)
		return;
	if (on)
		reader->set[pid / 8] |= bit;
	else
		reader->set[pid / 8] &= (uint8_t)~bit;
}

static bool concerns(const struct kw_proc_reader *reader, uint32_t pid)
{
	return !reader->filtering || pid >= PIDS || (reader->set[pid / 8] >> pid % 8 & 1);
}

/*
 * The kernel numbers the messages of each processor, and counts on when one could not be delivered (cn_proc.c,
 * send_msg); so a gap is a loss, and its width the count.
 */
static uint64_t missing(struct kw_proc_reader *reader, uint32_t cpu, uint32_t number)
{
	uint32_t gap = 0;

	if (cpu >= CPUS)
		return 0;
	if (reader->numbered[cpu])
		gap = number - reader->next[cpu];
	reader->numbered[cpu] = true;
	if (gap > INT32_MAX)
		return 0; /* an older message overtaken by a younger one: counted when that came */
	reader->next[cpu] = number + 1;
	return gap;
}

static bool forked(struct kw_proc_reader *reader, const struct proc_event *told, struct kw_proc_event *event)
{
	uint32_t child = (uint32_t)told->event_data.fork.child_tgid;
	uint32_t parent = (uint32_t)told->event_data.fork.parent_tgid;

	event->pid = child;
	event->tid = (uint32_t)told->event_data.fork.child_pid;
	event->other = parent;
	if (event->tid != child) {
		event->kind = KW_PROC_THREAD;
		return concerns(reader, child);
	}
	event->kind = KW_PROC_FORK;
	if (!concerns(reader, parent)) {
		kw_proc_follow(reader, child, 0);
		return false;
	}
	kw_proc_follow(reader, child, 1);
	event->start_ticks = start_ticks(child);
	return true;
}

/* True: the event is to be handed on. */
static bool understand(struct kw_proc_reader *reader, const struct proc_event *told, struct kw_proc_event *event)
{
	memset(event, 0, sizeof(*event));
	event->time_ns = told->timestamp_ns;
	switch ((uint32_t)told->what) {
	case PROC_EVENT_FORK:
		return forked(reader, told, event);
	case PROC_EVENT_EXEC:
		event->kind = KW_PROC_EXEC;
		event->pid = event->tid = (uint32_t)told->event_data.exec.process_tgid;
		kw_proc_follow(reader, event->pid, 1);
		return true;
	case PROC_EVENT_EXIT:
		event->kind = KW_PROC_EXIT;
		event->pid = (uint32_t)told->event_data.exit.process_tgid;
		event->tid = (uint32_t)told->event_data.exit.process_pid;
		event->value = told->event_data.exit.exit_code;
		return concerns(reader, event->pid);
	case PROC_EVENT_UID:
		event->kind = KW_PROC_UID;
		event->pid = (uint32_t)told->event_data.id.process_tgid;
		event->value = told->event_data.id.r.ruid;
		return event->pid == (uint32_t)told->event_data.id.process_pid && concerns(reader, event->pid);
	case PROC_EVENT_COMM:
		event->kind = KW_PROC_COMM;
		event->pid = (uint32_t)told->event_data.comm.process_tgid;
		memcpy(event->comm, told->event_data.comm.comm, sizeof(event->comm));
		return event->pid == (uint32_t)told->event_data.comm.process_pid && concerns(reader, event->pid);
	default:
		return false;
	}
}

static const struct proc_event *event_in(const uint8_t *message, uint32_t length, uint32_t *number)
{
	const struct nlmsghdr *head = (const struct nlmsghdr *)(const void *)message;
	const struct cn_msg *body;
	uint32_t least = NLMSG_HDRLEN + sizeof(*body) + offsetof(struct proc_event, event_data);

	if (length < least || head->nlmsg_type != NLMSG_DONE)
		return NULL;
	body = (const struct cn_msg *)(const void *)(message + NLMSG_HDRLEN);
	if (body->id.idx != CN_IDX_PROC || body->id.val != CN_VAL_PROC)
		return NULL;
	*number = body->seq;
	return (const struct proc_event *)(const void *)body->data;
}

static void prepare(struct kw_proc_reader *reader)
{
	for (uint32_t i = 0; i < BATCH; i++) {
		reader->pieces[i] = (struct iovec){reader->messages[i] + LEAD, MESSAGE_BYTES};
		reader->headers[i].msg_hdr = (struct msghdr){
		    .msg_name = &reader->senders[i],
		    .msg_namelen = sizeof(reader->senders[i]),
		    .msg_iov = &reader->pieces[i],
		    .msg_iovlen = 1,
		};
	}
}

int kw_proc_read(struct kw_proc_reader *reader, int netlink, struct kw_proc_event *events, uint32_t room,
		 uint64_t *lost)
{
	uint32_t count = 0;
	int received, failed = reader->failed;

	*lost = 0;
	reader->failed = 0;
	if (failed)
		return -failed;
	do {
		prepare(reader);
		received = recvmmsg(netlink, reader->headers, BATCH, MSG_DONTWAIT, NULL);
		if (received < 0) {
			if (!count)
				return -errno;
			reader->failed = errno == EAGAIN ? 0 : errno;
			break;
		}
		for (int i = 0; i < received; i++) {
			const struct proc_event *told;
			uint32_t number, length = reader->headers[i].msg_len;

			/* A shorter kernel's event leaves the rest of the union as it is here: zero. */
			memset(reader->messages[i] + LEAD + length, 0, MESSAGE_BYTES - length);
			told = event_in(reader->messages[i] + LEAD, length, &number);
			if (!told || reader->senders[i].nl_pid || (uint32_t)told->what == PROC_EVENT_NONE)
				continue; /* not from the kernel, or its answer to our listening */
			*lost += missing(reader, told->cpu, number);
			if (understand(reader, told, &events[count]))
				count++;
		}
	} while (received == BATCH && count + BATCH <= room);
	return (int)count;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int kw_proc_wait(struct kw_proc_reader *reader, int netlink, int wake, int timeout_ms, struct kw_proc_event *events,
		 uint32_t room, uint64_t *lost)
{
	int64_t until_ms = now_ms() + timeout_ms;
	int left_ms = timeout_ms;

	for (;;) {
		struct pollfd sources[] = {{.fd = netlink, .events = POLLIN}, {.fd = wake, .events = POLLIN}};
		int count = kw_proc_read(reader, netlink, events, room, lost);
		int ready;

		if (*lost || (count && count != -EAGAIN))
			return count;
		ready = poll(sources, 2, left_ms);
		if (ready < 0)
			return errno == EINTR ? -EAGAIN : -errno;
		if (!ready || sources[1].revents)
			return -EAGAIN;
		if (timeout_ms < 0)
			continue;
		left_ms = (int)(until_ms - now_ms()); /* strangers do not put it off */
		if (left_ms <= 0)
			return -EAGAIN;
	}
}
