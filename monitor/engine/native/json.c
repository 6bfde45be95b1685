/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of JSON: growing room, numbers, strings, times. Knows neither records nor lines.
 *
 * All is written by hand: snprintf alone would cost more than the whole line may.
 */
#include "internal.h"

#include <stdlib.h>

enum { FIRST_ROOM = 64 << 10 };

/* Room for `bytes` more within `limit` altogether; NULL: there is none. Amortised: the room doubles. */
char *kw_out_reserve(struct kw_out *out, uint64_t bytes, uint64_t limit)
{
	uint64_t need = out->length + bytes;
	uint64_t capacity = out->capacity ? out->capacity : FIRST_ROOM;
	char *data;

	if (need <= out->capacity && need <= limit)
		return out->data + out->length;
	if (need > limit)
		return NULL;
	while (capacity < need)
		capacity *= 2;
	data = realloc(out->data, capacity);
	if (!data)
		return NULL;
	out->data = data;
	out->capacity = capacity;
	return data + out->length;
}

static const char pairs[201] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748"
    "49505152535455565758596061626364656667686970717273747576777879808182838485868788899091929394959697"
    "9899";

char *kw_put_number(char *at, uint64_t number)
{
	char digits[20];
	char *from = digits + sizeof(digits);

	while (number >= 100) {
		from -= 2;
		memcpy(from, pairs + number % 100 * 2, 2);
		number /= 100;
	}
	if (number >= 10) {
		from -= 2;
		memcpy(from, pairs + number * 2, 2);
	} else {
		*--from = (char)('0' + number);
	}
	return kw_put(at, from, (size_t)(digits + sizeof(digits) - from));
}

static char *put_escape(char *at, uint32_t code)
{
	static const char hex[16] = "0123456789abcdef";

	at = PUT(at, "\\u");
	for (int shift = 12; shift >= 0; shift -= 4)
		*at++ = hex[code >> shift & 15];
	return at;
}

/* Length of the well-formed UTF-8 sequence at `bytes` and its code point; 0: none, and *bad is how many bytes one
 * U+FFFD stands for: the longest beginning of a sequence that could have become one (Unicode 15, chapter 3.9, as Python
 * does). */
static uint32_t utf8_length(const uint8_t *bytes, uint64_t left, uint32_t *code, uint32_t *bad)
{
	uint8_t first = bytes[0], low = 0x80, high = 0xbf;
	uint32_t length;

	*bad = 1;
	if (first >= 0xc2 && first <= 0xdf) {
		length = 2;
		*code = first & 0x1f;
	} else if (first >= 0xe0 && first <= 0xef) {
		length = 3;
		*code = first & 0x0f;
		if (first == 0xe0)
			low = 0xa0; /* not overlong */
		if (first == 0xed)
			high = 0x9f; /* no surrogate */
	} else if (first >= 0xf0 && first <= 0xf4) {
		length = 4;
		*code = first & 0x07;
		if (first == 0xf0)
			low = 0x90;
		if (first == 0xf4)
			high = 0x8f; /* not beyond U+10FFFF */
	} else {
		return 0;
	}
	for (uint32_t i = 1; i < length; i++) {
		if (i >= left || bytes[i] < low || bytes[i] > high)
			return 0;
		*code = *code << 6 | (bytes[i] & 0x3f);
		low = 0x80;
		high = 0xbf;
		*bad = i + 1;
	}
	return length;
}

static char *put_ascii(char *at, uint8_t byte)
{
	switch (byte) {
	case '"':
		return PUT(at, "\\\"");
	case '\\':
		return PUT(at, "\\\\");
	case '\n':
		return PUT(at, "\\n");
	case '\r':
		return PUT(at, "\\r");
	case '\t':
		return PUT(at, "\\t");
	case '\b':
		return PUT(at, "\\b");
	case '\f':
		return PUT(at, "\\f");
	default:
		if (byte < 0x20 || byte == 0x7f)
			return put_escape(at, byte);
		*at++ = (char)byte;
		return at;
	}
}

/* What a terminal or a JavaScript line reader would act on: C1 controls, U+2028, U+2029. */
static bool acts(uint32_t code)
{
	return (code >= 0x80 && code < 0xa0) || code == 0x2028 || code == 0x2029;
}

