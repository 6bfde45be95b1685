/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network part of internal.h, which alone includes this.
 *
 * sockets.c   what happens to sockets             sockettable.c  the open ones
 * remotes.c   remotes and ports per watch         offenders.c    expected destinations and ports
 * address.c   addresses and prefixes, their text  dns.c          DNS messages
 * names.c     names of addresses, DNS records     netlines.c     the lines of all these
 */
#ifndef KINWATCH_NETWORK_H
#define KINWATCH_NETWORK_H

struct kw_engine;

enum {
	SOCKETS_KEPT = 65536,	     /* sockets of kin at once */
	REMOTES_KEPT = 1024,	     /* distinct remotes per watch, and as many listening ports */
	OFFENDERS_KEPT = 64,	     /* distinct addresses or ports that break an expectation at once */
	PREFIXES_MOST = 4096,	     /* networks or ports in one expectation */
	NAMES_KEPT = 4096,	     /* addresses whose names are remembered */
	PATTERNS_BYTES_MOST = 65536, /* of the names in one expectation */
};

struct kw_remote_cell {
	struct kw_remote remote; /* of a port: protocol and port only */
	uint64_t mark;		 /* of its last use */
	uint32_t open;		 /* sockets that have it now */
	uint16_t next;		 /* in its hash chain */
	uint16_t older, newer;	 /* in the order of use */
};

struct kw_remotes {
	struct kw_remote_cell cells[REMOTES_KEPT];
	uint16_t chains[REMOTES_KEPT * 2];
	uint16_t count, oldest, newest;
	uint64_t open_unkept; /* sockets whose remote found no room */
	struct kw_evictions evictions;
};

enum kw_expected { EXPECT_DESTINATIONS, EXPECT_PORTS, EXPECTATIONS };

/* An address, or a port, that is not expected, and the sockets that have it now. */
struct kw_offender {
	uint8_t address[16]; /* zero for a port */
	uint16_t port;	     /* of an address: only if ports are expected there */
	uint32_t sockets;
};

struct kw_offenders {
	struct kw_offender kept[OFFENDERS_KEPT];
	uint32_t count;
	uint32_t beyond; /* sockets of those that found no room */
	bool alarmed;
	uint64_t since_wall_ns; /* of the alarm */
	struct kw_id last;	/* owner of the last offending socket */
};

struct kw_net_expect {
	uint8_t *destinations; /* as kw_engine_expect_destinations() takes them */
	char *names;	       /* of destinations: patterns, each ended by a zero byte */
	uint16_t *ports;
	uint32_t names_bytes;
	bool to_ports; /* some destination has a port: offenders are told with theirs */
	uint32_t counts[EXPECTATIONS];
	bool judged[EXPECTATIONS];
	struct kw_offenders offenders[EXPECTATIONS];
};

enum socket_flag {
	SOCKET_USED = 1,
	SOCKET_REMOTE = 2,   /* has a remote */
	SOCKET_INCOMING = 4, /* accepted */
	SOCKET_LISTENS = 8,
	SOCKET_PEER = 16,    /* its remote is whom it last exchanged a datagram with */
	SOCKET_DOUBTED = 32, /* during a sync: not told of yet */
};

/* A socket of kin. Masks are of slots. */
struct kw_open_socket {
	uint64_t cookie;
	struct kw_id owner;
	uint64_t watches;
	uint64_t kept[EXPECTATIONS], unkept[EXPECTATIONS];    /* its remote, its port: how each watch's set holds it */
	uint64_t offends[EXPECTATIONS], beyond[EXPECTATIONS]; /* how each watch's offenders hold it */
	uint8_t remote[16];				      /* IPv4 mapped */
	uint16_t remote_port, local_port;
	uint16_t protocol;
	uint16_t flags;
	uint32_t next;		       /* in its hash chain, or in the free list */
	uint32_t older, newer;	       /* in the order of records */
	uint32_t of_before, of_behind; /* in the list of its owner, if it is not TCP */
};

struct kw_sockets {
	struct kw_open_socket *cells; /* room for so many; at most SOCKETS_KEPT */
	uint32_t room;
	uint32_t *chains, *owners; /* SOCKETS_KEPT each; by cookie, by owner */
	uint32_t used, free_cell, count;
	uint32_t oldest, newest;
};

struct kw_name {
	uint8_t address[16];
	uint64_t told;	   /* slots whose kin had an answer with this address */
	uint64_t expected; /* slots whose kin had one with a name that is expected */
	uint16_t next, older, newer;
	uint8_t length;
	char text[255];
};

