/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The life of TCP sockets, from the kernel's own state machine, and the payload of all others from their calls'
 * results.
 *
 * Most transitions run in softirq or on behalf of somebody else: the owner comes from the tag, never from `current`,
 * but for the two that only a system call makes (CLOSE -> SYN_SENT, CLOSE -> LISTEN).
 */
#ifndef KINWATCH_NET_TCP_BPF_H
#define KINWATCH_NET_TCP_BPF_H

#include "net.h"

/* A tag for a socket that the current process, if it is kin, made, connects, binds or uses; NULL: a stranger. */
static __always_inline struct kw_tag *tag_of_current(struct sock *sk)
{
	struct kw_tag *tag;
	struct kw_kin *row;
	uint32_t pid;

	row = kin_now(&pid);
	if (!row)
		return NULL;
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		lose(KW_TABLE_FULL);
		return NULL;
	}
	tag_own(tag, row, pid);
	comm_now(tag);
	tag->record.family = sk->__sk_common.skc_family;
	if (tag->record.family == AF_INET || tag->record.family == AF_INET6)
		tag_hold(tag);
	tag->record.protocol = sk->sk_protocol;
	tag->record.type = sk->sk_type;
	tag->record.cookie = bpf_get_socket_cookie(sk);
	return tag;
}

/*
 * A socket that existed before anybody looked: what its state stands for. What others read and wrote is not ours; in,
 * out: what the call that brought it here read and wrote. A datagram socket borrows the states of TCP: ESTABLISHED with
 * a peer, else CLOSE.
 */
static __noinline int tag_catch_up(struct kw_tag *tag, struct sock *sk, uint32_t in, uint32_t out)
{
	uint8_t state = sk->__sk_common.skc_state;
	uint64_t watches = tag->record.header.watches;
	uint16_t family = tag->record.family;
	const struct tcp_sock *tcp;

	if (family != AF_INET && family != AF_INET6)
		return tag_emit(tag, KW_SOCKET_FAMILY, 0);
	tag_ends(tag, sk);
	tag->record.state = state;
	if (tag->record.protocol == IPPROTO_UDP) {
		if (state == TCP_ESTABLISHED) {
			tag->flags |= TAG_CONNECTED;
		} else {
			if (!tag->record.local_port)
				return 0;
			tag->flags |= TAG_LISTENING;
			net_count(watches, NET_CELL(listening), 1, 0, 0);
		}
		return tag_emit(tag, KW_SOCKET_LIVE, 0);
	}
	if (tag->record.protocol != IPPROTO_TCP || state == TCP_CLOSE)
		return 0;
	if (!tag_past(sk, &tag->record.bytes_in, &tag->record.bytes_out))
		return 0;
	tag->record.bytes_in -= in;
	tag->record.bytes_out -= out;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp)
		tag->segments = tcp_segments(tcp);
	if (state == TCP_SYN_SENT) {
		tag->flags |= TAG_CONNECTING;
		return 0;
	}
	if (state == TCP_LISTEN) {
		tag->flags |= TAG_LISTENING;
		net_count(watches, NET_CELL(listening), 1, 0, 0);
	} else {
		tag->flags |= TAG_OPEN;
		net_count(watches, NET_CELL(open), 1, 0, 0);
	}
	return tag_emit(tag, KW_SOCKET_LIVE, 0);
}

/* What a transition means: two cells that move, and an event (0: none). */
struct tcp_step {
	uint32_t event, result;
	uint32_t cell, other;
	int64_t by, other_by;
	uint64_t told; /* watches that hear of it */
};

