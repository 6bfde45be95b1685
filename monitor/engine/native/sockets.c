/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each record about a socket means for remotes, ports, expectations and lines. Knows no bytes beyond the record,
 * and not how sockets are kept.
 *
 * A socket belongs to its owner whoever uses or closes it, also when the owner has ended. Beyond SOCKETS_KEPT the one
 * that was silent longest is given up, and that is counted as table_full.
 */
#include "internal.h"

#include <netinet/in.h>

enum { TCP_BEGINS = 2, TCP_LISTENS = 10 }; /* TCP_SYN_SENT, TCP_LISTEN of the kernel */
enum { SPARED = 64 };

/* What the sets of a watch call its remote, or its port. */
static struct kw_remote remote_of(const struct kw_open_socket *socket, enum kw_expected what)
{
	/* MPTCP (262) is TCP to whoever looks at the wire. */
	uint8_t protocol = socket->protocol == IPPROTO_MPTCP ? IPPROTO_TCP : (uint8_t)socket->protocol;
	struct kw_remote remote = {.protocol = protocol, .port = socket->local_port};

	if (what == EXPECT_PORTS)
		return remote;
	memcpy(remote.address, socket->remote, sizeof(remote.address));
	remote.incoming = socket->flags & SOCKET_INCOMING ? 1 : 0;
	if (!remote.incoming)
		remote.port = socket->remote_port;
	return remote;
}

/* It has a remote, or a port it listens on, from now on: what it already holds in `slot` stays as it is. */
static void hold(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket)
{
	struct kw_slot *watch = &engine->slots[slot];
	uint64_t bit = slot_bit(slot);

	for (int what = 0; what < EXPECTATIONS; what++) {
		struct kw_remotes *set = what == EXPECT_PORTS ? watch->ports : watch->remotes;
		struct kw_remote remote = remote_of(socket, what);

		if (!(socket->flags & (what == EXPECT_PORTS ? SOCKET_LISTENS : SOCKET_REMOTE)) ||
		    (socket->kept[what] | socket->unkept[what]) & bit)
			continue;
		if (kw_remote_note(engine, set, &remote, true))
			socket->kept[what] |= bit;
		else
			socket->unkept[what] |= bit;
	}
	kw_offend(engine, slot, socket);
}

static void let_go(struct kw_engine *engine, uint32_t slot, struct kw_open_socket *socket)
{
	struct kw_slot *watch = &engine->slots[slot];
	uint64_t bit = slot_bit(slot);

	for (int what = 0; what < EXPECTATIONS; what++) {
		struct kw_remotes *set = what == EXPECT_PORTS ? watch->ports : watch->remotes;
		struct kw_remote remote = remote_of(socket, what);

		if ((socket->kept[what] | socket->unkept[what]) & bit)
			kw_remote_done(engine, set, &remote, socket->kept[what] & bit);
		socket->kept[what] &= ~bit;
		socket->unkept[what] &= ~bit;
	}
	kw_offend_no_more(engine, slot, socket);
}

static void let_go_everywhere(struct kw_engine *engine, struct kw_open_socket *socket)
{
	for (uint64_t left = socket->watches; left; left &= left - 1)
		let_go(engine, lowest_slot(left), socket);
}

/* It is no longer open. */
static void drop(struct kw_engine *engine, struct kw_open_socket *socket)
{
	let_go_everywhere(engine, socket);
	kw_socket_remove(&engine->sockets, socket);
}

/* A new socket. For want of room the one that was silent longest goes, but rather not a listener, which is silent by
 * nature. */
static struct kw_open_socket *add(struct kw_engine *engine, const struct kw_socket *record)
{
	struct kw_sockets *sockets = &engine->sockets;

	if (!kw_sockets_have_room(sockets)) {
		for (int spared = 0; spared < SPARED && kw_socket_at(sockets, sockets->oldest)->flags & SOCKET_LISTENS;
		     spared++)
			kw_socket_touch(sockets, kw_socket_at(sockets, sockets->oldest));
		drop(engine, kw_socket_at(sockets, sockets->oldest));
		kw_lose(engine, KW_TABLE_FULL, 1);
	}
	return kw_socket_add(sockets, record);
}

static bool has_remote(const struct kw_socket *record)
{
	static const uint8_t nowhere[16];

	return record->remote_port || memcmp(record->remote, nowhere, sizeof(nowhere)) != 0;
}

