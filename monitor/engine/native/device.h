/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the whole device does on the network: the C API. Declarations only: cffi reads this file too.
 *
 * devicetable.c   netlink messages -> rows       devicedump.c   asks the kernel for the messages
 * devicecut.c     two sets of rows -> the entries of a report that are worth most
 *
 * One thread at a time uses a kw_device. Results >= 0; failures are negative errno.
 */

/* A port that takes connections or datagrams; compared byte by byte it is in order. */
struct kw_device_port {
	uint8_t port[2];    /* big-endian */
	char interface[16]; /* padded with zeros: of the local address; the wildcard "0.0.0.0" or "::"; "": unknown */
};

/* An established connection of TCP. */
struct kw_device_connection {
	uint8_t remote[16];	/* IPv4 as ::ffff:a.b.c.d */
	uint8_t remote_port[2]; /* big-endian, as the next */
	uint8_t local_port[2];
	char interface[16];
};

/* The same as a report shows it; compared byte by byte it is in order. */
struct kw_device_shown {
	char remote[48]; /* ip:port, IPv6 in brackets */
	uint8_t local_port[2];
	char interface[16];
};

/* An interface and its counters since it came up. */
struct kw_device_link {
	uint64_t packets_in, packets_out, bytes_in, bytes_out;
	uint32_t index;
	char name[16];
};

/* What was found; the pointers stay valid until the next call with the same kw_device. */
struct kw_device_found {
	const struct kw_device_port *tcp; /* each once, in no order; as udp */
	const struct kw_device_port *udp;
	const struct kw_device_connection *connections; /* in no order */
	const struct kw_device_link *links;		/* of the namespace looked into last */
	uint64_t tcp_count, udp_count, connections_count, links_count;
};

enum kw_device_table { KW_DEVICE_CONNECTIONS = 0, KW_DEVICE_TCP = 1, KW_DEVICE_UDP = 2, KW_DEVICE_TABLES = 3 };

/* What a dump asks for. */
enum kw_device_dump { KW_DUMP_TCP = 0, KW_DUMP_UDP4 = 1, KW_DUMP_UDP6 = 2, KW_DUMP_LINKS = 3, KW_DUMP_ADDRESSES = 4 };

/* What kw_device_feed() found out about a dump, bits. */
enum kw_device_state { KW_DEVICE_ENDED = 1, KW_DEVICE_TORN = 2 };

struct kw_device;

/* seed: any secret number, so that nobody outside can choose ports that collide in our tables. NULL: no memory. */
struct kw_device *kw_device_new(uint64_t seed);
void kw_device_free(struct kw_device *device);

/*
 * A namespace: read both tables, or name their rows, then settle. Sockets are read over a NETLINK_SOCK_DIAG socket,
 * links and addresses over a NETLINK_ROUTE socket, each opened in that namespace; a dump that a change tore is read
 * again, and the last of several is taken as it is; of one that failed nothing is kept. -EBADMSG: the kernel answered
 * what is no answer; -EMSGSIZE: more than fits; -ETIMEDOUT: nothing within the socket's SO_RCVTIMEO; else what the
 * kernel said.
 */
int kw_device_read_sockets(struct kw_device *device, int netlink);
int kw_device_read_links(struct kw_device *device, int netlink);
/* family: AF_INET or AF_INET6. bound: index of the interface the socket is bound to, 0: none. */
int kw_device_name_socket(struct kw_device *device, enum kw_device_table table, uint32_t family, const uint8_t *local,
			  uint32_t local_port, const uint8_t *remote, uint32_t remote_port, uint32_t bound);
int kw_device_name_link(struct kw_device *device, const struct kw_device_link *link);
int kw_device_name_address(struct kw_device *device, uint32_t index, uint32_t family, const uint8_t *address);
/* Make of them what a report knows, and add it to what was found. The next namespace begins. */
int kw_device_settle(struct kw_device *device);
/* Begin again with the sockets, or with the links and addresses, of this namespace. */
void kw_device_forget_sockets(struct kw_device *device);
void kw_device_forget_links(struct kw_device *device);
void kw_device_tell(const struct kw_device *device, struct kw_device_found *found);

/* One datagram of a dump. Returns bits of enum kw_device_state. */
int kw_device_feed(struct kw_device *device, enum kw_device_dump dump, const uint8_t *bytes, uint64_t length);
/* Move this thread into the network namespace that a descriptor names. */
int kw_device_enter(int descriptor);

/*
 * At most `limit` of the rows `now`: those that are not among `before`, then those whose port or remote address fewest
 * others share, then the first in order. Written in order. Returns how many.
 */
int64_t kw_device_cut_ports(uint64_t seed, const uint8_t *before, uint64_t before_bytes, const uint8_t *now,
			    uint64_t now_bytes, uint64_t limit, struct kw_device_port *out);
int64_t kw_device_cut_connections(uint64_t seed, const uint8_t *before, uint64_t before_bytes, const uint8_t *now,
				  uint64_t now_bytes, uint64_t limit, struct kw_device_shown *out);
