/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What goes over the wire for sockets of kin: bytes from the IP header on, packets, DNS messages. Attached only while
 * somebody needs it. `current` means nothing here: packets run in whatever context they come in.
 *
 * An offloaded bundle (GSO on the way out, GRO on the way in) is one skb of many packets: gso_segs says how many.
 * Packets of TIME_WAIT and resets without a socket belong to nobody.
 */
#ifndef KINWATCH_NET_PACKET_BPF_H
#define KINWATCH_NET_PACKET_BPF_H

#include "net.h"

enum {
	DNS_PORT = 53,
	DNS_HEADER_BYTES = 12,
	DNS_ROOMS = 2, /* per CPU: a packet may come in while one goes out */
	IP_BYTES = 20,
	IPV6_BYTES = 40,
	UDP_BYTES = 8,
	LET_PASS = 1,
};

struct kw_dns_room {
	uint32_t busy;
	uint32_t reserved;
	struct kw_dns dns;
	uint8_t message[KW_DNS_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DNS_ROOMS);
	__type(key, uint32_t);
	__type(value, struct kw_dns_room);
} net_rooms SEC(".maps");

static __always_inline struct kw_dns_room *room_take(void)
{
	for (uint32_t i = 0; i < DNS_ROOMS; i++) {
		uint32_t key = i;
		struct kw_dns_room *room = bpf_map_lookup_elem(&net_rooms, &key);

		if (room && __sync_val_compare_and_swap(&room->busy, 0, 1) == 0)
			return room;
	}
	return NULL;
}

/* Where the transport header begins and whose it is. 0: a fragment, an extension header, or no IP. */
static __always_inline uint32_t transport_of(struct __sk_buff *skb, uint8_t *protocol)
{
	uint8_t first;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return 0;
	if (first >> 4 == 4) {
		uint16_t fragment;

		if (bpf_skb_load_bytes(skb, 6, &fragment, 2) || bpf_skb_load_bytes(skb, 9, protocol, 1) ||
		    bpf_ntohs(fragment) & 0x1fff)
			return 0;
		return (first & 15) * 4;
	}
	if (first >> 4 == 6 && !bpf_skb_load_bytes(skb, 6, protocol, 1))
		return IPV6_BYTES;
	return 0;
}

/* The server's address, from the IP header. */
static __always_inline void server_of(struct __sk_buff *skb, struct kw_dns *dns, bool incoming, uint32_t transport)
{
	__builtin_memset(dns->remote, 0, sizeof(dns->remote));
	if (transport == IPV6_BYTES && dns->family == AF_INET6)
		bpf_skb_load_bytes(skb, incoming ? 8 : 24, dns->remote, 16);
	else
		bpf_skb_load_bytes(skb, incoming ? 12 : 16, dns->remote, 4);
}

static __noinline int dns_emit(struct __sk_buff *skb, const struct kw_tag *tag, uint32_t transport, uint32_t at,
			       uint32_t total_and_way)
{
	bool incoming = total_and_way >> 31;
	uint32_t total = total_and_way & 0xffff;
	uint32_t left = skb->len - at;
	uint32_t length = total < left ? total : left;
	struct kw_dns_room *room;
	struct kw_dns *dns;
	uint32_t size;
	uint8_t first = 0;

	if (length < DNS_HEADER_BYTES)
		return 0;
	if (length > KW_DNS_BYTES)
		length = KW_DNS_BYTES;
	room = room_take();
	if (!room) {
		lose(KW_RING_FULL);
		return 0;
	}
	dns = &room->dns;
	barrier_var(length); /* the verifier wants to see the bound tested */
	if (length == 0 || length > KW_DNS_BYTES || bpf_skb_load_bytes(skb, at, room->message, length))
		goto out;
	bpf_skb_load_bytes(skb, 0, &first, 1);
	dns->header = tag->record.header;
	dns->header.kind = KW_DNS;
	dns->header.time_ns = bpf_ktime_get_boot_ns();
	dns->process = tag->record.process;
	dns->root = tag->record.root;
	dns->cookie = tag->record.cookie;
	dns->depth = tag->record.depth;
	dns->total = total;
	dns->family = first >> 4 == 6 ? AF_INET6 : AF_INET;
	dns->protocol = tag->record.protocol;
	dns->incoming = incoming;
	dns->remote_port = DNS_PORT;
	server_of(skb, dns, incoming, transport);
	dns->message.offset = sizeof(*dns);
	dns->message.length = length;
	size = (sizeof(*dns) + length + 7) & ~7U;
	dns->header.size = size;
	if (size <= sizeof(*dns) + KW_DNS_BYTES)
		output(dns, size, dns->header.time_ns);
out:
	room->busy = 0;
	return 0;
}