static bool listens(const struct kw_socket *record)
{
	if (record->event != KW_SOCKET_LIVE)
		return record->event == KW_SOCKET_LISTENING;
	return record->protocol == IPPROTO_TCP ? record->state == TCP_LISTENS
					       : record->local_port && !has_remote(record);
}

/* A TCP connection that nobody saw begin came through a listener of kin if its port is that listener's. */
static bool from_listener(struct kw_engine *engine, const struct kw_socket *record)
{
	const struct kw_remote port = {.port = record->local_port, .protocol = IPPROTO_TCP};

	if (record->event != KW_SOCKET_LIVE || record->protocol != IPPROTO_TCP)
		return false;
	if (record->result & KW_LIVE_INCOMING)
		return true;
	for (uint64_t left = record->header.watches & engine->defined; left; left &= left - 1)
		if (kw_remote_is_open(engine->slots[lowest_slot(left)].ports, &port))
			return true;
	return false;
}

/* What the record says of the socket itself. A datagram socket may turn to another remote. */
static void learn(struct kw_engine *engine, struct kw_open_socket *socket, const struct kw_socket *record)
{
	if (record->local_port)
		socket->local_port = record->local_port;
	if (listens(record)) {
		socket->flags |= SOCKET_LISTENS;
		return;
	}
	if (!has_remote(record))
		return;
	if (record->event == KW_SOCKET_ACCEPTED || (!(socket->flags & SOCKET_REMOTE) && from_listener(engine, record)))
		socket->flags |= SOCKET_INCOMING;
	if (record->event == KW_SOCKET_PEER)
		socket->flags |= SOCKET_PEER;
	else
		socket->flags &= ~(SOCKET_PEER | SOCKET_LISTENS); /* who has a peer hears nobody else */
	socket->flags |= SOCKET_REMOTE;
	socket->remote_port = record->remote_port;
	kw_address_of(socket->remote, record->family, record->remote);
}

static bool same_facts(const struct kw_open_socket *one, const struct kw_open_socket *other)
{
	return one->flags == other->flags && one->remote_port == other->remote_port &&
	       one->local_port == other->local_port && !memcmp(one->remote, other->remote, sizeof(one->remote));
}

/* The socket is not what it was before: hold what it is, then let go what it was, so that an alarm that has still its
 * reason is not cleared between. */
static void change(struct kw_engine *engine, struct kw_open_socket *socket, struct kw_open_socket *before)
{
	bool same = same_facts(before, socket);

	if (!same) {
		memset(socket->kept, 0, sizeof(socket->kept));
		memset(socket->unkept, 0, sizeof(socket->unkept));
		memset(socket->offends, 0, sizeof(socket->offends));
		memset(socket->beyond, 0, sizeof(socket->beyond));
	}
	for (uint64_t left = socket->watches; left; left &= left - 1)
		hold(engine, lowest_slot(left), socket);
	if (!same)
		let_go_everywhere(engine, before);
}

/* The connection did not come about; a datagram socket may listen all the same. */
static void fail(struct kw_engine *engine, struct kw_open_socket *socket)
{
	struct kw_open_socket before = *socket;

	socket->flags &= ~(SOCKET_REMOTE | SOCKET_INCOMING | SOCKET_PEER);
	if (socket->flags & SOCKET_LISTENS)
		change(engine, socket, &before);
	else
		drop(engine, socket);
}

/* Does the record make a line in these slots? A connection that only begins makes none, nor what was told before. */
static uint64_t told_in(const struct kw_open_socket *socket, const struct kw_socket *record, uint64_t slots)
{
	if (record->event == KW_SOCKET_CONNECTING)
		return 0;
	if (record->event != KW_SOCKET_LIVE)
		return slots;
	if (record->result & KW_LIVE_TOLD || (record->protocol == IPPROTO_TCP && record->state == TCP_BEGINS))
		return 0;
	return slots & ~socket->watches;
}

static void say(struct kw_engine *engine, const struct kw_socket *record, const struct kw_open_socket *socket,
		uint64_t slots)
{
	for (; slots; slots &= slots - 1)
		kw_line_socket(engine, lowest_slot(slots), record, socket);
}

/* Of a connection that is known only by its end it is not known who began it: that is a line, and no more. */
static void close_unknown(struct kw_engine *engine, const struct kw_socket *record, uint64_t slots)
{
	struct kw_open_socket socket = {.cookie = record->cookie,
					.remote_port = record->remote_port,
					.flags = has_remote(record) ? SOCKET_REMOTE : 0};

	kw_address_of(socket.remote, record->family, record->remote);
	say(engine, record, &socket, slots);
}

