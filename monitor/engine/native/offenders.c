/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instant expectations about the network: where kin may connect and send to, on which ports it may listen. Raises the
 * alarm line at the first socket that breaks one, a further line for each further address or port, which must not hide
 * behind the first, and the clear line when the last such socket is gone. Knows no records.
 *
 * Of a destination its port is told when the expectation names ports. OFFENDERS_KEPT distinct addresses or ports are
 * named at once; sockets of more are counted until they close.
 */
#include "internal.h"

#include <stdlib.h>

enum { ROW_BYTES = 19, PORT_AT = 17, VALUE_TEXT = ENDPOINT_TEXT + 8 };

static const uint8_t *row_of(const struct kw_net_expect *net, uint32_t i)
{
	return net->destinations + (size_t)i * ROW_BYTES;
}

/* 0: any. */
static uint16_t port_of(const uint8_t *row)
{
	return (uint16_t)(row[PORT_AT] << 8 | row[PORT_AT + 1]);
}

static bool within(const struct kw_net_expect *net, const struct kw_open_socket *socket)
{
	for (uint32_t i = 0; i < net->counts[EXPECT_DESTINATIONS]; i++) {
		const uint8_t *row = row_of(net, i);

		if ((!port_of(row) || port_of(row) == socket->remote_port) && kw_address_within(socket->remote, row))
			return true;
	}
	return false;
}

/* in-cidr-set says networks and no more. */
static bool networks_alone(const struct kw_net_expect *net)
{
	return !net->to_ports && !net->names_bytes;
}

static bool among(const struct kw_net_expect *net, uint16_t port)
{
	for (uint32_t i = 0; i < net->counts[EXPECT_PORTS]; i++)
		if (net->ports[i] == port)
			return true;
	return false;
}

static bool breaks(struct kw_engine *engine, uint32_t slot, const struct kw_open_socket *socket, enum kw_expected what)
{
	const struct kw_net_expect *net = &engine->slots[slot].net;

	if (!net->judged[what])
		return false;
	if (what == EXPECT_PORTS)
		return socket->flags & SOCKET_LISTENS && !among(net, socket->local_port);
	return socket->flags & SOCKET_REMOTE && !(socket->flags & SOCKET_INCOMING) && !within(net, socket) &&
	       !kw_name_is_expected(engine, slot, socket->remote);
}

static struct kw_offender offender_of(const struct kw_net_expect *net, const struct kw_open_socket *socket,
				      enum kw_expected what)
{
	struct kw_offender offender = {.sockets = 1};

	if (what == EXPECT_PORTS) {
		offender.port = socket->local_port;
		return offender;
	}
	memcpy(offender.address, socket->remote, sizeof(offender.address));
	if (net->to_ports)
		offender.port = socket->remote_port;
	return offender;
}

static struct kw_offender *find(struct kw_offenders *offenders, const struct kw_offender *wanted)
{
	for (uint32_t i = 0; i < offenders->count; i++) {
		struct kw_offender *offender = &offenders->kept[i];

		if (offender->port == wanted->port &&
		    !memcmp(offender->address, wanted->address, sizeof(wanted->address)))
			return offender;
	}
	return NULL;
}

static char *put_value(char *at, const struct kw_net_expect *net, enum kw_expected what)
{
	const struct kw_offenders *offenders = &net->offenders[what];

	*at++ = '[';
	for (uint32_t i = 0; i < offenders->count; i++) {
		if (i)
			*at++ = ',';
		if (what == EXPECT_PORTS) {
			at = kw_put_number(at, offenders->kept[i].port);
			continue;
		}
		*at++ = '"';
		if (net->to_ports)
			at = kw_put_endpoint(at, offenders->kept[i].address, offenders->kept[i].port);
		else
			at = kw_put_address(at, offenders->kept[i].address);
		*at++ = '"';
	}
	*at++ = ']';
	return at;
}

/* "network", or "network:port", an IPv6 one in brackets. */
static char *put_destination(char *at, const uint8_t *row)
{
	bool brackets = port_of(row) && !kw_address_is_ipv4(row);

	if (brackets)
		*at++ = '[';
	at = kw_put_prefix(at, row);
	if (brackets)
		*at++ = ']';
	if (!port_of(row))
		return at;
	*at++ = ':';
	return kw_put_number(at, port_of(row));
}

