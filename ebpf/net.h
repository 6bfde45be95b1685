/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Sockets of kin: the tag that names a socket's owner, the counters, the record. Knows nothing of hooks.
 *
 * The tag holds the record as it will be told, so that telling is a copy. It is storage of the socket itself: it goes
 * when the socket goes, no table fills, and whoever uses or closes the socket finds its owner there. An accepted socket
 * inherits its listener's (BPF_F_CLONE).
 *
 * Making storage takes the kernel longer than all else that a connection costs. So the tags of TCP sockets that kin
 * makes are in a table of our own while there is room (desk_take()), for as long as somebody can do something with the
 * socket: until it is closed and no program has it open. They move into storage if the socket listens.
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
	TAG_DESK = 256,	     /* in `net_desk`, not in the socket */
	TAG_PEER = 512,	     /* UDP: a peer was told */
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
	uint64_t segments;	  /* TCP, accounted: in << 32 | out, each as the kernel's 32 bits */
	struct kw_dns_way dns[2]; /* to the server, from it */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct kw_tag);
} socket_tags SEC(".maps");

/*
 * Tags by the socket's cookie, record.cookie: whose the place is (0: nobody's). A cookie has two places; the first are
 * few, so that they stay in the processor's cache while sockets come and go. Cookies are never given twice: a socket
 * cannot find another's tag. Whose places are both taken has its tag in storage. Not used beside the packet programs:
 * packets come after the last close too.
 */
enum { DESK_NEAR = 64, DESK_FAR = 4096 }; /* powers of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DESK_NEAR + DESK_FAR);
	__type(key, uint32_t);
	__type(value, struct kw_tag);
} net_desk SEC(".maps");

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

/* The number of a mask's only bit. */
static __always_inline uint32_t slot_of(uint64_t bit)
{
	return (uint32_t)((bit & 0xaaaaaaaaaaaaaaaa) != 0) | (uint32_t)((bit & 0xcccccccccccccccc) != 0) << 1 |
	       (uint32_t)((bit & 0xf0f0f0f0f0f0f0f0) != 0) << 2 | (uint32_t)((bit & 0xff00ff00ff00ff00) != 0) << 3 |
	       (uint32_t)((bit & 0xffff0000ffff0000) != 0) << 4;
}

static __noinline long net_count_step(uint32_t slot, struct net_move *move)
{
	return net_count_one(slot, move);
}

__noinline int net_count_many(uint64_t watches, uint32_t cell, int64_t by, uint32_t other, int64_t other_by)
{
	struct net_move move = {.watches = watches, .by = by, .other_by = other_by, .cell = cell, .other = other};

	if (has_loop()) {
		bpf_loop(KW_SLOTS, net_count_step, &move, 0);
		return 0;
	}
	/* A call: around an inlined body clang lays out a loop whose head is also fallen into, which 6.1's verifier
	 * calls a back-edge; it refused the whole object. */
	for (uint32_t slot = 0; slot < KW_SLOTS; slot++)
		net_count_step(slot, &move);
	return 0;
}

/* Two cells of each watch of the mask. */
static __always_inline void net_count(uint64_t watches, uint32_t cell, int64_t by, uint32_t other, int64_t other_by)
{
	struct net_move move = {.watches = watches, .by = by, .other_by = other_by, .cell = cell, .other = other};

	if (watches & (watches - 1))
		net_count_many(watches, cell, by, other, other_by);
	else /* almost always */
		net_count_one(slot_of(watches), &move);
}

/* Has anybody to be looked at? One load for an idle machine. */
static __always_inline bool net_active(void)
{
	return kin_alive() || net.sockets;
}

/* The row of the current process, NULL for a stranger. Only where a hook runs on behalf of its caller. */
static __always_inline struct kw_kin *kin_now(uint32_t *pid)
{
	uint64_t start_ns;
	struct kw_kin *row;

	*pid = bpf_get_current_pid_tgid() >> 32;
	row = row_of(*pid);
	if (!row)
		return NULL;
	if (has_task())
		start_ns = bpf_get_current_task_btf()->group_leader->start_boottime;
	else
		start_ns = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), group_leader, start_boottime);
	return row->start_ns == start_ns ? row : NULL;
}

