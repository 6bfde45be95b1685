/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the kernel for whole dumps of its tables, over netlink sockets that somebody opened. Knows requests and how
 * answers arrive, not what they say: devicetable.c does.
 */
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "device.h"

enum {
	STATE_ESTABLISHED = 1 << 1, /* include/net/tcp_states.h */
	STATE_CLOSE = 1 << 7,	    /* of a UDP socket: it has no peer */
	STATE_LISTEN = 1 << 10,
	/* the kernel fills at most 32 KiB of it, more only for one link with hundreds of virtual functions */
	BUFFER_BYTES = 1 << 18,
	TRIES = 8, /* of what a change tore */
};

struct request {
	struct nlmsghdr head;
	union {
		/* of both families at once: a request by family walks the whole table of connections for each. It has
		 * no protocol: the type of the message is it. */
		struct inet_diag_req tcp;
		struct inet_diag_req_v2 udp;
		struct ifinfomsg link;
		struct ifaddrmsg address;
	};
};

static void request_make(struct request *request, enum kw_device_dump dump)
{
	size_t bytes;

	*request = (struct request){.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP};
	if (dump == KW_DUMP_TCP) {
		request->head.nlmsg_type = TCPDIAG_GETSOCK;
		request->tcp.idiag_states = STATE_ESTABLISHED | STATE_LISTEN;
		bytes = sizeof(request->tcp);
	} else if (dump == KW_DUMP_LINKS) {
		request->head.nlmsg_type = RTM_GETLINK;
		bytes = sizeof(request->link);
	} else if (dump == KW_DUMP_ADDRESSES) {
		request->head.nlmsg_type = RTM_GETADDR;
		bytes = sizeof(request->address);
	} else {
		request->head.nlmsg_type = SOCK_DIAG_BY_FAMILY;
		request->udp.sdiag_family = dump == KW_DUMP_UDP4 ? AF_INET : AF_INET6;
		request->udp.sdiag_protocol = IPPROTO_UDP;
		request->udp.idiag_states = STATE_CLOSE;
		bytes = sizeof(request->udp);
	}
	request->head.nlmsg_len = NLMSG_LENGTH(bytes);
}

/* A datagram into the buffer: its bytes. */
static int64_t received(int netlink, uint8_t *buffer)
{
	ssize_t bytes;

	do
		bytes = recv(netlink, buffer, BUFFER_BYTES, MSG_TRUNC);
	while (bytes < 0 && errno == EINTR);
	if (bytes < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	return bytes > BUFFER_BYTES ? -EMSGSIZE : bytes;
}

/* One dump, torn or not. Returns bits of enum kw_device_state. */
static int dump_once(struct kw_device *device, int netlink, enum kw_device_dump dump, uint8_t *buffer)
{
	struct request request;
	int state = 0;

	request_make(&request, dump);
	while (send(netlink, &request, request.head.nlmsg_len, 0) < 0)
		if (errno != EINTR)
			return -errno;
	while (!(state & KW_DEVICE_ENDED)) {
		int64_t bytes = received(netlink, buffer);
		int told = bytes < 0 ? (int)bytes : kw_device_feed(device, dump, buffer, (uint64_t)bytes);

		if (told < 0)
			return told;
		state |= told;
	}
	return state;
}

/* Dumps that belong together, until no change tore one of them. */
static int dump_all(struct kw_device *device, int netlink, enum kw_device_dump first, enum kw_device_dump last,
		    void (*forget)(struct kw_device *))
{
	uint8_t *buffer = malloc(BUFFER_BYTES);
	bool torn = true;
	int state = buffer ? 0 : -ENOMEM;

	for (int tried = 0; torn && state >= 0 && tried < TRIES; tried++) {
		forget(device);
		torn = false;
		for (enum kw_device_dump dump = first; state >= 0 && dump <= last; dump++) {
			state = dump_once(device, netlink, dump, buffer);
			torn |= state >= 0 && (state & KW_DEVICE_TORN);
		}
	}
	free(buffer);
	if (state < 0)
		forget(device);
	return state < 0 ? state : 0;
}

int kw_device_read_sockets(struct kw_device *device, int netlink)
{
	return dump_all(device, netlink, KW_DUMP_TCP, KW_DUMP_UDP6, kw_device_forget_sockets);
}

int kw_device_read_links(struct kw_device *device, int netlink)
{
	return dump_all(device, netlink, KW_DUMP_LINKS, KW_DUMP_ADDRESSES, kw_device_forget_links);
}

int kw_device_enter(int descriptor)
{
	return setns(descriptor, CLONE_NEWNET) ? -errno : 0;
}
