/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The door: trusts no byte. Cuts bytes into records, refuses what cannot be one, and passes on the rest; knows nothing
 * of what a record means.
 */
#include "internal.h"

#include <netinet/in.h>
#include <sys/socket.h>

enum { ERRNO_MOST = 4095, TCP_STATES = 13 }; /* MAX_ERRNO of the kernel; one more than its last TCP state */

static bool text_fits(const struct kw_image *record, struct kw_text text, uint32_t longest)
{
	if (!text.length)
		return true;
	return text.length <= longest && text.offset >= sizeof(*record) &&
	       (uint64_t)text.offset + text.length <= record->header.size;
}

static bool image_sound(const struct kw_image *record)
{
	const struct kw_header *header = &record->header;

	if (!record->process.pid || record->fresh & ~header->watches)
		return false;
	if (header->kind == KW_EXEC && record->fresh & ~header->roots)
		return false; /* nobody becomes a descendant by executing */
	if (record->unexpected & ~header->watches)
		return false;
	if (record->fresh & header->roots && (record->cause < KW_CAUSE_EXEC || record->cause > KW_CAUSE_MOVED))
		return false;
	return text_fits(record, record->exe, KW_PATH_BYTES) && text_fits(record, record->script, KW_PATH_BYTES) &&
	       text_fits(record, record->argv, KW_ARGV_BYTES) && text_fits(record, record->cwd, KW_PATH_BYTES);
}

static bool fork_sound(const struct kw_fork *record)
{
	return record->process.pid && record->process.pid != record->parent.pid && !record->header.roots;
}

static bool sync_sound(const struct kw_engine *engine, const struct kw_sync *record)
{
	if (record->phase == 0 || record->phase == 3 || record->phase == 4)
		return true;
	return engine->syncing && (record->phase == 2 || (record->phase == 1 && record->process.pid));
}

static bool family_is_ip(uint16_t family)
{
	return family == AF_INET || family == AF_INET6;
}

static bool socket_sound(const struct kw_socket *record)
{
	uint16_t event = record->event;
	bool tcp = record->protocol == IPPROTO_TCP || record->protocol == IPPROTO_MPTCP;

	if (!record->process.pid || event < KW_SOCKET_CONNECTING || event > KW_SOCKET_LIVE)
		return false;
	if (event == KW_SOCKET_FAMILY)
		return !family_is_ip(record->family);
	if (!family_is_ip(record->family) || !record->cookie || record->state >= TCP_STATES)
		return false;
	if (event == KW_SOCKET_LIVE)
		return record->result <= (KW_LIVE_INCOMING | KW_LIVE_TOLD);
	if (record->result > ERRNO_MOST || (record->result && event != KW_SOCKET_CONNECTED))
		return false;
	if (event == KW_SOCKET_PEER)
		return !tcp;
	return event != KW_SOCKET_LISTENING || record->local_port;
}

static bool dns_sound(const struct kw_dns *record)
{
	struct kw_text text = record->message;

	if (!record->process.pid || !record->cookie || !family_is_ip(record->family) || record->incoming > 1)
		return false;
	if (text.length > KW_DNS_BYTES || text.length > record->total)
		return false;
	return !text.length ||
	       (text.offset >= sizeof(*record) && (uint64_t)text.offset + text.length <= record->header.size);
}

static bool enforced_sound(const struct kw_enforced *record)
{
	if (!record->process.pid || !record->slots || record->slots & ~record->header.watches)
		return false;
	return record->reason >= KW_REASON_CHILDREN && record->reason <= KW_REASON_UNTRACKED &&
	       record->action >= KW_ACTION_KILL && record->action <= KW_ACTION_DENY;
}

/* Does the record make sense, as far as it can be told from itself? Its size is sound already. */
static bool sound(const struct kw_engine *engine, const struct kw_header *header)
{
	static const uint32_t least[] = {
	    [KW_FORK] = sizeof(struct kw_fork),		[KW_EXEC] = sizeof(struct kw_image),
	    [KW_EXIT] = sizeof(struct kw_exit),		[KW_ADOPT] = sizeof(struct kw_image),
	    [KW_FORGET] = sizeof(struct kw_forget),	[KW_SYNC] = sizeof(struct kw_sync),
	    [KW_LOST] = sizeof(struct kw_lost),		[KW_CLOCK] = sizeof(struct kw_clock),
	    [KW_SOCKET] = sizeof(struct kw_socket),	[KW_DNS] = sizeof(struct kw_dns),
	    [KW_ENFORCED] = sizeof(struct kw_enforced),
	};

	if (header->kind < KW_FORK || header->kind > KW_ENFORCED || header->size < least[header->kind])
		return false;
	if (header->roots & ~header->watches)
		return false;
	switch (header->kind) {
	case KW_FORK:
		return fork_sound((const struct kw_fork *)header);
	case KW_EXEC:
	case KW_ADOPT:
		return image_sound((const struct kw_image *)header);
	case KW_EXIT:
		return ((const struct kw_exit *)header)->process.pid;
	case KW_FORGET:
		return ((const struct kw_forget *)header)->process.pid;
	case KW_SYNC:
		return sync_sound(engine, (const struct kw_sync *)header);
	case KW_LOST:
		return ((const struct kw_lost *)header)->stage < KW_STAGES;
	case KW_SOCKET:
		return socket_sound((const struct kw_socket *)header);
	case KW_DNS:
		return dns_sound((const struct kw_dns *)header);
	case KW_ENFORCED:
		return enforced_sound((const struct kw_enforced *)header);
	default:
		return true;
	}
}

static bool size_sound(uint32_t size, uint64_t left)
{
	return size >= sizeof(struct kw_header) && size <= left && size <= RECORD_BYTES && size % 8 == 0;
}

int64_t kw_engine_ingest(struct kw_engine *engine, const uint8_t *bytes, uint64_t length)
{
	int64_t accepted = 0;

	pthread_mutex_lock(&engine->lock);
	while (length) {
		const struct kw_header *header = (const struct kw_header *)(const void *)bytes;
		uint32_t size = 0;

		if (length >= sizeof(size))
			memcpy(&size, bytes, sizeof(size));
		if (!size_sound(size, length)) {
			kw_lose(engine, KW_BAD_RECORD, 1);
			break;
		}
		if ((uintptr_t)bytes % 8)
			header = memcpy(engine->aligned, bytes, size);
		if (sound(engine, header)) {
			if (engine->recording)
				kw_keep_record(engine, bytes, size);
			kw_happen(engine, header);
			accepted++;
		} else {
			kw_lose(engine, KW_BAD_RECORD, 1);
		}
		bytes += size;
		length -= size;
	}
	pthread_mutex_unlock(&engine->lock);
	return accepted;
}