static __always_inline void comm_now(struct kw_tag *tag)
{
	uint64_t *to = (uint64_t *)tag->record.comm;
	const uint64_t *from;

	if (!has_task()) {
		bpf_get_current_comm(tag->record.comm, sizeof(tag->record.comm));
		return;
	}
	from = (const uint64_t *)bpf_get_current_task_btf()->comm;
	to[0] = from[0];
	to[1] = from[1];
}

static __always_inline struct kw_tag *desk_place(uint64_t cookie, bool near)
{
	uint32_t key = near ? cookie & (DESK_NEAR - 1) : DESK_NEAR + (cookie & (DESK_FAR - 1));

	return bpf_map_lookup_elem(&net_desk, &key);
}

static __always_inline struct kw_tag *desk_find(uint64_t cookie)
{
	struct kw_tag *tag;

	if (!cookie)
		return NULL;
	tag = desk_place(cookie, true);
	if (tag && *(volatile uint64_t *)&tag->record.cookie == cookie)
		return tag;
	tag = desk_place(cookie, false);
	return tag && *(volatile uint64_t *)&tag->record.cookie == cookie ? tag : NULL;
}

static __always_inline bool desk_claim(struct kw_tag *tag, uint64_t cookie)
{
	return tag && !*(volatile uint64_t *)&tag->record.cookie &&
	       !__sync_val_compare_and_swap(&tag->record.cookie, 0, cookie);
}

/* A cleared tag; NULL: both places are taken. */
static __always_inline struct kw_tag *desk_take(uint64_t cookie)
{
	struct kw_tag *tag = desk_place(cookie, true);

	if (!desk_claim(tag, cookie)) {
		tag = desk_place(cookie, false);
		if (!desk_claim(tag, cookie))
			return NULL;
	}
	*tag = (struct kw_tag){.record.cookie = cookie, .flags = TAG_DESK};
	return tag;
}

static __always_inline void desk_leave(struct kw_tag *tag)
{
	__sync_lock_test_and_set(&tag->record.cookie, 0);
}

/* The tag of a socket, NULL: it has none. */
static __always_inline struct kw_tag *tag_find(struct sock *sk)
{
	struct kw_tag *tag = desk_find(sk->__sk_common.skc_cookie.counter);

	return tag ? tag : bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
}

/* Whose it is. The rest is zero: fresh storage is, and so is a place that was taken. */
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

/* Nobody can use it any more. The caller does not touch it again: the place may be another's. */
static __always_inline void tag_drop(struct kw_tag *tag)
{
	uint32_t was = __sync_fetch_and_and(&tag->flags, ~TAG_HELD);

	if (!(was & TAG_HELD))
		return;
	if (was & TAG_DESK)
		desk_leave(tag);
	/* The reader takes the packet programs away when the last is gone; nothing else may tell it. */
	if (__sync_fetch_and_add(&net.sockets, -1) == 1 && !kin_alive() &&
	    *(volatile uint32_t *)&control.reader == KW_READER_SLEEPING) {
		control.reader = KW_READER_AWAKE;
		__sync_fetch_and_add(&control.woken, 1);
		knock();
	}
}

static __always_inline int tag_tell_here(const struct kw_tag *tag, uint32_t event, uint32_t result, uint64_t watches)
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