static __always_inline void tcp_established(struct tcp_step *step, struct kw_tag *tag, struct sock *sk)
{
	bool child = tag->flags & TAG_CHILD;

	if (child)
		tag->record.cookie = bpf_get_socket_cookie(sk); /* it had none when it was born */
	tag_ends(tag, sk);
	__sync_fetch_and_xor(&tag->flags, child ? TAG_CHILD | TAG_INCOMING | TAG_OPEN : TAG_CONNECTING | TAG_OPEN);
	step->event = child ? KW_SOCKET_ACCEPTED : KW_SOCKET_CONNECTED;
	step->cell = child ? NET_CELL(connections_in) : NET_CELL(connections_out);
	step->by = 1;
	step->other = NET_CELL(open);
	step->other_by = 1;
}

static __always_inline void tcp_ends(struct tcp_step *step, struct kw_tag *tag, struct sock *sk)
{
	uint32_t was = tag->flags;

	if (was & (TAG_OPEN | TAG_CONNECTING))
		tag_account(tag, sk);
	if (was & (TAG_OPEN | TAG_LISTENING)) {
		if (!tag->record.local_port)
			tag_last_ends(tag, sk);
		step->event = KW_SOCKET_CLOSED;
		step->cell = was & TAG_OPEN ? NET_CELL(open) : NET_CELL(listening);
		step->by = -1;
	} else if (was & TAG_CONNECTING) {
		/* Set before the state changes, by a reset, an ICMP answer or the timer; 0: the program gave up, or the
		 * kernel before a SYN left. */
		step->result = sk->sk_err;
		if (!step->result)
			step->result = sk->sk_err_soft;
		if (!step->result)
			step->result = ECONNABORTED;
		if (sk->__sk_common.skc_dport) /* the port of our side was chosen after the state */
			tag_last_ends(tag, sk);
		step->event = KW_SOCKET_CONNECTED;
		step->cell = NET_CELL(connections_failed);
		step->by = 1;
	}
}

/* Last of all at an end: a release that comes now sees that nothing goes on, and drops the tag; one that came before
 * has left that to us. */
static __always_inline void tcp_ended(struct kw_tag *tag, struct sock *sk)
{
	uint32_t was = __sync_fetch_and_and(&tag->flags, TAG_HELD | TAG_RELEASED | TAG_DESK);

	if (was & TAG_RELEASED || !sk->sk_socket)
		tag_drop(tag);
}

/*
 * From here on the tag is to be inherited. Nobody else uses it: the listener's own call goes on. A socket that was
 * never bound gets its port after the state (inet_csk_listen_start()): the record without one has the reader walk over
 * the open files, where it is found.
 */
static __noinline int tcp_listens(struct kw_tag *tag, struct sock *sk)
{
	if (tag->flags & TAG_DESK) {
		struct kw_tag *stored = bpf_sk_storage_get(&socket_tags, sk, tag, BPF_SK_STORAGE_GET_F_CREATE);

		if (stored) {
			__sync_fetch_and_and(&stored->flags, ~TAG_DESK);
			desk_leave(tag);
			tag = stored;
		} else {
			lose(KW_TABLE_FULL); /* of its children nobody will know whose they are */
		}
	}
	tag_ends(tag, sk);
	__sync_fetch_and_or(&tag->flags, TAG_LISTENING);
	net_count(tag->record.header.watches, NET_CELL(listening), 1, 0, 0);
	return tag_emit(tag, KW_SOCKET_LISTENING, 0);
}

static __always_inline void tcp_connects(struct tcp_step *step, struct kw_tag *tag, struct sock *sk)
{
	__sync_fetch_and_or(&tag->flags, TAG_CONNECTING);
	tag->record.bytes_in = tag->record.bytes_out = tag->segments = 0; /* as tcp_disconnect() sets the socket's */
	tag->dns[0] = tag->dns[1] = (struct kw_dns_way){};
	step->cell = NET_CELL(attempts);
	step->by = 1;
	step->told &= net.expecting;
	if (!step->told)
		return;
	/* Somebody wants to know where to before it is known whether: a SYN may stay unanswered for minutes. */
	tag_ends(tag, sk);
	step->event = KW_SOCKET_CONNECTING;
}

