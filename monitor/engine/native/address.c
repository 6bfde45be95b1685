/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IP addresses and prefixes, and their text. Knows neither sockets nor lines.
 *
 * One form inside the engine: 16 bytes, IPv4 as ::ffff:a.b.c.d, which is also what an IPv6 socket that talks IPv4 has.
 */
#include "internal.h"

#include <sys/socket.h>

enum { IPV4_AT = 12, IPV4_BITS = 96 };

static const uint8_t mapped[IPV4_AT] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/* The address in `bytes` as a record of this family has it. */
void kw_address_of(uint8_t *address, uint16_t family, const uint8_t *bytes)
{
	if (family == AF_INET) {
		memcpy(address, mapped, IPV4_AT);
		memcpy(address + IPV4_AT, bytes, 4);
	} else {
		memcpy(address, bytes, 16);
	}
}

bool kw_address_is_ipv4(const uint8_t *address)
{
	return !memcmp(address, mapped, IPV4_AT);
}

/* prefix: an address and the number of its bits that count. IPv4 is within IPv4 prefixes only: ::/0 means all of IPv6.
 */
bool kw_address_within(const uint8_t *address, const uint8_t *prefix)
{
	uint32_t bits = prefix[16], whole = bits / 8, rest = bits % 8;

	if (kw_address_is_ipv4(address) && (bits < IPV4_BITS || !kw_address_is_ipv4(prefix)))
		return false;
	if (memcmp(address, prefix, whole) != 0)
		return false;
	return !rest || !((address[whole] ^ prefix[whole]) >> (8 - rest));
}

static char *put_group(char *at, uint32_t group)
{
	static const char hex[16] = "0123456789abcdef";
	int shift = 12;

	while (shift && !(group >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		*at++ = hex[group >> shift & 15];
	return at;
}

/* RFC 5952: the first of the longest runs of two or more zero groups becomes "::". */
static char *put_ipv6(char *at, const uint8_t *address)
{
	uint32_t longest = 1, from = 8;

	for (uint32_t start = 0, length; start < 8; start += length + 1) {
		for (length = 0; start + length < 8; length++)
			if (address[2 * (start + length)] || address[2 * (start + length) + 1])
				break;
		if (length > longest) {
			longest = length;
			from = start;
		}
	}
	for (uint32_t group = 0; group < 8; group++) {
		if (group == from) {
			at = PUT(at, "::");
			group += longest - 1;
			continue;
		}
		if (group && group != from + longest)
			*at++ = ':';
		at = put_group(at, (uint32_t)address[2 * group] << 8 | address[2 * group + 1]);
	}
	return at;
}

/* At most ADDRESS_TEXT characters. */
char *kw_put_address(char *at, const uint8_t *address)
{
	if (!kw_address_is_ipv4(address))
		return put_ipv6(at, address);
	for (uint32_t i = 0; i < 4; i++) {
		if (i)
			*at++ = '.';
		at = kw_put_number(at, address[IPV4_AT + i]);
	}
	return at;
}

/* "address:port", IPv6 in brackets; at most ENDPOINT_TEXT characters. */
char *kw_put_endpoint(char *at, const uint8_t *address, uint16_t port)
{
	bool bare = kw_address_is_ipv4(address);

	if (!bare)
		*at++ = '[';
	at = kw_put_address(at, address);
	if (!bare)
		*at++ = ']';
	*at++ = ':';
	return kw_put_number(at, port);
}

char *kw_put_prefix(char *at, const uint8_t *prefix)
{
	bool ipv4 = kw_address_is_ipv4(prefix) && prefix[16] >= IPV4_BITS;

	at = ipv4 ? kw_put_address(at, prefix) : put_ipv6(at, prefix);
	*at++ = '/';
	return kw_put_number(at, ipv4 ? prefix[16] - (uint64_t)IPV4_BITS : prefix[16]);
}