static void happens(struct kw_engine *engine, const struct kw_socket *record, uint64_t slots)
{
	struct kw_open_socket *socket = kw_socket_find(&engine->sockets, record->cookie), before;

	if (!socket && record->event == KW_SOCKET_CLOSED) {
		close_unknown(engine, record, slots);
		return;
	}
	if (socket) {
		kw_socket_touch(&engine->sockets, socket);
	} else {
		socket = add(engine, record);
	}
	socket->flags &= ~SOCKET_DOUBTED;
	before = *socket;
	if (record->event == KW_SOCKET_CLOSED) {
		say(engine, record, socket, slots);
		drop(engine, socket);
		return;
	}
	learn(engine, socket, record);
	say(engine, record, socket, told_in(socket, record, slots));
	socket->watches |= slots;
	change(engine, socket, &before);
	if (record->event == KW_SOCKET_CONNECTED && record->result)
		fail(engine, socket);
}

void kw_socket_happens(struct kw_engine *engine, const struct kw_socket *record)
{
	uint64_t slots = record->header.watches & engine->defined;

	if (record->event == KW_SOCKET_FAMILY)
		say(engine, record, NULL, slots);
	else if (slots || kw_socket_find(&engine->sockets, record->cookie))
		happens(engine, record, slots);
}

/*
 * Records may have been lost: what is not told of until the end of the sync has been closed. What no process has open,
 * because it was not accepted yet or is on its way to another process, is forgotten with it. A datagram socket that was
 * never bound is not told again, for all it has is peers; it stays until its end or its owner's.
 */
void kw_sockets_doubt(struct kw_engine *engine)
{
	struct kw_sockets *sockets = &engine->sockets;

	for (uint32_t index = sockets->oldest; index != NONE; index = kw_socket_at(sockets, index)->newer) {
		struct kw_open_socket *socket = kw_socket_at(sockets, index);

		if (!(socket->flags & SOCKET_PEER) || socket->flags & SOCKET_LISTENS)
			socket->flags |= SOCKET_DOUBTED;
	}
}

void kw_sockets_settle(struct kw_engine *engine)
{
	struct kw_sockets *sockets = &engine->sockets;
	uint32_t index = sockets->oldest;

	while (index != NONE) {
		struct kw_open_socket *socket = kw_socket_at(sockets, index);

		index = socket->newer;
		if (socket->flags & SOCKET_DOUBTED)
			drop(engine, socket);
	}
}

/* The end of a datagram socket that was neither bound nor connected may be told by nobody (another capture, a record
 * file of an earlier version): it goes with its owner. */
void kw_sockets_owner_ends(struct kw_engine *engine, uint32_t pid, uint64_t start_ns)
{
	struct kw_sockets *sockets = &engine->sockets;
	uint32_t index = kw_sockets_of(sockets, pid, start_ns);

	while (index != NONE) {
		struct kw_open_socket *socket = kw_socket_at(sockets, index);

		index = socket->of_behind;
		if (socket->owner.pid == pid && socket->owner.start_ns == start_ns && socket->flags & SOCKET_PEER &&
		    !(socket->flags & SOCKET_LISTENS))
			drop(engine, socket);
	}
}

/* The watch is over: its expectations go first, with their alarms. */
void kw_sockets_unwatch(struct kw_engine *engine, uint32_t slot)
{
	struct kw_sockets *sockets = &engine->sockets;

	for (uint32_t i = 0; i < sockets->used; i++) {
		struct kw_open_socket *socket = &sockets->cells[i];

		if (!socket->flags || !(socket->watches & slot_bit(slot)))
			continue;
		let_go(engine, slot, socket);
		socket->watches &= ~slot_bit(slot);
		if (!socket->watches)
			drop(engine, socket);
	}
}

/* An expectation of slot is another one: each socket is judged anew, first for what it breaks no more. */
void kw_sockets_judge(struct kw_engine *engine, uint32_t slot, enum kw_expected what)
{
	struct kw_sockets *sockets = &engine->sockets;

	for (int answer = 0; answer < 2; answer++)
		for (uint32_t index = sockets->oldest; index != NONE; index = kw_socket_at(sockets, index)->newer)
			if (kw_socket_at(sockets, index)->watches & slot_bit(slot))
				kw_offend_anew(engine, slot, kw_socket_at(sockets, index), what, answer);
}
