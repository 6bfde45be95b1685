/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Sockets of kin: the tag that names a socket's owner, the counters, the record. Knows nothing of hooks.
 *
 * The tag is storage of the socket itself: it goes when the socket goes, no table fills, and whoever uses or closes the
 * socket finds its owner there. It holds the record as it will be told, so that telling is a copy. An accepted socket
 * inherits its listener's (BPF_F_CLONE).
 */
#ifndef KINWATCH_NET_H
#define KINWATCH_NET_H

#include "kin.h"
#include "net_table.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

enum tag_flag {
	TAG_HELD = 1,	     /* counted in net.sockets */
	TAG_RELEASED = 2,    /* no program has it open any more */
	TAG_CHILD = 4,	     /* made by a listener, not established yet */
	TAG_CONNECTING = 8,  /* a SYN is on its way */
	TAG_OPEN = 16,	     /* established; counted in `open` */
	TAG_LISTENING = 32,  /* counted in `listening` */
	TAG_INCOMING = 64,   /* it connected to kin */
	TAG_CONNECTED = 128, /* UDP: it has a peer of its own */
};

/* One direction of DNS over TCP. */
struct kw_dns_way {
	uint32_t next;	 /* sequence number at which the next message begins; 0: not known */
	uint32_t length; /* of the message that begins with the next segment; 0: not known */
};

struct kw_tag {
	struct kw_socket record; /* bytes_in, bytes_out: what is accounted */
	uint32_t flags;
	uint32_t epoch;		  /* of the mask of watches */
	struct kw_dns_way dns[2]; /* to the server, from it */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct kw_tag);
} socket_tags SEC(".maps");

/* A row of cells per slot and CPU. The adds are atomic all the same: a packet may come in the middle of a system
 * call's add on the same CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KW_SLOTS);
	__type(key, uint32_t);
	__type(value, struct kw_net_row);
} net_counters SEC(".maps");

struct kw_net_control net SEC(".data.net") = {};

#define NET_CELL(name) (__builtin_offsetof(struct kw_net_counters, name) / 8)

enum { NET_CELLS = sizeof(struct kw_net_row) / 8 }; /* a power of two */

struct net_move {
	uint64_t watches;
	int64_t by, other_by;
	uint32_t cell, other;
};

static __always_inline int net_count_one(uint32_t slot, const struct net_move *move)
{
	uint32_t key = slot;
	uint64_t *cells;

	if (!(move->watches >> (slot & 63) & 1))
		return 0;
	cells = bpf_map_lookup_elem(&net_counters, &key);
	if (!cells)
		return 0;
	__sync_fetch_and_add(&cells[move->cell & (NET_CELLS - 1)], move->by);
	if (move->other_by)
		__sync_fetch_and_add(&cells[move->other & (NET_CELLS - 1)], move->other_by);
	return 0;
}

static long net_count_step(uint32_t slot, struct net_move *move)
{
	return net_count_one(slot, move);
}

/* Two cells of each watch of the mask. */
__noinline int net_count(uint64_t watches, uint32_t cell, int64_t by, uint32_t other, int64_t other_by)
{
	struct net_move move = {.watches = watches, .by = by, .other_by = other_by, .cell = cell, .other = other};

	if (watches == 1) /* almost always */
		return net_count_one(0, &move);
	if (has_loop()) {
		bpf_loop(KW_SLOTS, net_count_step, &move, 0);
		return 0;
	}
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		net_count_one(slot, &move);
	return 0;
}

/* Has anybody to be looked at? One load for an idle machine. */
static __always_inline bool net_active(void)
{
	return kin_alive() || net.sockets;
}

/* The row of the current process, NULL for a stranger. Only where a hook runs on behalf of its caller. */
static __always_inline struct kw_kin *kin_now(uint32_t *pid)
{
	const struct task_struct *task;
	struct kw_kin *row;

	*pid = bpf_get_current_pid_tgid() >> 32;
	row = row_of(*pid);
	if (!row)
		return NULL;
	task = (const struct task_struct *)bpf_get_current_task();
	return row->start_ns == BPF_CORE_READ(task, group_leader, start_boottime) ? row : NULL;
}