/*
 * A child of a listener: the tag is a copy of the listener's (sk_clone_lock()), the numbers are not its own. Its birth
 * is no step of its own: nothing can be told before it has a peer. Fast open lets a program have it, and release it,
 * earlier.
 */
static __always_inline void tcp_born(struct kw_tag *tag)
{
	__sync_fetch_and_xor(&tag->flags, (tag->flags & ~TAG_RELEASED) ^ (TAG_CHILD | TAG_HELD));
	__sync_fetch_and_add(&net.sockets, 1);
	tag->record.bytes_in = tag->record.bytes_out = tag->segments = 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, struct sock *sk, int from, int to)
{
	struct tcp_step step = {};
	struct kw_tag *tag;
	uint64_t watches;

	if (!net_active() || sk->sk_protocol != IPPROTO_TCP || (from == TCP_LISTEN && to != TCP_CLOSE))
		return 0;
	tag = tag_find(sk);
	if (!tag) {
		if (from != TCP_CLOSE || (to != TCP_SYN_SENT && to != TCP_LISTEN))
			return 0;
		tag = tag_of_current(sk);
		if (!tag)
			return 0;
	}
	step.told = watches = tag_watches(tag);
	tag->record.state = to;
	if (from == TCP_SYN_RECV && tag->flags & TAG_LISTENING)
		tcp_born(tag);
	if (to == TCP_CLOSE)
		tcp_ends(&step, tag, sk);
	else if (from == TCP_CLOSE && to == TCP_LISTEN)
		tcp_listens(tag, sk);
	else if (from == TCP_CLOSE)
		tcp_connects(&step, tag, sk);
	/* SYN_RECV -> CLOSE_WAIT: a child that was ended before its connection was established for us (fast open). */
	else if (tag->flags & (TAG_CHILD | TAG_CONNECTING) && to != TCP_SYN_RECV)
		tcp_established(&step, tag, sk);
	if (step.by)
		net_count(watches, step.cell, step.by, step.other, step.other_by);
	if (step.event)
		tag_tell_here(tag, step.event, step.result, step.told);
	if (to == TCP_CLOSE)
		tcp_ended(tag, sk);
	return 0;
}

static __always_inline int length_seen(struct sock *sk, int length, bool out)
{
	uint16_t family = sk->__sk_common.skc_family;
	bool is_ip = family == AF_INET || family == AF_INET6;
	uint16_t protocol = sk->sk_protocol;
	bool is_tcp = is_ip && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
	struct kw_tag *tag;
	uint64_t watches;

	if (!is_ip || is_tcp) {
		/* Only to see who uses it first: strangers go after one load. */
		if (!row_of(bpf_get_current_pid_tgid() >> 32) || tag_find(sk))
			return 0;
		tag = tag_of_current(sk);
		return tag ? tag_catch_up(tag, sk, out ? 0 : length, out ? length : 0) : 0;
	}
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
	if (!tag)
		tag = tag_of_current(sk);
	if (!tag)
		return 0;
	watches = tag_watches(tag);
	if (!tag->record.local_port && protocol == IPPROTO_UDP) /* chosen by the first datagram */
		tag_local(tag, sk);
	if (out) {
		__sync_fetch_and_add(&tag->record.bytes_out, length);
		net_count(watches, NET_CELL(bytes_out), length, 0, 0);
	} else {
		__sync_fetch_and_add(&tag->record.bytes_in, length);
		net_count(watches, NET_CELL(bytes_in), length, 0, 0);
	}
	return 0;
}

/* What sendmsg() and its kin returned, whoever called: sendfile, splice and io_uring come here too. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(on_send, struct sock *sk, int length, int flags)
{
	if (!net_active() || length <= 0)
		return 0;
	return length_seen(sk, length, true);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_recv, struct sock *sk, int length, int flags)
{
	if (!net_active() || length <= 0 || flags & MSG_PEEK)
		return 0;
	return length_seen(sk, length, false);
}

#endif
