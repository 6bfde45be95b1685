/* SPDX-License-Identifier: Apache-2.0 */
/* Makes one socket of every family that is neither IPv4 nor IPv6, and tells which the kernel has. */
#include "net.h"
#include <linux/netlink.h>

static const struct {
	int family, type, protocol;
	const char *name;
} families[] = {
    {AF_UNIX, SOCK_STREAM, 0, "unix"},	{AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, "netlink"},
    {AF_PACKET, SOCK_RAW, 0, "packet"}, {AF_VSOCK, SOCK_STREAM, 0, "vsock"},
    {AF_ALG, SOCK_SEQPACKET, 0, "alg"}, {AF_BLUETOOTH, SOCK_RAW, 1, "bluetooth"},
    {AF_CAN, SOCK_RAW, 1, "can"},	{AF_XDP, SOCK_RAW, 0, "xdp"},
};

int main(void)
{
	for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++) {
		int fd = socket(families[i].family, families[i].type, families[i].protocol);

		fact("family", "\"name\":\"%s\",\"number\":%d,\"made\":%s", families[i].name, families[i].family,
		     fd >= 0 ? "true" : "false");
	}
	tell_self("done");
	hold();
	return 0;
}