/* Whose it is. The rest is zero: the kernel clears fresh storage. */
static __always_inline void tag_own(struct kw_tag *tag, const struct kw_kin *row, uint32_t pid)
{
	struct kw_socket *record = &tag->record;

	record->header.size = sizeof(*record);
	record->header.kind = KW_SOCKET;
	record->header.flags = KW_HAS_ROOT;
	tag->epoch = net.epoch;
	record->header.watches = row->watches;
	record->header.roots = row->roots;
	record->process.start_ns = row->start_ns;
	record->process.pid = pid;
	record->root.start_ns = row->root_start_ns;
	record->root.pid = row->root_pid;
	record->depth = row->depth;
}

/* Somebody has it: an IP socket, whose end is seen. */
static __always_inline void tag_hold(struct kw_tag *tag)
{
	if (!(__sync_fetch_and_or(&tag->flags, TAG_HELD) & TAG_HELD))
		__sync_fetch_and_add(&net.sockets, 1);
}

/* Nobody can use it any more. */
static __always_inline void tag_drop(struct kw_tag *tag)
{
	if (!(__sync_fetch_and_and(&tag->flags, ~TAG_HELD) & TAG_HELD))
		return;
	/* The reader takes the packet programs away when the last is gone; nothing else may tell it. */
	if (__sync_fetch_and_add(&net.sockets, -1) == 1 && !kin_alive() &&
	    *(volatile uint32_t *)&control.reader == KW_READER_SLEEPING) {
		control.reader = KW_READER_AWAKE;
		__sync_fetch_and_add(&control.woken, 1);
		knock();
	}
}

static __noinline int tag_tell(const struct kw_tag *tag, uint32_t event, uint32_t result, uint64_t watches)
{
	struct kw_socket *record;
	uint64_t now_ns;

	if (!watches)
		return 0;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		lose(KW_RING_FULL);
		return 0;
	}
	now_ns = bpf_ktime_get_boot_ns();
	*record = tag->record;
	record->header.time_ns = now_ns;
	record->header.watches = watches;
	record->header.roots &= watches;
	record->event = event;
	record->result = result;
	submit(record, now_ns, false, 0);
	return 0;
}

static __always_inline int tag_emit(const struct kw_tag *tag, uint32_t event, uint32_t result)
{
	return tag_tell(tag, event, result, tag->record.header.watches);
}

/* The socket becomes one of these watches too, as it stands. begun: what it did so far is theirs. */
static __noinline int tag_join(struct kw_tag *tag, uint64_t fresh, uint64_t roots, bool begun)
{
	uint32_t flags = tag->flags;

	fresh &= ~__sync_fetch_and_or(&tag->record.header.watches, fresh);
	if (!fresh)
		return 0;
	__sync_fetch_and_or(&tag->record.header.roots, roots & fresh);
	if (flags & TAG_OPEN)
		net_count(fresh, NET_CELL(open), 1, 0, 0);
	if (flags & TAG_LISTENING)
		net_count(fresh, NET_CELL(listening), 1, 0, 0);
	if (begun && flags & TAG_OPEN)
		net_count(fresh, flags & TAG_INCOMING ? NET_CELL(connections_in) : NET_CELL(connections_out), 1, 0, 0);
	if (begun && tag->record.protocol != IPPROTO_TCP)
		net_count(fresh, NET_CELL(bytes_in), tag->record.bytes_in, NET_CELL(bytes_out), tag->record.bytes_out);
	if (flags & (TAG_OPEN | TAG_LISTENING | TAG_CONNECTED))
		tag_tell(tag, KW_SOCKET_LIVE, 0, fresh);
	return 0;
}

/* Watches were removed since: take them off. Their counters have gone with them. */
static __noinline int tag_refresh(struct kw_tag *tag)
{
	uint32_t now = *(volatile uint32_t *)&net.epoch;
	uint64_t gone = control.nothing;

	/* Without a branch: 32 of them took the verifier 13 ms, in each program. */
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		gone |= (uint64_t)((tag->epoch - net.forgotten[slot]) >> 31) << slot;
	__sync_fetch_and_and(&tag->record.header.watches, ~gone);
	__sync_fetch_and_and(&tag->record.header.roots, ~gone);
	tag->epoch = now;
	return 0;
}