static char *put_text(char *at, const uint8_t *bytes, uint64_t length, bool *lossy)
{
	uint32_t code, size, bad;

	for (uint64_t i = 0; i < length;) {
		if (bytes[i] < 0x80) {
			at = put_ascii(at, bytes[i++]);
			continue;
		}
		size = utf8_length(bytes + i, length - i, &code, &bad);
		if (!size) {
			at = PUT(at, "\xef\xbf\xbd");
			*lossy = true;
			i += bad;
			continue;
		}
		at = acts(code) ? put_escape(at, code) : kw_put(at, (const char *)bytes + i, size);
		i += size;
	}
	return at;
}

/* A JSON string: at most STRING_GROWTH times the bytes, and two quotes. */
char *kw_put_string(char *at, const uint8_t *bytes, uint64_t length, bool *lossy)
{
	*at++ = '"';
	at = put_text(at, bytes, length, lossy);
	*at++ = '"';
	return at;
}

/* A JSON array of the strings that zero bytes end; one that was cut before its zero byte is kept. */
char *kw_put_strings(char *at, const uint8_t *bytes, uint64_t length, bool *lossy)
{
	const uint8_t *end = bytes + length;

	*at++ = '[';
	while (bytes < end) {
		const uint8_t *zero = memchr(bytes, 0, (size_t)(end - bytes));
		const uint8_t *stop = zero ? zero : end;

		at = kw_put_string(at, bytes, (uint64_t)(stop - bytes), lossy);
		bytes = zero ? zero + 1 : end;
		if (bytes < end)
			*at++ = ',';
	}
	*at++ = ']';
	return at;
}

static char *put_two(char *at, uint32_t number)
{
	return kw_put(at, pairs + number * 2, 2);
}

/* "2026-11-25T03:04:05." of a second since 1970; the calendar is Howard Hinnant's days-to-civil, all years counted from
 * the first of March of year 0. */
static void second_format(char *text, uint64_t second)
{
	uint64_t days = second / 86400 + 719468;
	uint32_t in_day = (uint32_t)(second % 86400);
	uint64_t era = days / 146097;
	uint32_t day_of_era = (uint32_t)(days % 146097);
	uint32_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	uint32_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	uint32_t shifted = (5 * day_of_year + 2) / 153;
	uint32_t month = shifted < 10 ? shifted + 3 : shifted - 9;
	uint32_t year = (uint32_t)(era * 400) + year_of_era + (month <= 2);

	text = put_two(text, year / 100);
	text = put_two(text, year % 100);
	*text++ = '-';
	text = put_two(text, month);
	*text++ = '-';
	text = put_two(text, day_of_year - (153 * shifted + 2) / 5 + 1);
	*text++ = 'T';
	text = put_two(text, in_day / 3600);
	*text++ = ':';
	text = put_two(text, in_day / 60 % 60);
	*text++ = ':';
	text = put_two(text, in_day % 60);
	*text = '.';
}

/* A quoted RFC 3339 time with nine digits, UTC. The text of the last second is kept: most lines share it. */
char *kw_put_time(struct kw_engine *engine, char *at, uint64_t wall_ns)
{
	uint64_t second = wall_ns / 1000000000;
	uint32_t rest = (uint32_t)(wall_ns % 1000000000);

	if (second != engine->second || !engine->second_text[0]) {
		second_format(engine->second_text, second);
		engine->second = second;
	}
	*at++ = '"';
	at = kw_put(at, engine->second_text, sizeof(engine->second_text));
	*at++ = (char)('0' + rest / 100000000);
	at = put_two(at, rest / 1000000 % 100);
	at = put_two(at, rest / 10000 % 100);
	at = put_two(at, rest / 100 % 100);
	at = put_two(at, rest % 100);
	return PUT(at, "Z\"");
}

/* Wall time of a boot time, nanoseconds since 1970, kept within what 64 bits can say (1970 to 2554). */
uint64_t kw_wall(const struct kw_engine *engine, uint64_t boot_ns)
{
	if (engine->wall_ns < 0) {
		uint64_t back = -(uint64_t)engine->wall_ns;

		return boot_ns > back ? boot_ns - back : 0;
	}
	return boot_ns > UINT64_MAX - (uint64_t)engine->wall_ns ? UINT64_MAX : boot_ns + (uint64_t)engine->wall_ns;
}