static char *put_names(char *at, const struct kw_net_expect *net)
{
	for (uint32_t i = 0; i < net->names_bytes; i += (uint32_t)strlen(net->names + i) + 1) {
		if (at[-1] != '[')
			*at++ = ',';
		*at++ = '"';
		at = kw_put(at, net->names + i, strlen(net->names + i));
		*at++ = '"';
	}
	return at;
}

static char *put_criteria(char *at, const struct kw_net_expect *net, enum kw_expected what)
{
	if (what == EXPECT_PORTS)
		at = PUT(at, "{\"comparisonOperator\":\"in-set\",\"value\":{\"numbers\":[");
	else if (!networks_alone(net))
		at = PUT(at, "{\"comparisonOperator\":\"in-set\",\"value\":{\"strings\":[");
	else
		at = PUT(at, "{\"comparisonOperator\":\"in-cidr-set\",\"value\":{\"cidrs\":[");
	for (uint32_t i = 0; i < net->counts[what]; i++) {
		if (i)
			*at++ = ',';
		if (what == EXPECT_PORTS) {
			at = kw_put_number(at, net->ports[i]);
			continue;
		}
		*at++ = '"';
		at = put_destination(at, row_of(net, i));
		*at++ = '"';
	}
	if (what == EXPECT_DESTINATIONS)
		at = put_names(at, net);
	return PUT(at, "]}}");
}

static char *put_condition(struct kw_engine *engine, char *at, uint32_t slot, enum kw_expected what)
{
	const struct kw_slot *watch = &engine->slots[slot];
	const struct kw_offenders *offenders = &watch->net.offenders[what];

	at = kw_put_watch(engine, at, slot);
	if (what == EXPECT_PORTS)
		at = PUT(at, ",\"behavior\":\"listening_ports\",\"metric\":\"listening_ports_");
	else
		at = PUT(at, ",\"behavior\":\"destinations\",\"metric\":\"destination_ips_");
	at = kw_put(at, watch->name, watch->name_length);
	at = PUT(at, "\",\"value\":");
	at = put_value(at, &watch->net, what);
	at = PUT(at, ",\"criteria\":");
	at = put_criteria(at, &watch->net, what);
	at = PUT(at, ",\"since\":");
	at = kw_put_time(engine, at, offenders->since_wall_ns);
	at = PUT(at, ",\"process_ids\":[");
	at = kw_put_process_id(at, offenders->last.pid, offenders->last.start_ns);
	*at++ = ']';
	return at;
}

static char *line_begin(struct kw_engine *engine, uint32_t slot, enum kw_expected what, uint64_t room)
{
	const struct kw_net_expect *net = &engine->slots[slot].net;

	room += LINE_ROOM + ((uint64_t)net->counts[what] + net->offenders[what].count) * VALUE_TEXT;
	room += (uint64_t)net->names_bytes * 2; /* two quotes and a comma each, for a character and a zero at least */
	return kw_line_begin(engine, room, BATCH_BYTES + ALARM_BYTES, kw_wall(engine, engine->now_ns));
}

static void alarm_raise(struct kw_engine *engine, uint32_t slot, enum kw_expected what, const struct kw_id *owner)
{
	struct kw_offenders *offenders = &engine->slots[slot].net.offenders[what];
	struct kw_lineage lineage;
	char *at;

	if (!offenders->alarmed)
		offenders->since_wall_ns = kw_wall(engine, engine->now_ns);
	offenders->alarmed = true;
	offenders->last = *owner;
	kw_lineage_of(engine, slot, kw_process_find(engine, owner->pid, owner->start_ns), &lineage);
	at = line_begin(engine, slot, what, lineage.room);
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"alarm\"");
	at = put_condition(engine, at, slot, what);
	at = kw_put_lineage(engine, at, slot, &lineage);
	kw_line_end(engine, at);
	engine->lines[engine->filling].alarms++;
}

static void clear_if_over(struct kw_engine *engine, uint32_t slot, enum kw_expected what)
{
	struct kw_offenders *offenders = &engine->slots[slot].net.offenders[what];
	char *at;

	if (!offenders->alarmed || offenders->count || offenders->beyond)
		return;
	offenders->alarmed = false;
	at = line_begin(engine, slot, what, 0);
	if (!at)
		return;
	at = PUT(at, ",\"event\":\"clear\"");
	at = put_condition(engine, at, slot, what);
	kw_line_end(engine, at);
	engine->lines[engine->filling].clears++;
}

