/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel's messages say about sockets, links and addresses (sock_diag(7), rtnetlink(7)), and at which
 * interface a socket is. Knows bytes only: not where they come from, nor what a report keeps of the rows.
 */
#include "internal.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "device.h"
#include "rowset.h"

enum { TCP_ESTABLISHED = 1, TCP_CLOSE = 7, TCP_LISTEN = 10 }; /* include/net/tcp_states.h; CLOSE: UDP without a peer */
enum { PLACES_KEPT = 256, ATTRIBUTE_TYPE = 0x3fff };

/* A socket, without holes. Ports are big-endian. */
struct socket_row {
	uint8_t local[16], remote[16]; /* IPv4 mapped */
	uint32_t bound, family;
	uint16_t local_port, remote_port;
};
_Static_assert(sizeof(struct socket_row) == 44, "rows are compared byte by byte");

struct address {
	uint32_t index;
	uint8_t bytes[16]; /* IPv4 mapped */
};

/* Where a local address is; remembered, for many sockets share one. */
struct place {
	uint8_t local[16];
	uint32_t bound;
	bool known;
	char name[16];
};

/* An array that grows. */
struct list {
	void *cells;
	uint64_t count, room;
};

struct kw_device {
	/* of the namespace being read */
	struct rowset sockets[KW_DEVICE_TABLES];
	struct list links, addresses;
	struct place places[PLACES_KEPT];
	bool settled; /* the links are of a namespace that is done with */
	/* of all of them */
	struct rowset ports[KW_DEVICE_TABLES]; /* of connections: unused */
	struct list connections;
};

static void *list_add(struct list *list, size_t width)
{
	if (list->count == list->room) {
		uint64_t room = list->room ? 2 * list->room : 64;
		void *cells = realloc(list->cells, room * width);

		if (!cells)
			return NULL;
		list->cells = cells;
		list->room = room;
	}
	return (uint8_t *)list->cells + list->count++ * width;
}

struct kw_device *kw_device_new(uint64_t seed)
{
	struct kw_device *device = calloc(1, sizeof(*device));

	for (int i = 0; device && i < KW_DEVICE_TABLES; i++) {
		device->sockets[i] = (struct rowset){.width = sizeof(struct socket_row), .seed = seed};
		device->ports[i] = (struct rowset){.width = sizeof(struct kw_device_port), .seed = seed};
	}
	return device;
}

void kw_device_free(struct kw_device *device)
{
	for (int i = 0; i < KW_DEVICE_TABLES; i++) {
		rowset_free(&device->sockets[i]);
		rowset_free(&device->ports[i]);
	}
	free(device->links.cells);
	free(device->addresses.cells);
	free(device->connections.cells);
	free(device);
}

void kw_device_forget_sockets(struct kw_device *device)
{
	for (int i = 0; i < KW_DEVICE_TABLES; i++)
		rowset_empty(&device->sockets[i]);
}

void kw_device_forget_links(struct kw_device *device)
{
	device->links.count = device->addresses.count = 0;
	device->settled = false;
}

int kw_device_name_socket(struct kw_device *device, enum kw_device_table table, uint32_t family, const uint8_t *local,
			  uint32_t local_port, const uint8_t *remote, uint32_t remote_port, uint32_t bound)
{
	struct socket_row row = {.bound = bound,
				 .family = family,
				 .local_port = htons((uint16_t)local_port),
				 .remote_port = htons((uint16_t)remote_port)};

	kw_address_of(row.local, (uint16_t)family, local);
	kw_address_of(row.remote, (uint16_t)family, remote);
	return rowset_put(&device->sockets[table], (const uint8_t *)&row) < 0 ? -ENOMEM : 0;
}

int kw_device_name_link(struct kw_device *device, const struct kw_device_link *link)
{
	struct kw_device_link *cell;

	if (device->settled)
		kw_device_forget_links(device);
	cell = list_add(&device->links, sizeof(*cell));
	if (!cell)
		return -ENOMEM;
	*cell = *link;
	return 0;
}

