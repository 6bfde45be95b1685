/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lines of sockets and of DNS. Knows what a line says and in which order, and the words for the kernel's numbers;
 * decides nothing. A number that has no word here is written as it is.
 */
#include "internal.h"

#include <netinet/in.h>
#include <sys/socket.h>

struct word {
	uint32_t number;
	const char *text;
};

#define ERRNO(name)                                                                                                    \
	{                                                                                                              \
		name, #name                                                                                            \
	}

static const struct word results[] = {
    ERRNO(ECONNREFUSED),    ERRNO(ETIMEDOUT),	 ERRNO(EHOSTUNREACH), ERRNO(ENETUNREACH),
    ERRNO(ECONNRESET),	    ERRNO(ECONNABORTED), ERRNO(EACCES),	      ERRNO(EPERM),
    ERRNO(EADDRNOTAVAIL),   ERRNO(EADDRINUSE),	 ERRNO(EPIPE),	      ERRNO(EPROTO),
    ERRNO(ENOBUFS),	    ERRNO(ENOMEM),	 ERRNO(EAFNOSUPPORT), ERRNO(EINPROGRESS),
    ERRNO(EALREADY),	    ERRNO(EISCONN),	 ERRNO(EINVAL),	      ERRNO(ENETDOWN),
    ERRNO(EHOSTDOWN),	    ERRNO(ENOTCONN),	 ERRNO(EMSGSIZE),     ERRNO(EINTR),
    ERRNO(EAGAIN),	    ERRNO(ECANCELED),	 ERRNO(EPROTOTYPE),   ERRNO(EPROTONOSUPPORT),
    ERRNO(ESOCKTNOSUPPORT), ERRNO(EOPNOTSUPP),	 ERRNO(EDESTADDRREQ), ERRNO(ENOPROTOOPT),
    ERRNO(ENETRESET),	    ERRNO(ESHUTDOWN),	 ERRNO(ETOOMANYREFS), ERRNO(ENONET),
    ERRNO(EBADF),	    ERRNO(EIO),		 ERRNO(EFAULT),	      ERRNO(ENOENT),
    ERRNO(EREMOTEIO),
};

static const struct word protocols[] = {
    {IPPROTO_TCP, "tcp"},	  {IPPROTO_UDP, "udp"},	      {IPPROTO_MPTCP, "mptcp"},
    {IPPROTO_ICMP, "icmp"},	  {IPPROTO_ICMPV6, "icmpv6"}, {IPPROTO_SCTP, "sctp"},
    {IPPROTO_UDPLITE, "udplite"}, {IPPROTO_DCCP, "dccp"},     {IPPROTO_RAW, "raw"},
};

static const struct word families[] = {
    {AF_UNIX, "unix"},
    {AF_INET, "ipv4"},
    {AF_AX25, "ax25"},
    {AF_IPX, "ipx"},
    {AF_APPLETALK, "appletalk"},
    {AF_X25, "x25"},
    {AF_INET6, "ipv6"},
    {AF_KEY, "key"},
    {AF_NETLINK, "netlink"},
    {AF_PACKET, "packet"},
    {AF_RDS, "rds"},
    {AF_PPPOX, "pppox"},
    {AF_LLC, "llc"},
    {AF_IB, "ib"},
    {AF_CAN, "can"},
    {AF_TIPC, "tipc"},
    {AF_BLUETOOTH, "bluetooth"},
    {AF_RXRPC, "rxrpc"},
    {AF_PHONET, "phonet"},
    {AF_IEEE802154, "ieee802154"},
    {AF_CAIF, "caif"},
    {AF_ALG, "alg"},
    {AF_NFC, "nfc"},
    {AF_VSOCK, "vsock"},
    {AF_KCM, "kcm"},
    {AF_QIPCRTR, "qipcrtr"},
    {AF_SMC, "smc"},
    {AF_XDP, "xdp"},
    {45, "mctp"},
};

static const struct word types[] = {
    {SOCK_STREAM, "stream"},	   {SOCK_DGRAM, "dgram"}, {SOCK_RAW, "raw"},	   {SOCK_RDM, "rdm"},
    {SOCK_SEQPACKET, "seqpacket"}, {SOCK_DCCP, "dccp"},	  {SOCK_PACKET, "packet"},
};

