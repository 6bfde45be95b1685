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
	bpf_get_current_comm(tag->record.comm, sizeof(tag->record.comm));
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

static __noinline int tcp_established(struct kw_tag *tag, struct sock *sk)
{
	uint32_t was = tag->flags;
	uint64_t watches;

	tag_ends(tag, sk);
	tag->flags = (was & ~(TAG_CHILD | TAG_CONNECTING)) | TAG_OPEN | (was & TAG_CHILD ? TAG_INCOMING : 0);
	watches = tag->record.header.watches;
	if (was & TAG_CHILD) {
		net_count(watches, NET_CELL(connections_in), 1, NET_CELL(open), 1);
		return tag_emit(tag, KW_SOCKET_ACCEPTED, 0);
	}
	net_count(watches, NET_CELL(connections_out), 1, NET_CELL(open), 1);
	return tag_emit(tag, KW_SOCKET_CONNECTED, 0);
}

static __noinline int tcp_closed(struct kw_tag *tag, struct sock *sk)
{
	uint32_t was = tag->flags;
	uint64_t watches = tag->record.header.watches;

	tag->flags = was & (TAG_HELD | TAG_RELEASED);
	if (was & TAG_OPEN) {
		tag_account(tag, sk);
		net_count(watches, NET_CELL(open), -1, 0, 0);
		tag_emit(tag, KW_SOCKET_CLOSED, 0);
	} else if (was & TAG_LISTENING) {
		net_count(watches, NET_CELL(listening), -1, 0, 0);
		tag_emit(tag, KW_SOCKET_CLOSED, 0);
	} else if (was & TAG_CONNECTING) {
		/* Set before the state changes, by a reset, an ICMP answer or the timer; 0: the program gave up, or the
		 * kernel before a SYN left. */
		uint32_t result = sk->sk_err;

		if (!result)
			result = sk->sk_err_soft;
		if (sk->__sk_common.skc_dport) /* the port of our side was chosen after the state */
			tag_ends(tag, sk);
		net_count(watches, NET_CELL(connections_failed), 1, 0, 0);
		tag_emit(tag, KW_SOCKET_CONNECTED, result ? result : ECONNABORTED);
	}
	if (was & TAG_RELEASED || !sk->sk_socket)
		tag_drop(tag);
	return 0;
}

static __noinline int tcp_began(struct kw_tag *tag, struct sock *sk, int to)
{
	if (to == TCP_LISTEN) {
		tag_ends(tag, sk);
		tag->flags |= TAG_LISTENING;
		net_count(tag->record.header.watches, NET_CELL(listening), 1, 0, 0);
		return tag_emit(tag, KW_SOCKET_LISTENING, 0);
	}
	tag->flags |= TAG_CONNECTING;
	tag->record.bytes_in = tag->record.bytes_out = 0;
	tag->dns[0] = tag->dns[1] = (struct kw_dns_way){};
	net_count(tag->record.header.watches, NET_CELL(attempts), 1, 0, 0);
	if (!(tag->record.header.watches & net.expecting))
		return 0;
	tag_ends(tag, sk);
	/* Somebody wants to know where to before it is known whether: a SYN may stay unanswered for minutes. */
	return tag_tell(tag, KW_SOCKET_CONNECTING, 0, tag->record.header.watches & net.expecting);
}

/* A child of a listener: the tag is a copy of the listener's (sk_clone_lock()), the numbers are not its own. */
static __noinline int tcp_born(struct kw_tag *tag)
{
	tag->flags = TAG_CHILD | TAG_HELD;
	__sync_fetch_and_add(&net.sockets, 1);
	tag->record.bytes_in = tag->record.bytes_out = 0;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, struct sock *sk, int from, int to)
{
	struct kw_tag *tag;

	if (!net_active() || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
	if (!tag) {
		if (from != TCP_CLOSE || (to != TCP_SYN_SENT && to != TCP_LISTEN))
			return 0;
		tag = tag_of_current(sk);
		if (!tag)
			return 0;
	}
	tag_watches(tag);
	tag->record.state = to;
	if (to == TCP_CLOSE)
		return tcp_closed(tag, sk);
	if (from == TCP_LISTEN)
		return tcp_born(tag);
	if (from == TCP_CLOSE)
		return tcp_began(tag, sk, to);
	/* SYN_RECV -> CLOSE_WAIT: a child that was ended before its connection was established for us (fast open). */
	if (tag->flags & (TAG_CHILD | TAG_CONNECTING) && to != TCP_SYN_RECV) {
		if (tag->flags & TAG_CHILD)
			tag->record.cookie = bpf_get_socket_cookie(sk); /* it had none when it was born */
		return tcp_established(tag, sk);
	}
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
		if (!row_of(bpf_get_current_pid_tgid() >> 32) || bpf_sk_storage_get(&socket_tags, sk, NULL, 0))
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