int kw_device_name_address(struct kw_device *device, uint32_t index, uint32_t family, const uint8_t *address)
{
	struct address *cell = list_add(&device->addresses, sizeof(*cell));

	if (!cell)
		return -ENOMEM;
	cell->index = index;
	kw_address_of(cell->bytes, (uint16_t)family, address);
	return 0;
}

/* A message of a dump of sockets: struct inet_diag_msg, and attributes that say nothing to us. */
static int feed_socket(struct kw_device *device, bool tcp, const uint8_t *body, uint64_t length)
{
	struct inet_diag_msg told;
	enum kw_device_table table = KW_DEVICE_CONNECTIONS;

	if (length < sizeof(told))
		return -EBADMSG;
	memcpy(&told, body, sizeof(told));
	if (told.idiag_family != AF_INET && told.idiag_family != AF_INET6)
		return 0;
	if (tcp && told.idiag_state == TCP_LISTEN)
		table = KW_DEVICE_TCP;
	else if (!tcp && told.idiag_state == TCP_CLOSE)
		table = KW_DEVICE_UDP;
	else if (!tcp || told.idiag_state != TCP_ESTABLISHED)
		return 0;
	return kw_device_name_socket(device, table, told.idiag_family, (const uint8_t *)told.id.idiag_src,
				     ntohs(told.id.idiag_sport), (const uint8_t *)told.id.idiag_dst,
				     ntohs(told.id.idiag_dport), told.id.idiag_if);
}

/* The next attribute and its bytes; NULL: there is none, or only the padding of a message. */
static const uint8_t *attribute_next(const uint8_t **at, uint64_t *left, struct rtattr *attribute)
{
	const uint8_t *bytes = *at + sizeof(*attribute);
	uint64_t step;

	if (*left < sizeof(*attribute))
		return NULL;
	memcpy(attribute, *at, sizeof(*attribute));
	if (attribute->rta_len < sizeof(*attribute) || attribute->rta_len > *left)
		return NULL;
	step = RTA_ALIGN((uint64_t)attribute->rta_len);
	step = step < *left ? step : *left;
	*at += step;
	*left -= step;
	attribute->rta_type &= ATTRIBUTE_TYPE;
	attribute->rta_len -= sizeof(*attribute);
	return bytes;
}

/* struct ifinfomsg with IFLA_STATS64, the figures of /proc/net/dev. */
static int feed_link(struct kw_device *device, const uint8_t *body, uint64_t length)
{
	struct kw_device_link link = {};
	struct ifinfomsg told;
	struct rtattr attribute;
	const uint8_t *bytes;
	bool counted = false;

	if (length < sizeof(told))
		return -EBADMSG;
	memcpy(&told, body, sizeof(told));
	body += sizeof(told);
	length -= sizeof(told);
	link.index = (uint32_t)told.ifi_index;
	while ((bytes = attribute_next(&body, &length, &attribute))) {
		if (attribute.rta_type == IFLA_IFNAME && attribute.rta_len <= sizeof(link.name)) {
			memcpy(link.name, bytes, attribute.rta_len);
			link.name[sizeof(link.name) - 1] = 0;
		}
		/* struct rtnl_link_stats64 begins with these four */
		if (attribute.rta_type == IFLA_STATS64 && attribute.rta_len >= 4 * sizeof(uint64_t)) {
			memcpy(&link.packets_in, bytes, sizeof(uint64_t));
			memcpy(&link.packets_out, bytes + sizeof(uint64_t), sizeof(uint64_t));
			memcpy(&link.bytes_in, bytes + 2 * sizeof(uint64_t), sizeof(uint64_t));
			memcpy(&link.bytes_out, bytes + 3 * sizeof(uint64_t), sizeof(uint64_t));
			counted = true;
		}
	}
	return link.name[0] && counted ? kw_device_name_link(device, &link) : 0;
}