enum { INCOMING = 1U << 31 };

static __noinline int dns_over_udp(struct __sk_buff *skb, const struct kw_tag *tag, uint32_t transport, uint32_t way)
{
	uint16_t ports[3]; /* source, destination, length */
	uint32_t length;

	if (bpf_skb_load_bytes(skb, transport, ports, sizeof(ports)) || ports[way ? 0 : 1] != bpf_htons(DNS_PORT))
		return 0;
	length = bpf_ntohs(ports[2]);
	if (length < UDP_BYTES)
		return 0;
	return dns_emit(skb, tag, transport, transport + UDP_BYTES, (length - UDP_BYTES) | way);
}

/*
 * DNS over TCP: each message after two bytes of its length. The tag remembers at which sequence number the next one
 * begins, so that the middle of a long one is not taken for a message; of a message only what its first segment holds
 * is looked at. Two bytes that come alone announce the message in the next segment.
 */
static __noinline int dns_over_tcp(struct __sk_buff *skb, struct kw_tag *tag, uint32_t transport, uint32_t way)
{
	struct kw_dns_way *dns = way ? &tag->dns[1] : &tag->dns[0];
	uint32_t sequence, at, left;
	uint16_t length;
	uint8_t words;

	if (bpf_skb_load_bytes(skb, transport + 4, &sequence, 4) || bpf_skb_load_bytes(skb, transport + 12, &words, 1))
		return 0;
	sequence = bpf_ntohl(sequence);
	at = transport + (words >> 4) * 4;
	for (int i = 0; i < 4; i++) {
		left = skb->len - at;
		if (skb->len <= at || left < 2)
			return 0;
		if (dns->next && (int32_t)(sequence - dns->next) < 0) {
			uint32_t skip = dns->next - sequence; /* the rest of a message that began earlier */

			if (skip >= left)
				return 0;
			at += skip;
			sequence += skip;
			continue;
		}
		if (dns->length && dns->next == sequence) { /* announced by the last segment */
			length = dns->length;
			dns->length = 0;
			dns_emit(skb, tag, transport, at, length | way);
			at += length;
			sequence += length;
			dns->next = sequence;
			continue;
		}
		if (bpf_skb_load_bytes(skb, at, &length, 2))
			return 0;
		length = bpf_ntohs(length);
		if (length < DNS_HEADER_BYTES)
			return 0;
		if (left == 2) {
			dns->length = length;
			dns->next = sequence + 2;
			return 0;
		}
		dns_emit(skb, tag, transport, at + 2, length | way);
		at += 2 + (uint32_t)length;
		sequence += 2 + (uint32_t)length;
		dns->next = sequence;
	}
	return 0;
}

static __always_inline int packet_seen(struct __sk_buff *skb, uint32_t way)
{
	uint32_t packets, transport;
	struct bpf_sock *sk = skb->sk;
	struct kw_tag *tag;
	uint64_t watches;
	uint8_t protocol;

	if (!sk)
		return LET_PASS;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return LET_PASS;
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, 0);
	if (!tag)
		return LET_PASS;
	watches = tag_watches(tag);
	if (!watches)
		return LET_PASS;
	packets = skb->gso_segs;
	if (!packets)
		packets = 1;
	if (way)
		net_count(watches, NET_CELL(wire_bytes_in), skb->len, NET_CELL(packets_in), packets);
	else
		net_count(watches, NET_CELL(wire_bytes_out), skb->len, NET_CELL(packets_out), packets);
	if (tag->record.protocol == IPPROTO_TCP && tag->record.remote_port != DNS_PORT)
		return LET_PASS;
	transport = transport_of(skb, &protocol);
	if (!transport)
		return LET_PASS;
	if (protocol == IPPROTO_UDP)
		dns_over_udp(skb, tag, transport, way);
	else if (protocol == IPPROTO_TCP)
		dns_over_tcp(skb, tag, transport, way);
	return LET_PASS;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	return packet_seen(skb, 0);
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return packet_seen(skb, INCOMING);
}

#endif
