/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Programs on the root of the cgroup2 hierarchy: who made an IP socket, the peers of UDP, its bound ports, the last
 * close. They run on behalf of the caller (io_uring's workers are threads of it since 5.12), and let everything pass.
 */
#ifndef KINWATCH_NET_CGROUP_BPF_H
#define KINWATCH_NET_CGROUP_BPF_H

#include "net.h"

enum { PASS = 1 };

/* The remote addresses that a UDP socket has spoken with, so that each is told once. LRU: a forgotten one is told
 * again, which costs a record and no truth. */
struct kw_peer {
	uint64_t cookie;
	uint8_t address[16];
	uint16_t port;
	uint16_t family;
	uint32_t reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct kw_peer);
	__type(value, uint32_t);
} net_peers SEC(".maps");

static __always_inline struct kw_tag *tag_fill(struct kw_tag *tag, const struct bpf_sock *sk, uint64_t cookie,
					       const struct kw_kin *row, uint32_t pid)
{
	tag_own(tag, row, pid);
	tag_hold(tag);
	comm_now(tag);
	tag->record.cookie = cookie;
	tag->record.family = sk->family;
	tag->record.type = sk->type;
	tag->record.protocol = sk->protocol;
	return tag;
}

/* A fresh tag in the socket itself. NULL: no memory. */
static __always_inline struct kw_tag *tag_store(struct bpf_sock *sk)
{
	struct kw_tag *tag = bpf_sk_storage_get(&socket_tags, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!tag)
		lose(KW_TABLE_FULL);
	return tag;
}

/* A tag for a socket of the current process, if it is kin; NULL: a stranger's. */
static __always_inline struct kw_tag *tag_make(struct bpf_sock *sk, uint64_t cookie)
{
	struct kw_tag *tag;
	struct kw_kin *row;
	uint32_t pid;

	row = kin_now(&pid);
	if (!row)
		return NULL;
	tag = tag_store(sk);
	return tag ? tag_fill(tag, sk, cookie, row, pid) : NULL;
}

static __always_inline bool may_be_on_desk(const struct bpf_sock *sk)
{
	return net.desk && sk->protocol == IPPROTO_TCP;
}

/* The tag of a socket, NULL: it has none. */
static __always_inline struct kw_tag *tag_have(struct bpf_sock *sk)
{
	struct kw_tag *tag = may_be_on_desk(sk) ? desk_find(bpf_get_socket_cookie(sk)) : NULL;

	return tag ? tag : bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
}

/* Made by kin: its own, whoever uses it. */
SEC("cgroup/sock_create")
int on_sock_create(struct bpf_sock *context)
{
	const struct kw_kin *row;
	struct kw_tag *tag;
	uint64_t cookie;
	uint32_t pid;

	if (!kin_alive())
		return PASS;
	row = kin_now(&pid);
	if (!row)
		return PASS;
	cookie = bpf_get_socket_cookie(context);
	tag = may_be_on_desk(context) ? desk_take(cookie) : NULL;
	if (!tag)
		tag = tag_store(context);
	if (tag)
		tag_fill(tag, context, cookie, row, pid);
	return PASS;
}

/* The last reference from a file is gone. TCP goes on by itself (FIN, late packets); the rest is over. */
SEC("cgroup/sock_release")
int on_sock_release(struct bpf_sock *context)
{
	struct kw_tag *tag;
	uint32_t was;

	if (!net_active())
		return PASS;
	tag = tag_have(context);
	if (!tag)
		return PASS;
	was = __sync_fetch_and_or(&tag->flags, TAG_RELEASED);
	if (tag->record.protocol == IPPROTO_TCP) {
		if (!(was & (TAG_OPEN | TAG_LISTENING | TAG_CONNECTING | TAG_CHILD)))
			tag_drop(tag); /* otherwise tcp_closed() does */
		return PASS;
	}
	tag_watches(tag);
	if (was & TAG_LISTENING)
		net_count(tag->record.header.watches, NET_CELL(listening), -1, 0, 0);
	if (was & (TAG_LISTENING | TAG_CONNECTED | TAG_PEER))
		tag_emit(tag, KW_SOCKET_CLOSED, 0);
	__sync_fetch_and_and(&tag->flags, ~(TAG_LISTENING | TAG_CONNECTED | TAG_PEER));
	tag_drop(tag);
	return PASS;
}

/* The tag of a socket that is being used in a call; first use by kin makes one. */
static __always_inline struct kw_tag *tag_in_call(struct bpf_sock_addr *context)
{
	struct bpf_sock *sk = context->sk;
	struct kw_tag *tag;

	if (!sk)
		return NULL;
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
	return tag ? tag : tag_make(sk, bpf_get_socket_cookie(context));
}

/* An IPv6 socket that sends to a v4-mapped address comes to the hook of IPv4 (udpv6_sendmsg() calls udp_sendmsg()). */
static __always_inline void remote_of_call(struct bpf_sock_addr *context, bool v6, uint8_t *address, uint16_t *port)
{
	uint32_t *words = (uint32_t *)address;

	if (v6) {
		words[0] = context->user_ip6[0];
		words[1] = context->user_ip6[1];
		words[2] = context->user_ip6[2];
		words[3] = context->user_ip6[3];
	} else {
		bool mapped = context->family == AF_INET6;
		uint32_t ip4 = context->user_ip4;

		words[0] = mapped ? 0 : ip4;
		words[1] = 0;
		words[2] = mapped ? bpf_htonl(0xffff) : 0;
		words[3] = mapped ? ip4 : 0;
	}
	*port = bpf_ntohs((uint16_t)context->user_port);
}