/* struct ifaddrmsg; IFA_LOCAL, for the address of a point-to-point interface is its peer's. */
static int feed_address(struct kw_device *device, const uint8_t *body, uint64_t length)
{
	const uint8_t *bytes, *local = NULL, *address = NULL;
	struct ifaddrmsg told;
	struct rtattr attribute;

	if (length < sizeof(told))
		return -EBADMSG;
	memcpy(&told, body, sizeof(told));
	body += sizeof(told);
	length -= sizeof(told);
	if (told.ifa_family != AF_INET && told.ifa_family != AF_INET6)
		return 0;
	while ((bytes = attribute_next(&body, &length, &attribute))) {
		if (attribute.rta_len != (told.ifa_family == AF_INET ? 4 : 16))
			continue;
		if (attribute.rta_type == IFA_LOCAL)
			local = bytes;
		else if (attribute.rta_type == IFA_ADDRESS)
			address = bytes;
	}
	address = local ? local : address;
	return address ? kw_device_name_address(device, told.ifa_index, told.ifa_family, address) : 0;
}

/* How a dump ended: its error comes with its end. */
static int feed_end(const uint8_t *body, uint64_t length)
{
	int32_t code = 0;

	if (length >= sizeof(code))
		memcpy(&code, body, sizeof(code));
	if (code < -4095) /* MAX_ERRNO */
		return -EBADMSG;
	return code < 0 ? code : KW_DEVICE_ENDED;
}

static int feed_message(struct kw_device *device, enum kw_device_dump dump, const struct nlmsghdr *head,
			const uint8_t *body)
{
	static const uint16_t answers[] = {
	    [KW_DUMP_TCP] = TCPDIAG_GETSOCK, [KW_DUMP_UDP4] = SOCK_DIAG_BY_FAMILY, [KW_DUMP_UDP6] = SOCK_DIAG_BY_FAMILY,
	    [KW_DUMP_LINKS] = RTM_NEWLINK,   [KW_DUMP_ADDRESSES] = RTM_NEWADDR,
	};
	uint64_t length = head->nlmsg_len - sizeof(*head);

	if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR)
		return feed_end(body, length);
	if (head->nlmsg_type != answers[dump])
		return 0;
	if (dump == KW_DUMP_LINKS)
		return feed_link(device, body, length);
	if (dump == KW_DUMP_ADDRESSES)
		return feed_address(device, body, length);
	return feed_socket(device, dump == KW_DUMP_TCP, body, length);
}

int kw_device_feed(struct kw_device *device, enum kw_device_dump dump, const uint8_t *bytes, uint64_t length)
{
	struct nlmsghdr head;
	int state = 0, one;
	uint64_t step;

	if (length < sizeof(head))
		return -EBADMSG;
	for (; length >= sizeof(head); bytes += step, length -= step) {
		memcpy(&head, bytes, sizeof(head));
		if (head.nlmsg_len < sizeof(head) || head.nlmsg_len > length)
			return -EBADMSG;
		one = feed_message(device, dump, &head, bytes + sizeof(head));
		if (one < 0)
			return one;
		state |= one | (head.nlmsg_flags & NLM_F_DUMP_INTR ? KW_DEVICE_TORN : 0);
		step = NLMSG_ALIGN((uint64_t)head.nlmsg_len);
		step = step < length ? step : length;
	}
	return state;
}

static const char *link_name(const struct kw_device *device, uint32_t index)
{
	const struct kw_device_link *links = device->links.cells;

	for (uint64_t i = 0; i < device->links.count; i++)
		if (links[i].index == index)
			return links[i].name;
	return NULL;
}

/* The one interface that has this address; "": several have it (a link-local one may live on each). NULL: none. */
static const char *link_with(const struct kw_device *device, const uint8_t *bytes)
{
	const struct address *addresses = device->addresses.cells;
	const char *found = NULL;

	for (uint64_t i = 0; i < device->addresses.count; i++) {
		const char *name;

		if (memcmp(addresses[i].bytes, bytes, sizeof(addresses[i].bytes)) != 0)
			continue;
		name = link_name(device, addresses[i].index);
		if (name && found && strcmp(name, found) != 0)
			return "";
		found = name ? name : found;
	}
	return found;
}