/* The watches it counts for. A tag without any was made while a command line decided about its owner: ask again. */
static __always_inline uint64_t tag_watches(struct kw_tag *tag)
{
	const struct kw_kin *row;

	if (tag->epoch != net.epoch)
		tag_refresh(tag);
	if (tag->record.header.watches)
		return tag->record.header.watches;
	row = kin_of(tag->record.process.pid, tag->record.process.start_ns);
	if (row && row->watches)
		tag_join(tag, row->watches, row->roots, true);
	return tag->record.header.watches;
}

static __always_inline void address_v6(uint8_t *to, const uint32_t *from)
{
	uint32_t *words = (uint32_t *)to;

	words[0] = from[0];
	words[1] = from[1];
	words[2] = from[2];
	words[3] = from[3];
}

/* Our end of an IP socket. TCP's is read directly, others' through a helper: no other cast is trusted. */
static __always_inline void tag_local(struct kw_tag *tag, struct sock *sk)
{
	const struct inet_sock *inet = (const struct inet_sock *)sk;
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct kw_socket *record = &tag->record;

	record->family = sk->__sk_common.skc_family;
	record->local_port = bpf_ntohs(tcp ? tcp->inet_conn.icsk_inet.inet_sport : BPF_CORE_READ(inet, inet_sport));
	if (record->family == AF_INET)
		*(uint32_t *)record->local =
		    tcp ? tcp->inet_conn.icsk_inet.inet_saddr : BPF_CORE_READ(inet, inet_saddr);
	else
		bpf_core_read(record->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
}

/* Both ends. */
static __noinline int tag_ends(struct kw_tag *tag, struct sock *sk)
{
	struct kw_socket *record = &tag->record;

	tag_local(tag, sk);
	record->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	if (record->family == AF_INET)
		*(uint32_t *)record->remote = sk->__sk_common.skc_daddr;
	else
		bpf_core_read(record->remote, 16, &sk->__sk_common.skc_v6_daddr);
	return 0;
}

/* Payload that a TCP socket has carried in its life: neither SYN nor FIN, nothing twice. False: it is none. */
static __always_inline bool tag_payload(struct sock *sk, uint64_t *in, uint64_t *out)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return false;
	/* A retransmission moves bytes_retrans first (__tcp_retransmit_skb()): read last, the difference is never too
	 * high. */
	*out = *(volatile const uint64_t *)&tcp->bytes_sent;
	*out -= *(volatile const uint64_t *)&tcp->bytes_retrans;
	*in = *(volatile const uint64_t *)&tcp->bytes_received;
	/* A FIN takes a sequence number, and bytes_received counts those. */
	if (sk->__sk_common.skc_flags >> SOCK_DONE & 1 && *in)
		--*in;
	return true;
}

/* Payload that somebody has read and written already: less what waits to be read, more what waits to be sent. */
static __always_inline bool tag_past(struct sock *sk, uint64_t *in, uint64_t *out)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp || !tag_payload(sk, in, out))
		return false;
	if (sk->__sk_common.skc_state != TCP_ESTABLISHED)
		return true; /* a FIN on either side takes a sequence number too, and little is still to come */
	*in -= tcp->rcv_nxt - tcp->copied_seq;
	*out += tcp->write_seq - tcp->snd_nxt;
	return true;
}

/* What the TCP socket has carried since it was accounted last, to the counters. */
static __noinline int tag_account(struct kw_tag *tag, struct sock *sk)
{
	struct kw_socket *record = &tag->record;

	for (int i = 0; i < 4; i++) {
		uint64_t in_before = *(volatile uint64_t *)&record->bytes_in;
		uint64_t out_before = *(volatile uint64_t *)&record->bytes_out;
		uint64_t in, out;

		if (!tag_payload(sk, &in, &out))
			return 0;
		if (out < out_before) /* in the middle of a retransmission */
			out = out_before;
		/* Whoever moves a cell counts the difference; who comes second looks again. */
		if (__sync_val_compare_and_swap(&record->bytes_in, in_before, in) != in_before)
			continue;
		if (__sync_val_compare_and_swap(&record->bytes_out, out_before, out) != out_before)
			out = out_before;
		if (in != in_before || out != out_before)
			net_count(record->header.watches, NET_CELL(bytes_in), in - in_before, NET_CELL(bytes_out),
				  out - out_before);
		return 0;
	}
	return 0;
}

#endif
