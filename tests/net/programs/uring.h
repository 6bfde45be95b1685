/* SPDX-License-Identifier: Apache-2.0 */
/* One io_uring with one operation at a time, over the system calls alone. Owns the ring; knows sending and receiving.
 */
#ifndef URING_H
#define URING_H

#include "net.h"
#include <linux/io_uring.h>
#include <sys/mman.h>

struct uring {
	int fd;
	unsigned int flags;
	struct io_uring_sqe *sqes;
	unsigned int *sq_tail, *sq_mask, *sq_array, *sq_flags;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_cqe *cqes;
};

/* flags: 0 or IORING_SETUP_SQPOLL. Fails with the kernel's errno where io_uring is switched off. */
static void uring_open(struct uring *ring, unsigned int flags)
{
	struct io_uring_params params = {.flags = flags, .sq_thread_idle = 100};
	size_t sq_bytes, cq_bytes;
	char *sq, *cq;

	ring->flags = flags;
	ring->fd = syscall(__NR_io_uring_setup, 4, &params);
	if (ring->fd < 0)
		fail("io_uring_setup");
	sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
	ring->sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
			  ring->fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring->sqes == MAP_FAILED)
		fail("mmap");
	ring->sq_tail = (unsigned int *)(sq + params.sq_off.tail);
	ring->sq_mask = (unsigned int *)(sq + params.sq_off.ring_mask);
	ring->sq_array = (unsigned int *)(sq + params.sq_off.array);
	ring->sq_flags = (unsigned int *)(sq + params.sq_off.flags);
	ring->cq_head = (unsigned int *)(cq + params.cq_off.head);
	ring->cq_tail = (unsigned int *)(cq + params.cq_off.tail);
	ring->cq_mask = (unsigned int *)(cq + params.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
}

/* Do one operation on a socket and wait for it; what the system call of that name would return. */
static ssize_t uring_do(struct uring *ring, int opcode, int fd, void *bytes, size_t length, unsigned int sqe_flags)
{
	unsigned int tail = *ring->sq_tail, slot = tail & *ring->sq_mask;
	unsigned int enter = IORING_ENTER_GETEVENTS;
	struct io_uring_sqe *sqe = &ring->sqes[slot];
	unsigned int head = *ring->cq_head;
	ssize_t result;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = opcode;
	sqe->flags = sqe_flags;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)bytes;
	sqe->len = length;
	ring->sq_array[slot] = slot;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(ring->sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)
		enter |= IORING_ENTER_SQ_WAKEUP;
	while (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
		unsigned int submit = ring->flags & IORING_SETUP_SQPOLL ? 0 : 1;

		if (syscall(__NR_io_uring_enter, ring->fd, submit, 1, enter, NULL, 0) < 0 && errno != EINTR)
			fail("io_uring_enter");
	}
	result = ring->cqes[head & *ring->cq_mask].res;
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return result;
}

#endif