static const char *name_of(const struct kw_device *device, const uint8_t *local, uint32_t bound)
{
	static const uint8_t any[16] = {}, any4[16] = {[10] = 0xff, 0xff};
	static const uint8_t loopback[16] = {[10] = 0xff, 0xff, 127, 0, 0, 1};
	const char *name = bound ? link_name(device, bound) : NULL;

	if (name) /* the device it is bound to knows better than the address */
		return name;
	if (!memcmp(local, any, sizeof(any)))
		return "::";
	if (!memcmp(local, any4, sizeof(any4)))
		return "0.0.0.0";
	name = link_with(device, local);
	/* all of 127.0.0.0/8 is local to the loopback interface, whatever addresses it lists */
	if (!name && !memcmp(local, loopback, 13))
		name = link_with(device, loopback);
	return name ? name : "";
}

static const char *place_of(struct kw_device *device, const struct socket_row *row)
{
	uint32_t hash = row->bound * 31 + row->local[15] + row->local[14] * 7 + row->local[12] * 13;
	struct place *place = &device->places[hash % PLACES_KEPT];
	const char *name;

	if (!place->known || place->bound != row->bound ||
	    memcmp(place->local, row->local, sizeof(place->local)) != 0) {
		memcpy(place->local, row->local, sizeof(place->local));
		place->bound = row->bound;
		place->known = true;
		name = name_of(device, row->local, row->bound);
		memset(place->name, 0, sizeof(place->name));
		memcpy(place->name, name, strnlen(name, sizeof(place->name) - 1));
	}
	return place->name;
}

static int settle_connection(struct kw_device *device, const struct socket_row *row)
{
	struct kw_device_connection *cell = list_add(&device->connections, sizeof(*cell));

	if (!cell)
		return -ENOMEM;
	memcpy(cell->remote, row->remote, sizeof(cell->remote));
	memcpy(cell->remote_port, &row->remote_port, sizeof(cell->remote_port));
	memcpy(cell->local_port, &row->local_port, sizeof(cell->local_port));
	memcpy(cell->interface, place_of(device, row), sizeof(cell->interface));
	return 0;
}

static int settle_port(struct kw_device *device, enum kw_device_table table, const struct socket_row *row)
{
	struct kw_device_port port;

	memcpy(port.port, &row->local_port, sizeof(port.port));
	memcpy(port.interface, place_of(device, row), sizeof(port.interface));
	return rowset_put(&device->ports[table], (const uint8_t *)&port) < 0 ? -ENOMEM : 0;
}

int kw_device_settle(struct kw_device *device)
{
	int failed = 0;

	memset(device->places, 0, sizeof(device->places));
	for (uint32_t table = 0; table < KW_DEVICE_TABLES; table++) {
		const struct rowset *sockets = &device->sockets[table];

		for (uint32_t i = 0; !failed && i < sockets->count; i++) {
			const struct socket_row *row = (const struct socket_row *)rowset_at(sockets, i);

			failed = table == KW_DEVICE_CONNECTIONS ? settle_connection(device, row)
								: settle_port(device, table, row);
		}
	}
	kw_device_forget_sockets(device);
	device->settled = true;
	return failed;
}

void kw_device_tell(const struct kw_device *device, struct kw_device_found *found)
{
	*found = (struct kw_device_found){
	    .tcp = (const struct kw_device_port *)device->ports[KW_DEVICE_TCP].rows,
	    .tcp_count = device->ports[KW_DEVICE_TCP].count,
	    .udp = (const struct kw_device_port *)device->ports[KW_DEVICE_UDP].rows,
	    .udp_count = device->ports[KW_DEVICE_UDP].count,
	    .connections = device->connections.cells,
	    .connections_count = device->connections.count,
	    .links = device->links.cells,
	    .links_count = device->links.count,
	};
}