struct kw_names {
	struct kw_name *cells; /* NAMES_KEPT */
	uint16_t *chains;
	uint16_t count, oldest, newest;
};

enum { DNS_ANSWERS = 32, DNS_NAME_TEXT = 1024, ADDRESS_TEXT = 40, ENDPOINT_TEXT = 48 };

/* What an answer says: an address, or else a name. */
struct kw_dns_answer {
	uint16_t length;
	bool is_address;
	uint8_t address[16];
	char text[DNS_NAME_TEXT];
};

/* What a DNS message says. */
struct kw_dns_message {
	char name[DNS_NAME_TEXT];
	uint32_t name_length;
	uint16_t type;
	uint8_t rcode;
	bool question; /* name and type are known */
	bool response, truncated, malformed;
	uint32_t answers;
	struct kw_dns_answer answer[DNS_ANSWERS];
};

/* remotes.c */
bool kw_remote_note(struct kw_engine *engine, struct kw_remotes *remotes, const struct kw_remote *remote, bool open);
void kw_remote_done(struct kw_engine *engine, struct kw_remotes *remotes, const struct kw_remote *remote, bool kept);
bool kw_remote_is_open(struct kw_remotes *remotes, const struct kw_remote *remote);

/* sockettable.c */
int kw_sockets_new(struct kw_sockets *sockets);
void kw_sockets_free(struct kw_sockets *sockets);
bool kw_sockets_have_room(struct kw_sockets *sockets);
struct kw_open_socket *kw_socket_add(struct kw_sockets *sockets, const struct kw_socket *record);
struct kw_open_socket *kw_socket_find(struct kw_sockets *sockets, uint64_t cookie);
void kw_socket_touch(struct kw_sockets *sockets, struct kw_open_socket *socket);
void kw_socket_remove(struct kw_sockets *sockets, struct kw_open_socket *socket);
uint32_t kw_sockets_of(struct kw_sockets *sockets, uint32_t pid, uint64_t start_ns);

static inline struct kw_open_socket *kw_socket_at(struct kw_sockets *sockets, uint32_t index)
{
	return &sockets->cells[index - 1];
}

/* sockets.c */
void kw_socket_happens(struct kw_engine *engine, const struct kw_socket *record);
/* A sync begins, and ends. */
void kw_sockets_doubt(struct kw_engine *engine);
void kw_sockets_settle(struct kw_engine *engine);
void kw_sockets_owner_ends(struct kw_engine *engine, uint32_t pid, uint64_t start_ns);
void kw_sockets_unwatch(struct kw_engine *engine, uint32_t slot);
void kw_sockets_judge(struct kw_engine *engine, uint32_t slot, enum kw_expected what);

/* offenders.c */
void kw_offend(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket);
void kw_offend_no_more(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket);
void kw_offend_anew(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket, enum kw_expected what,
		    bool answer);
void kw_expect_nothing(struct kw_engine *engine, uint32_t slot);

/* address.c: addresses are 16 bytes, IPv4 mapped (::ffff:a.b.c.d) */
void kw_address_of(uint8_t *address, uint16_t family, const uint8_t *bytes);
bool kw_address_is_ipv4(const uint8_t *address);
bool kw_address_within(const uint8_t *address, const uint8_t *prefix);
char *kw_put_address(char *at, const uint8_t *address);
char *kw_put_endpoint(char *at, const uint8_t *address, uint16_t port);
char *kw_put_prefix(char *at, const uint8_t *prefix);

/* dns.c */
void kw_dns_read(struct kw_dns_message *message, const uint8_t *bytes, uint32_t length, bool cut);

/* names.c */
int kw_names_new(struct kw_names *names);
void kw_names_free(struct kw_names *names);
const struct kw_name *kw_name_of(struct kw_engine *engine, const uint8_t *address);
bool kw_name_is_expected(struct kw_engine *engine, uint32_t slot, const uint8_t *address);
void kw_names_judge(struct kw_engine *engine, uint32_t slot);
void kw_names_unwatch(struct kw_engine *engine, uint32_t slot);
void kw_dns_happens(struct kw_engine *engine, const struct kw_dns *record);

/* netlines.c */
void kw_line_socket(struct kw_engine *engine, uint32_t slot, const struct kw_socket *record,
		    const struct kw_open_socket *socket);
void kw_line_dns(struct kw_engine *engine, uint32_t slot, const struct kw_dns *record,
		 const struct kw_dns_message *message);

#endif
