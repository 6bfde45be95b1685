/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The open sockets of kin: by cookie, in the order of their last record, and by owner those that are not TCP. Knows
 * nothing of what a record means.
 */
#include "internal.h"

#include <netinet/in.h>
#include <stdlib.h>

enum { FIRST_ROOM = 64 };

_Static_assert(SOCKETS_KEPT == 1 << 16, "hashes are cut to 16 bits");

int kw_sockets_new(struct kw_sockets *sockets)
{
	sockets->cells = calloc(FIRST_ROOM, sizeof(*sockets->cells));
	sockets->chains = calloc(SOCKETS_KEPT, sizeof(*sockets->chains));
	sockets->owners = calloc(SOCKETS_KEPT, sizeof(*sockets->owners));
	sockets->room = FIRST_ROOM;
	if (sockets->cells && sockets->chains && sockets->owners)
		return 0;
	kw_sockets_free(sockets);
	return -ENOMEM;
}

void kw_sockets_free(struct kw_sockets *sockets)
{
	free(sockets->cells);
	free(sockets->chains);
	free(sockets->owners);
	memset(sockets, 0, sizeof(*sockets));
}

static uint32_t index_of(const struct kw_sockets *sockets, const struct kw_open_socket *socket)
{
	return (uint32_t)(socket - sockets->cells) + 1;
}

static uint32_t *chain_of(struct kw_sockets *sockets, uint64_t cookie)
{
	return &sockets->chains[cookie * 0x9e3779b97f4a7c15 >> 48];
}

static uint32_t *owner_list(struct kw_sockets *sockets, uint32_t pid, uint64_t start_ns)
{
	return &sockets->owners[(pid ^ start_ns / KW_TICK_NS) * 0x9e3779b97f4a7c15 >> 48];
}

struct kw_open_socket *kw_socket_find(struct kw_sockets *sockets, uint64_t cookie)
{
	for (uint32_t index = *chain_of(sockets, cookie); index != NONE; index = kw_socket_at(sockets, index)->next)
		if (kw_socket_at(sockets, index)->cookie == cookie)
			return kw_socket_at(sockets, index);
	return NULL;
}

static void order_remove(struct kw_sockets *sockets, const struct kw_open_socket *socket)
{
	if (socket->older != NONE)
		kw_socket_at(sockets, socket->older)->newer = socket->newer;
	else
		sockets->oldest = socket->newer;
	if (socket->newer != NONE)
		kw_socket_at(sockets, socket->newer)->older = socket->older;
	else
		sockets->newest = socket->older;
}

static void order_append(struct kw_sockets *sockets, struct kw_open_socket *socket)
{
	socket->older = sockets->newest;
	socket->newer = NONE;
	if (sockets->newest != NONE)
		kw_socket_at(sockets, sockets->newest)->newer = index_of(sockets, socket);
	else
		sockets->oldest = index_of(sockets, socket);
	sockets->newest = index_of(sockets, socket);
}

static void owner_append(struct kw_sockets *sockets, struct kw_open_socket *socket)
{
	uint32_t *list = owner_list(sockets, socket->owner.pid, socket->owner.start_ns);

	socket->of_before = NONE;
	socket->of_behind = *list;
	if (*list != NONE)
		kw_socket_at(sockets, *list)->of_before = index_of(sockets, socket);
	*list = index_of(sockets, socket);
}

static void owner_remove(struct kw_sockets *sockets, const struct kw_open_socket *socket)
{
	if (socket->of_before != NONE)
		kw_socket_at(sockets, socket->of_before)->of_behind = socket->of_behind;
	else
		*owner_list(sockets, socket->owner.pid, socket->owner.start_ns) = socket->of_behind;
	if (socket->of_behind != NONE)
		kw_socket_at(sockets, socket->of_behind)->of_before = socket->of_before;
}

/* Is there room for one more? Asks for twice the room, which moves the cells. False: there is no more, or no memory. */
bool kw_sockets_have_room(struct kw_sockets *sockets)
{
	uint32_t room = sockets->room * 2;
	struct kw_open_socket *cells;

	if (sockets->count < sockets->room)
		return true;
	if (room > SOCKETS_KEPT)
		return false;
	cells = realloc(sockets->cells, room * sizeof(*cells));
	if (!cells)
		return false;
	sockets->cells = cells;
	sockets->room = room;
	return true;
}

/* Makes one; kw_sockets_have_room() has said that it can. */
struct kw_open_socket *kw_socket_add(struct kw_sockets *sockets, const struct kw_socket *record)
{
	uint32_t index = sockets->free_cell, *chain = chain_of(sockets, record->cookie);
	struct kw_open_socket *socket;

	if (index != NONE)
		sockets->free_cell = kw_socket_at(sockets, index)->next;
	else
		index = ++sockets->used;
	socket = kw_socket_at(sockets, index);
	*socket = (struct kw_open_socket){
	    .cookie = record->cookie,
	    .owner = record->process,
	    .protocol = record->protocol,
	    .flags = SOCKET_USED,
	    .next = *chain,
	};
	*chain = index;
	order_append(sockets, socket);
	if (socket->protocol != IPPROTO_TCP)
		owner_append(sockets, socket);
	sockets->count++;
	return socket;
}

/* It is the one that was heard of last. */
void kw_socket_touch(struct kw_sockets *sockets, struct kw_open_socket *socket)
{
	order_remove(sockets, socket);
	order_append(sockets, socket);
}

void kw_socket_remove(struct kw_sockets *sockets, struct kw_open_socket *socket)
{
	uint32_t index = index_of(sockets, socket), *link = chain_of(sockets, socket->cookie);

	while (*link != index)
		link = &kw_socket_at(sockets, *link)->next;
	*link = socket->next;
	order_remove(sockets, socket);
	if (socket->protocol != IPPROTO_TCP)
		owner_remove(sockets, socket);
	socket->flags = 0;
	socket->next = sockets->free_cell;
	sockets->free_cell = index;
	sockets->count--;
}

/* The first of a list (of_behind) that holds every socket of this owner that is not TCP, and perhaps others'. */
uint32_t kw_sockets_of(struct kw_sockets *sockets, uint32_t pid, uint64_t start_ns)
{
	return *owner_list(sockets, pid, start_ns);
}