static void begin(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket, enum kw_expected what)
{
	struct kw_offenders *offenders = &engine->slots[slot].net.offenders[what];
	struct kw_offender offender = offender_of(&engine->slots[slot].net, socket, what);
	struct kw_offender *known = find(offenders, &offender);

	if (!known && offenders->count == OFFENDERS_KEPT) {
		socket->beyond[what] |= slot_bit(slot);
		offenders->beyond++;
		return;
	}
	socket->offends[what] |= slot_bit(slot);
	if (known) {
		known->sockets++;
		return;
	}
	offenders->kept[offenders->count++] = offender;
	alarm_raise(engine, slot, what, &socket->owner);
}

static void end(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket, enum kw_expected what)
{
	struct kw_offenders *offenders = &engine->slots[slot].net.offenders[what];
	struct kw_offender offender = offender_of(&engine->slots[slot].net, socket, what), *known;

	if (socket->beyond[what] & slot_bit(slot))
		offenders->beyond--;
	known = socket->offends[what] & slot_bit(slot) ? find(offenders, &offender) : NULL;
	if (known && !--known->sockets) {
		offenders->count--;
		memmove(known, known + 1, (size_t)(&offenders->kept[offenders->count] - known) * sizeof(*known));
	}
	socket->beyond[what] &= ~slot_bit(slot);
	socket->offends[what] &= ~slot_bit(slot);
}

/* Judge a socket of slot for what it is; nothing happens for what has been judged. */
void kw_offend(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket)
{
	for (int what = 0; what < EXPECTATIONS; what++)
		if (!((socket->offends[what] | socket->beyond[what]) & slot_bit(slot)) &&
		    breaks(engine, slot, socket, what))
			begin(engine, slot, socket, what);
}

/* The socket is no longer what it was judged for. */
void kw_offend_no_more(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket)
{
	for (int what = 0; what < EXPECTATIONS; what++) {
		end(engine, slot, socket, what);
		clear_if_over(engine, slot, what);
	}
}

/* Judge a socket by an expectation that has changed, for one answer of the two. Whoever calls looks at all sockets and
 * clears at the end. */
void kw_offend_anew(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket, enum kw_expected what,
		    bool answer)
{
	bool broke = (socket->offends[what] | socket->beyond[what]) & slot_bit(slot);
	bool does = breaks(engine, slot, socket, what);

	if (does != answer || broke == does)
		return;
	if (does)
		begin(engine, slot, socket, what);
	else
		end(engine, slot, socket, what);
}

/* Put `names` in the place of those of slot. The same ones once more change nothing: an address keeps what it was
 * called before. */
static void names_replace(struct kw_engine *engine, uint32_t slot, char *names, uint32_t bytes)
{
	struct kw_net_expect *net = &engine->slots[slot].net;
	bool same = bytes == net->names_bytes && !memcmp(names, net->names ? net->names : names, bytes);

	free(net->names);
	net->names = names;
	net->names_bytes = bytes;
	if (!same)
		kw_names_judge(engine, slot);
}

/* An expectation that is withdrawn is named by its clear line once more. */
static void withdraw(struct kw_engine *engine, uint32_t slot, enum kw_expected what)
{
	struct kw_net_expect *net = &engine->slots[slot].net;

	net->judged[what] = false;
	kw_sockets_judge(engine, slot, what);
	clear_if_over(engine, slot, what);
	net->counts[what] = 0;
	if (what == EXPECT_DESTINATIONS)
		net->names_bytes = 0;
}

/* What is expected now names ports, or does so no more: whoever offends is told once more, in the other form. */
static void turn(struct kw_engine *engine, uint32_t slot)
{
	struct kw_net_expect *net = &engine->slots[slot].net;
	bool to_ports = false;

	for (uint32_t i = 0; i < net->counts[EXPECT_DESTINATIONS]; i++)
		to_ports |= port_of(row_of(net, i)) != 0;
	if (to_ports == net->to_ports)
		return;
	net->judged[EXPECT_DESTINATIONS] = false;
	kw_sockets_judge(engine, slot, EXPECT_DESTINATIONS);
	net->to_ports = to_ports;
}