/* TCP is told by its states. A datagram socket that connects has a peer from now on, and listens no more. */
static __always_inline int connect_seen(struct bpf_sock_addr *context, bool v6)
{
	struct kw_tag *tag;
	uint32_t was;

	if (context->protocol != IPPROTO_UDP || !net_active())
		return PASS;
	tag = tag_in_call(context);
	if (!tag)
		return PASS;
	tag_watches(tag);
	was = __sync_fetch_and_or(&tag->flags, TAG_CONNECTED);
	if (was & TAG_LISTENING && __sync_fetch_and_and(&tag->flags, ~TAG_LISTENING) & TAG_LISTENING)
		net_count(tag->record.header.watches, NET_CELL(listening), -1, 0, 0);
	remote_of_call(context, v6, tag->record.remote, &tag->record.remote_port);
	tag_emit(tag, KW_SOCKET_CONNECTED, 0);
	return PASS;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *context)
{
	return connect_seen(context, false);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *context)
{
	return connect_seen(context, true);
}

static __always_inline bool is_remote_of(const struct kw_socket *record, const struct kw_peer *peer)
{
	const uint64_t *remote = (const uint64_t *)record->remote, *address = (const uint64_t *)peer->address;

	return record->remote_port == peer->port && remote[0] == address[0] && remote[1] == address[1];
}

/* A datagram to or from an address that the socket is not connected to. */
static __always_inline int peer_seen(struct bpf_sock_addr *context, bool v6)
{
	struct kw_socket *record;
	struct kw_peer peer = {};
	struct kw_tag *tag;
	uint64_t now_ns;
	uint32_t one = 1;

	if (!net_active())
		return PASS;
	tag = tag_in_call(context);
	if (!tag || !tag_watches(tag))
		return PASS;
	peer.cookie = tag->record.cookie;
	peer.family = tag->record.family;
	remote_of_call(context, v6, peer.address, &peer.port);
	/* recvfrom() asks for the address that is known; so does every send of an IPv6 socket that is connected to a
	 * v4-mapped address. */
	if (tag->flags & TAG_CONNECTED && is_remote_of(&tag->record, &peer))
		return PASS;
	if (bpf_map_lookup_elem(&net_peers, &peer))
		return PASS;
	bpf_map_update_elem(&net_peers, &peer, &one, BPF_ANY);
	__sync_fetch_and_or(&tag->flags, TAG_PEER);
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		lose(KW_RING_FULL);
		return PASS;
	}
	now_ns = bpf_ktime_get_boot_ns();
	*record = tag->record;
	record->header.time_ns = now_ns;
	record->event = KW_SOCKET_PEER;
	record->result = 0;
	record->remote_port = peer.port;
	__builtin_memcpy(record->remote, peer.address, sizeof(peer.address));
	submit(record, now_ns, false, 0);
	return PASS;
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *context)
{
	return peer_seen(context, false);
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *context)
{
	return peer_seen(context, true);
}

SEC("cgroup/recvmsg4")
int on_recvmsg4(struct bpf_sock_addr *context)
{
	return peer_seen(context, false);
}

SEC("cgroup/recvmsg6")
int on_recvmsg6(struct bpf_sock_addr *context)
{
	return peer_seen(context, true);
}

/* A port was bound. A datagram socket receives on it from now on. */
static __always_inline struct kw_tag *tag_at_bind(struct bpf_sock *context)
{
	struct kw_tag *tag;

	if (!net_active())
		return NULL;
	tag = tag_have(context);
	return tag ? tag : tag_make(context, bpf_get_socket_cookie(context));
}

static __always_inline int bound(struct kw_tag *tag, uint32_t port)
{
	tag->record.local_port = port;
	if (tag->record.protocol != IPPROTO_UDP || tag->flags & TAG_CONNECTED)
		return PASS;
	tag_watches(tag);
	if (!(__sync_fetch_and_or(&tag->flags, TAG_LISTENING) & TAG_LISTENING))
		net_count(tag->record.header.watches, NET_CELL(listening), 1, 0, 0);
	tag_emit(tag, KW_SOCKET_LISTENING, 0);
	return PASS;
}

SEC("cgroup/post_bind4")
int on_post_bind4(struct bpf_sock *context)
{
	struct kw_tag *tag = tag_at_bind(context);

	if (!tag)
		return PASS;
	*(uint32_t *)tag->record.local = context->src_ip4;
	return bound(tag, context->src_port);
}

SEC("cgroup/post_bind6")
int on_post_bind6(struct bpf_sock *context)
{
	struct kw_tag *tag = tag_at_bind(context);
	uint32_t *words;

	if (!tag)
		return PASS;
	words = (uint32_t *)tag->record.local;
	words[0] = context->src_ip6[0];
	words[1] = context->src_ip6[1];
	words[2] = context->src_ip6[2];
	words[3] = context->src_ip6[3];
	return bound(tag, context->src_port);
}

#endif