static const struct word questions[] = {
    {1, "A"},	   {2, "NS"},	  {5, "CNAME"},	  {6, "SOA"},	{12, "PTR"},   {13, "HINFO"},
    {15, "MX"},	   {16, "TXT"},	  {28, "AAAA"},	  {33, "SRV"},	{35, "NAPTR"}, {43, "DS"},
    {46, "RRSIG"}, {47, "NSEC"},  {48, "DNSKEY"}, {52, "TLSA"}, {64, "SVCB"},  {65, "HTTPS"},
    {251, "IXFR"}, {252, "AXFR"}, {255, "ANY"},	  {257, "CAA"},
};

static const struct word rcodes[] = {
    {0, "NOERROR"},  {1, "FORMERR"}, {2, "SERVFAIL"}, {3, "NXDOMAIN"}, {4, "NOTIMP"},	{5, "REFUSED"},
    {6, "YXDOMAIN"}, {7, "YXRRSET"}, {8, "NXRRSET"},  {9, "NOTAUTH"},  {10, "NOTZONE"},
};

static char *put_word(char *at, const struct word *words, size_t count, uint32_t number)
{
	*at++ = '"';
	for (size_t i = 0; i < count; i++) {
		if (words[i].number == number) {
			at = kw_put(at, words[i].text, strlen(words[i].text));
			*at++ = '"';
			return at;
		}
	}
	at = kw_put_number(at, number);
	*at++ = '"';
	return at;
}

#define PUT_WORD(at, words, number) put_word((at), (words), sizeof(words) / sizeof((words)[0]), (number))

static char *put_cookie(char *at, uint64_t cookie)
{
	at = PUT(at, ",\"connection_id\":\"");
	at = kw_put_number(at, cookie);
	*at++ = '"';
	return at;
}

static char *put_quoted_endpoint(char *at, const uint8_t *address, uint16_t port)
{
	*at++ = '"';
	at = kw_put_endpoint(at, address, port);
	*at++ = '"';
	return at;
}

static const char *event_of(const struct kw_socket *record, const struct kw_open_socket *socket)
{
	switch (record->event) {
	case KW_SOCKET_CONNECTED:
		return "connect";
	case KW_SOCKET_ACCEPTED:
		return "accept";
	case KW_SOCKET_LISTENING:
		return "listen";
	case KW_SOCKET_PEER:
		return "peer";
	case KW_SOCKET_CLOSED:
		return "close";
	case KW_SOCKET_FAMILY:
		return "socket";
	default: /* it was there before anybody looked */
		if (socket->flags & SOCKET_LISTENS)
			return "listen";
		return socket->flags & SOCKET_INCOMING ? "accept" : "connect";
	}
}

/* An IPv6 socket that talks IPv4 has mapped addresses, a local one that is bound to any address not yet. */
static char *put_ends(struct kw_engine *engine, char *at, const struct kw_socket *record,
		      const struct kw_open_socket *socket)
{
	bool shown =
	    record->event == KW_SOCKET_CLOSED ? !(socket->flags & SOCKET_PEER) : record->event != KW_SOCKET_LISTENING;
	bool remote = shown && socket->flags & SOCKET_REMOTE;
	const struct kw_name *name = remote ? kw_name_of(engine, socket->remote) : NULL;
	uint8_t local[16];
	bool ipv4;

	kw_address_of(local, record->family, record->local);
	ipv4 = kw_address_is_ipv4(local) || (remote && kw_address_is_ipv4(socket->remote));
	at = ipv4 ? PUT(at, ",\"family\":\"ipv4\"") : PUT(at, ",\"family\":\"ipv6\"");
	at = PUT(at, ",\"local\":");
	at = put_quoted_endpoint(at, local, record->local_port);
	if (remote) {
		at = PUT(at, ",\"remote\":");
		at = put_quoted_endpoint(at, socket->remote, socket->remote_port);
	}
	if (name) {
		at = PUT(at, ",\"name\":");
		at = kw_put_string(at, (const uint8_t *)name->text, name->length, &engine->lossy);
	}
	return at;
}

