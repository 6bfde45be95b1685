/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a DNS message (RFC 1035) that anybody may have written: the question, and of the answers addresses and names.
 * Trusts no byte; knows neither records nor lines.
 */
#include "internal.h"

#include <sys/socket.h>

enum {
	NAME_BYTES = 255, /* longest name, length bytes included */
	LABEL_BYTES = 63,
	POINTER = 0xc0,
	CLASS_IN = 1,
	TYPE_A = 1,
	TYPE_NS = 2,
	TYPE_CNAME = 5,
	TYPE_PTR = 12,
	TYPE_AAAA = 28,
};

/* Where the reading stands. Once `broken` it stays so, and reads zeros; `over`: it would have gone on beyond the end.
 */
struct reader {
	const uint8_t *bytes;
	uint32_t length, at;
	bool broken, over;
};

static bool has(struct reader *reader, uint32_t bytes)
{
	if (!reader->broken && bytes <= reader->length - reader->at)
		return true;
	reader->over |= !reader->broken;
	reader->broken = true;
	return false;
}

static uint32_t number(struct reader *reader, uint32_t bytes)
{
	uint32_t value = 0;

	if (!has(reader, bytes))
		return 0;
	while (bytes--)
		value = value << 8 | reader->bytes[reader->at++];
	return value;
}

/* One label as RFC 4343 writes it; what could be taken for something else becomes \. \\ or \DDD. */
static char *put_label(char *at, const uint8_t *label, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++) {
		uint8_t byte = label[i];

		if (byte == '.' || byte == '\\') {
			*at++ = '\\';
			*at++ = (char)byte;
		} else if (byte > 0x20 && byte < 0x7f) {
			*at++ = (char)byte;
		} else {
			*at++ = '\\';
			*at++ = (char)('0' + byte / 100);
			*at++ = (char)('0' + byte / 10 % 10);
			*at++ = (char)('0' + byte % 10);
		}
	}
	return at;
}

/*
 * The name where the reader stands, into text (DNS_NAME_TEXT bytes: 254 bytes of labels make at most 4 * 254
 * characters); returns its length, the root is ".". A pointer must lead to before the place where the part with it
 * began, so that reading ends. The reader goes on behind the name or its first pointer.
 */
static uint32_t name(struct reader *reader, char *text)
{
	struct reader here = *reader;
	uint32_t behind = 0, bytes = 1, start = here.at;
	char *at = text;

	for (;;) {
		uint32_t length = number(&here, 1);

		if (!here.broken && length >= POINTER) {
			uint32_t target = (length & ~(uint32_t)POINTER) << 8 | number(&here, 1);

			if (!behind)
				behind = here.at;
			here.broken |= target >= start;
			start = here.at = target;
		} else {
			bytes += length + 1;
			here.broken |= length > LABEL_BYTES || (length && bytes > NAME_BYTES);
			if (here.broken || !length || !has(&here, length))
				break;
			if (at != text)
				*at++ = '.';
			at = put_label(at, here.bytes + here.at, length);
			here.at += length;
		}
		if (here.broken)
			break;
	}
	reader->broken |= here.broken;
	reader->over |= here.over;
	if (reader->broken)
		return 0;
	reader->at = behind ? behind : here.at;
	if (at == text)
		*at++ = '.';
	return (uint32_t)(at - text);
}

/* One resource record of the answer section; true: it is one that is shown, and stands in *answer. */
static bool answer_read(struct reader *reader, struct kw_dns_answer *answer)
{
	uint32_t type, class, length, end;
	bool shown = false;

	name(reader, answer->text); /* whose record: not shown */
	type = number(reader, 2);
	class = number(reader, 2);
	number(reader, 4); /* time to live */
	length = number(reader, 2);
	if (!has(reader, length))
		return false;
	end = reader->at + length;
	if (class == CLASS_IN && (type == TYPE_A || type == TYPE_AAAA)) {
		shown = true;
		answer->is_address = true;
		reader->broken |= length != (type == TYPE_A ? 4 : 16);
		if (!reader->broken)
			kw_address_of(answer->address, type == TYPE_A ? AF_INET : AF_INET6, reader->bytes + reader->at);
	} else if (class == CLASS_IN && (type == TYPE_CNAME || type == TYPE_PTR || type == TYPE_NS)) {
		shown = true;
		answer->is_address = false;
		answer->length = (uint16_t)name(reader, answer->text);
		reader->broken |= reader->at != end;
	}
	reader->at = end;
	return shown && !reader->broken;
}

/* Fill *message from the bytes of one; cut: there were more than these. What stands before a break is read. */
void kw_dns_read(struct kw_dns_message *message, const uint8_t *bytes, uint32_t length, bool cut)
{
	struct reader reader = {.bytes = bytes, .length = length};
	uint32_t flags, questions, answers;

	message->question = false;
	message->name_length = message->answers = 0;
	number(&reader, 2); /* id */
	flags = number(&reader, 2);
	questions = number(&reader, 2);
	answers = number(&reader, 2);
	number(&reader, 4); /* authority and additional records: not read */
	message->response = flags >> 15;
	message->rcode = flags & 15;
	message->truncated = cut || flags >> 9 & 1;
	reader.broken |= questions != 1;
	message->name_length = name(&reader, message->name);
	message->type = (uint16_t)number(&reader, 2);
	number(&reader, 2); /* class */
	message->question = !reader.broken;
	for (uint32_t i = 0; i < answers && !reader.broken; i++) {
		if (message->answers == DNS_ANSWERS) {
			message->truncated = true;
			break;
		}
		message->answers += answer_read(&reader, &message->answer[message->answers]);
	}
	/* A cut message ends where it was cut, and is not to blame. */
	message->malformed = reader.broken && !(cut && reader.over);
}