static __noinline int tag_tell(const struct kw_tag *tag, uint32_t event, uint32_t result, uint64_t watches)
{
	return tag_tell_here(tag, event, result, watches);
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

static __always_inline void address_v6(uint8_t *to, const struct in6_addr *from)
{
	uint32_t *words = (uint32_t *)to;

	words[0] = from->in6_u.u6_addr32[0];
	words[1] = from->in6_u.u6_addr32[1];
	words[2] = from->in6_u.u6_addr32[2];
	words[3] = from->in6_u.u6_addr32[3];
}

/* Our end of an IP socket, while it has a port: skc_num is zero again when a closed socket's was given back. */
static __always_inline void tag_local(struct kw_tag *tag, const struct sock *sk)
{
	const struct sock_common *common = &sk->__sk_common;
	struct kw_socket *record = &tag->record;

	record->family = common->skc_family;
	record->local_port = common->skc_num;
	if (record->family == AF_INET)
		*(uint32_t *)record->local = common->skc_rcv_saddr;
	else
		address_v6(record->local, &common->skc_v6_rcv_saddr);
}

/* Both ends. */
static __always_inline void tag_ends(struct kw_tag *tag, const struct sock *sk)
{
	const struct sock_common *common = &sk->__sk_common;
	struct kw_socket *record = &tag->record;

	tag_local(tag, sk);
	record->remote_port = bpf_ntohs(common->skc_dport);
	if (record->family == AF_INET)
		*(uint32_t *)record->remote = common->skc_daddr;
	else
		address_v6(record->remote, &common->skc_v6_daddr);
}

/* Both ends of a TCP socket that is about to be closed, whose port may have been given back. */
static __always_inline void tag_last_ends(struct kw_tag *tag, struct sock *sk)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	tag_ends(tag, sk);
	if (tcp)
		tag->record.local_port = bpf_ntohs(tcp->inet_conn.icsk_inet.inet_sport);
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

static __always_inline uint64_t tcp_segments(const struct tcp_sock *tcp)
{
	return (uint64_t) * (volatile const uint32_t *)&tcp->segs_in << 32 | *(volatile const uint32_t *)&tcp->segs_out;
}

/* Move a cell of a tag. Who moves it counts the difference; for who was too late it is 0. */
static __always_inline uint64_t tag_move(uint64_t *cell, uint64_t before, uint64_t now)
{
	uint64_t other = __sync_val_compare_and_swap(cell, before, now) ^ before;

	/* Without a branch: three of them in each of four turns took the verifier nine seconds. */
	return (now - before) & (((other | -other) >> 63) - 1);
}

/* A function of its own, which the verifier looks at once. segments: in << 32 | out. */
__noinline int net_count_carried(uint64_t watches, uint64_t in, uint64_t out, uint64_t segments)
{
	net_count(watches, NET_CELL(bytes_in), in, NET_CELL(bytes_out), out);
	net_count(watches, NET_CELL(tcp_segments_in), segments >> 32, NET_CELL(tcp_segments_out), (uint32_t)segments);
	return 0;
}

/* What the TCP socket has carried since it was accounted last, to the counters. */
static __noinline int tag_account(struct kw_tag *tag, struct sock *sk)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct kw_socket *record = &tag->record;

	for (int i = 0; i < 4 && tcp; i++) {
		/* Read before the socket is: its numbers are never less. */
		uint64_t segments_before = *(volatile uint64_t *)&tag->segments;
		uint64_t out_before = *(volatile uint64_t *)&record->bytes_out;
		uint64_t in_before = *(volatile uint64_t *)&record->bytes_in;
		uint64_t in, out, segments, segments_by;

		if (!tag_payload(sk, &in, &out))
			return 0;
		segments = tcp_segments(tcp);
		if (out < out_before) /* in the middle of a retransmission */
			out = out_before;
		if (!((in ^ in_before) | (out ^ out_before) | (segments ^ segments_before)))
			return 0;
		segments_by = (segments >> 32) - (segments_before >> 32);
		segments_by = segments_by << 32 | (uint32_t)(segments - segments_before);
		if (__sync_val_compare_and_swap(&tag->segments, segments_before, segments) != segments_before)
			segments_by = 0;
		net_count_carried(record->header.watches, tag_move(&record->bytes_in, in_before, in),
				  tag_move(&record->bytes_out, out_before, out), segments_by);
	}
	return 0;
}

#endif