static char *put_connection(struct kw_engine *engine, char *at, const struct kw_socket *record,
			    const struct kw_open_socket *socket)
{
	at = put_cookie(at, record->cookie);
	at = PUT(at, ",\"protocol\":");
	at = PUT_WORD(at, protocols, record->protocol);
	at = put_ends(engine, at, record, socket);
	if (record->event == KW_SOCKET_CONNECTED && record->result) {
		at = PUT(at, ",\"result\":");
		at = PUT_WORD(at, results, record->result);
	}
	if (record->event == KW_SOCKET_CLOSED && (record->protocol != IPPROTO_TCP || socket->flags & SOCKET_REMOTE)) {
		at = PUT(at, ",\"bytes_in\":");
		at = kw_put_number(at, record->bytes_in);
		at = PUT(at, ",\"bytes_out\":");
		at = kw_put_number(at, record->bytes_out);
	}
	if (record->event == KW_SOCKET_LIVE)
		at = PUT(at, ",\"cause\":\"running\"");
	return at;
}

/* socket: as it is since this record; NULL for one of another family, of which nothing is kept. */
void kw_line_socket(struct kw_engine *engine, uint32_t slot, const struct kw_socket *record,
		    const struct kw_open_socket *socket)
{
	const char *event = event_of(record, socket);
	char *at = kw_line_begin(engine, LINE_ROOM + sizeof(engine->names.cells->text) * STRING_GROWTH, BATCH_BYTES,
				 kw_wall(engine, record->header.time_ns));

	if (!at)
		return;
	at = PUT(at, ",\"event\":\"");
	at = kw_put(at, event, strlen(event));
	*at++ = '"';
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	if (socket) {
		at = put_connection(engine, at, record, socket);
	} else {
		at = PUT(at, ",\"family\":");
		at = PUT_WORD(at, families, record->family);
		at = PUT(at, ",\"type\":");
		at = PUT_WORD(at, types, record->type);
		if (record->cookie)
			at = put_cookie(at, record->cookie);
	}
	kw_line_end(engine, at);
}

static char *put_answers(struct kw_engine *engine, char *at, const struct kw_dns_message *message)
{
	at = PUT(at, ",\"answers\":[");
	for (uint32_t i = 0; i < message->answers; i++) {
		const struct kw_dns_answer *answer = &message->answer[i];

		if (i)
			*at++ = ',';
		if (answer->is_address) {
			*at++ = '"';
			at = kw_put_address(at, answer->address);
			*at++ = '"';
		} else {
			at = kw_put_string(at, (const uint8_t *)answer->text, answer->length, &engine->lossy);
		}
	}
	*at++ = ']';
	return at;
}

static uint64_t dns_room(const struct kw_dns_message *message)
{
	uint64_t room = LINE_ROOM + (uint64_t)message->name_length * STRING_GROWTH;

	for (uint32_t i = 0; i < message->answers; i++)
		room += ENDPOINT_TEXT +
			(message->answer[i].is_address ? 0 : (uint64_t)message->answer[i].length * STRING_GROWTH);
	return room;
}

void kw_line_dns(struct kw_engine *engine, uint32_t slot, const struct kw_dns *record,
		 const struct kw_dns_message *message)
{
	char *at = kw_line_begin(engine, dns_room(message), BATCH_BYTES, kw_wall(engine, record->header.time_ns));
	uint8_t server[16];

	if (!at)
		return;
	at = PUT(at, ",\"event\":\"dns\"");
	at = kw_put_watch(engine, at, slot);
	at = kw_put_process(at, &record->process);
	at = put_cookie(at, record->cookie);
	at = PUT(at, ",\"server\":");
	kw_address_of(server, record->family, record->remote);
	at = put_quoted_endpoint(at, server, record->remote_port);
	at = PUT(at, ",\"name\":");
	at = kw_put_string(at, (const uint8_t *)message->name, message->question ? message->name_length : 0,
			   &engine->lossy);
	at = PUT(at, ",\"type\":");
	at = message->question ? PUT_WORD(at, questions, message->type) : PUT(at, "\"\"");
	if (message->response) {
		if (message->answers)
			at = put_answers(engine, at, message);
		at = PUT(at, ",\"rcode\":");
		at = PUT_WORD(at, rcodes, message->rcode);
	}
	if (message->truncated)
		at = PUT(at, ",\"truncated\":true");
	if (message->malformed)
		at = PUT(at, ",\"malformed\":true");
	kw_line_end(engine, at);
}
