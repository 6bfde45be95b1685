/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile bytes where netlink messages are read and where rows of an earlier life are compared (libFuzzer). Whatever
 * comes in: no sanitizer complains, what is found is each found once, and what is kept is in order.
 *
 * An input is a row of datagrams: a byte that says which dump, a byte of length, and so many bytes. Raw bytes seldom
 * look like messages, so an odd first byte lets the bytes be the body of one message of the dump's own kind.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>

#include "device.h"

enum { DUMPS = 5, KEPT = 16 };

static void require(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "broken: %s\n", what);
	abort();
}

static void feed(struct kw_device *device, uint8_t first, const uint8_t *bytes, uint8_t length)
{
	static const uint16_t kinds[DUMPS] = {TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, RTM_NEWLINK,
					      RTM_NEWADDR};
	enum kw_device_dump dump = first / 2 % DUMPS;
	struct nlmsghdr head = {.nlmsg_len = sizeof(head) + length, .nlmsg_type = kinds[dump]};
	size_t bytes_all = first % 2 ? head.nlmsg_len : length;
	uint8_t *exact = calloc(1, bytes_all + !bytes_all); /* so that a byte too far is seen */
	int told;

	require(exact, "memory");
	if (first % 2) {
		memcpy(exact, &head, sizeof(head));
		memcpy(exact + sizeof(head), bytes, length);
	} else {
		memcpy(exact, bytes, length);
	}
	told = kw_device_feed(device, dump, exact, bytes_all);
	require(told >= -4095 && told <= (KW_DEVICE_ENDED | KW_DEVICE_TORN), "a state or an error");
	free(exact);
}

static void check(const struct kw_device *device, const uint8_t *before, uint64_t before_bytes)
{
	struct kw_device_shown shown[KEPT];
	struct kw_device_port ports[KEPT];
	struct kw_device_found found;
	int64_t kept;

	kw_device_tell(device, &found);
	kept = kw_device_cut_connections(7, before, before_bytes, (const uint8_t *)found.connections,
					 found.connections_count * sizeof(*found.connections), KEPT, shown);
	require(kept == (int64_t)(found.connections_count < KEPT ? found.connections_count : KEPT), "as many as fit");
	for (int64_t i = 1; i < kept; i++)
		require(memcmp(&shown[i - 1], &shown[i], sizeof(shown[i])) <= 0, "connections are in order");
	kept = kw_device_cut_ports(7, before, before_bytes, (const uint8_t *)found.tcp,
				   found.tcp_count * sizeof(*found.tcp), KEPT, ports);
	require(kept == (int64_t)(found.tcp_count < KEPT ? found.tcp_count : KEPT), "as many as fit");
	for (int64_t i = 1; i < kept; i++)
		require(memcmp(&ports[i - 1], &ports[i], sizeof(ports[i])) < 0, "ports are in order, each once");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kw_device *device = kw_device_new(7);
	const uint8_t *at = data, *end = data + size;

	require(device, "a look");
	while (end - at >= 2) {
		uint8_t first = at[0], length = at[1];

		at += 2;
		length = length < end - at ? length : (uint8_t)(end - at);
		feed(device, first, at, length);
		at += length;
		if (first >= 250) {
			require(!kw_device_settle(device), "a namespace ends");
			check(device, data, size);
		}
	}
	require(!kw_device_settle(device), "a namespace ends");
	check(device, data, size);
	kw_device_free(device);
	return 0;
}