/* What whoever calls hands over: items and, for destinations, names. */
struct told {
	void *items;
	int32_t count; /* -1: nothing is expected any more */
	char *names;
	uint32_t names_bytes;
};

/* Put what is told in the place of what was expected; takes what told holds. */
static void replace(struct kw_engine *engine, uint32_t slot, enum kw_expected what, struct told *told)
{
	struct kw_net_expect *net = &engine->slots[slot].net;

	net->counts[what] = (uint32_t)told->count;
	if (what == EXPECT_PORTS) {
		free(net->ports);
		net->ports = told->items;
	} else {
		free(net->destinations);
		net->destinations = told->items;
		names_replace(engine, slot, told->names, told->names_bytes);
		told->names = NULL;
		turn(engine, slot);
	}
	told->items = NULL;
	net->judged[what] = true;
	kw_sockets_judge(engine, slot, what);
	clear_if_over(engine, slot, what);
}

static int expect(struct kw_engine *engine, uint32_t slot, enum kw_expected what, struct told *told)
{
	int error = 0;

	pthread_mutex_lock(&engine->lock);
	if (!(engine->defined & slot_bit(slot)))
		error = -ENOENT;
	else if (told->count < 0)
		withdraw(engine, slot, what);
	else
		replace(engine, slot, what, told);
	pthread_mutex_unlock(&engine->lock);
	return error;
}

/* Room for at least one byte: there is always a pointer. */
static void *copy_of(const void *bytes, size_t size)
{
	void *copy = malloc(size + 1);

	if (copy && size)
		memcpy(copy, bytes, size);
	return copy;
}

static int take(struct kw_engine *engine, uint32_t slot, enum kw_expected what, struct told *told)
{
	int error = told->items && told->names ? expect(engine, slot, what, told) : -ENOMEM;

	free(told->items);
	free(told->names);
	return error;
}

/* Patterns go into lines as they are, so only what needs no escape is one. */
static bool legal(const char *names, uint32_t bytes)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789-_.*";

	for (uint32_t i = 0; i < bytes; i++)
		if (names[i] ? !strchr(plain, names[i]) : !i || !names[i - 1])
			return false;
	return !bytes || !names[bytes - 1];
}

int kw_engine_expect_destinations(struct kw_engine *engine, uint32_t slot, const uint8_t *rows, int32_t count,
				  const char *names, uint32_t names_bytes)
{
	struct told told = {.count = count, .names_bytes = names_bytes};

	if (slot >= KW_SLOTS || count < -1 || count > PREFIXES_MOST || names_bytes > PATTERNS_BYTES_MOST ||
	    (count < 0 && names_bytes) || !legal(names, names_bytes))
		return -EINVAL;
	for (int64_t i = 0; i < count; i++)
		if (rows[i * ROW_BYTES + 16] > 128)
			return -EINVAL;
	told.items = copy_of(rows, count > 0 ? (size_t)count * ROW_BYTES : 0);
	told.names = copy_of(names, names_bytes);
	return take(engine, slot, EXPECT_DESTINATIONS, &told);
}

int kw_engine_expect_ports(struct kw_engine *engine, uint32_t slot, const uint16_t *ports, int32_t count)
{
	struct told told = {.count = count};

	if (slot >= KW_SLOTS || count < -1 || count > PREFIXES_MOST)
		return -EINVAL;
	told.items = copy_of(ports, count > 0 ? (size_t)count * sizeof(*ports) : 0);
	told.names = copy_of(NULL, 0);
	return take(engine, slot, EXPECT_PORTS, &told);
}

/* The watch of slot ends. */
void kw_expect_nothing(struct kw_engine *engine, uint32_t slot)
{
	struct kw_net_expect *net = &engine->slots[slot].net;

	withdraw(engine, slot, EXPECT_DESTINATIONS);
	withdraw(engine, slot, EXPECT_PORTS);
	kw_names_unwatch(engine, slot);
	free(net->destinations);
	free(net->names);
	free(net->ports);
	net->destinations = NULL;
	net->names = NULL;
	net->ports = NULL;
}
