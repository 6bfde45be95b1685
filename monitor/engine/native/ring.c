/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks a ring of the kernel with a position of its own: reads records without giving their room back, and gives it
 * back when told. Knows nothing of what a record says.
 *
 * The kernel's ring is three mappings of one map: a page with the consumer's position (ours to write), a page with the
 * producer's, and the data twice in a row, so that no record is cut at the end. Of the second time only as much is
 * mapped as the longest record needs, because the kernel maps every page at once. Positions only grow and wrap with
 * their type; a record is a header of 8 bytes (length and two flags, a page offset) and its bytes, rounded up to 8.
 * What lies between the two positions is never overwritten, so a record can be read as often as is wanted until its
 * room is given back (kernel Documentation/bpf/ringbuf.rst).
 */
#include <errno.h>
#include <linux/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "loader_parts.h"

/* A multiple of every page size; an image with all its text takes a third of it. */
enum { LONGEST_RECORD = 65536 };
_Static_assert(sizeof(struct kw_image) + 3 * KW_PATH_BYTES + KW_ARGV_BYTES < LONGEST_RECORD,
	       "a record must not be cut");

static size_t page_bytes(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* 0, or a negative errno; an opened ring has to be closed either way. */
int ring_open(struct ring *ring, int map_fd)
{
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);
	size_t page = page_bytes();
	void *pages;

	*ring = (struct ring){0};
	if (bpf_obj_get_info_by_fd(map_fd, &info, &size))
		return -errno;
	ring->bytes = info.max_entries;
	ring->mapped = page + ring->bytes + (ring->bytes < LONGEST_RECORD ? ring->bytes : LONGEST_RECORD);
	pages = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (pages == MAP_FAILED)
		return -errno;
	ring->consumer = pages;
	pages = mmap(NULL, ring->mapped, PROT_READ, MAP_SHARED, map_fd, page);
	if (pages == MAP_FAILED)
		return -errno;
	ring->producer = pages;
	ring->data = (const uint8_t *)pages + page;
	ring->position = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
	ring->produced = ring->position;
	return 0;
}

void ring_close(struct ring *ring)
{
	size_t page = page_bytes();

	if (ring->consumer)
		munmap(ring->consumer, page);
	if (ring->producer)
		munmap((void *)ring->producer, ring->mapped);
	*ring = (struct ring){0};
}

/* Bytes that have been reserved and not read. */
unsigned long ring_unread(const struct ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - ring->position;
}

/*
 * The next record, NULL: there is none, or its hook is still writing it. What a hook gave back unwritten is passed
 * over. The record stays as it is until ring_release().
 */
const void *ring_next(struct ring *ring, uint32_t *size)
{
	for (;;) {
		const uint32_t *header;
		uint32_t length;

		if (ring->position == ring->produced) {
			ring->produced = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
			if (ring->position == ring->produced)
				return NULL;
		}
		header = (const uint32_t *)(const void *)(ring->data + (ring->position & (ring->bytes - 1)));
		/* pairs with the hook's exchange at submission: not busy any more means that all of it is there */
		length = __atomic_load_n(header, __ATOMIC_ACQUIRE);
		if (length & BPF_RINGBUF_BUSY_BIT)
			return NULL;
		*size = length & ~(uint32_t)(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		ring->position += ((unsigned long)*size + BPF_RINGBUF_HDR_SZ + 7) & ~7UL;
		if (!(length & BPF_RINGBUF_DISCARD_BIT))
			return (const uint8_t *)header + BPF_RINGBUF_HDR_SZ;
	}
}

/* Give the room of everything read so far back to the hooks; no record read before may be looked at again. */
void ring_release(const struct ring *ring)
{
	__atomic_store_n(ring->consumer, ring->position, __ATOMIC_RELEASE);
}
