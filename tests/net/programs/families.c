/* SPDX-License-Identifier: Apache-2.0 */
/* Makes and uses one socket of every family that is neither IPv4 nor IPv6, and tells which the kernel has. */
#include "net.h"
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

static void tell_used(const char *name, ssize_t sent)
{
	fact("family", "\"name\":\"%s\",\"used\":%s", name, sent > 0 ? "true" : "false");
}

static ssize_t over_unix(void)
{
	int pair[2];

	return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) ? -1 : send(pair[0], "x", 1, 0);
}

static ssize_t over_netlink(void)
{
	struct {
		struct nlmsghdr header;
		struct rtgenmsg message;
	} request = {.header = {.nlmsg_len = sizeof(request),
				.nlmsg_type = RTM_GETLINK,
				.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};

	return send(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), &request, sizeof(request), 0);
}

static ssize_t over_packet(void)
{
	struct sockaddr_ll loopback = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex("lo"), .sll_halen = 6};
	char frame[60] = {0};

	return sendto(socket(AF_PACKET, SOCK_RAW, 0), frame, sizeof(frame), 0, (struct sockaddr *)&loopback,
		      sizeof(loopback));
}

int main(void)
{
	tell_used("unix", over_unix());
	tell_used("netlink", over_netlink());
	tell_used("packet", over_packet());
	tell_self("done");
	hold();
	return 0;
}
