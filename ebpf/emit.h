/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The only file that touches the ring: reserve, submit, count what is lost, decide who wakes the reader.
 *
 * A wake-up costs 8-25 us, a record without one well under 1 us, so the reader is woken only when it sleeps. Nothing
 * can be overlooked: the reader says "sleeping", then looks at the producer position once more, and goes to sleep only
 * if nothing is reserved; a hook reserves, then looks whether the reader sleeps. Both sides have a full barrier between
 * the two steps (here: the atomic add to `activity`), so at least one of them sees the other.
 */
#ifndef KINWATCH_EMIT_H
#define KINWATCH_EMIT_H

#include "maps.h"

static __always_inline void lose(uint32_t stage)
{
	__sync_fetch_and_add(&control.lost[stage & 7], 1);
}

/* Wake the reader though there is no record: an empty reservation, given back. */
static __always_inline void knock(void)
{
	void *nothing = bpf_ringbuf_reserve(&events, 8, 0);

	if (nothing)
		bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

/* A loss that leaves no record behind: the reader, if it sleeps, has to be told. It looks at the losses once more
 * before it sleeps, as it does at the ring. */
static __always_inline void lose_and_tell(uint32_t stage)
{
	uint64_t before = __sync_fetch_and_add(&control.lost[stage & 7], 1);

	barrier_var(before); /* a full barrier, as in wake_flags() */
	if (*(volatile uint32_t *)&control.reader != KW_READER_SLEEPING)
		return;
	control.reader = KW_READER_AWAKE;
	__sync_fetch_and_add(&control.woken, 1);
	knock();
}

enum { ONE_RECORD = 1 << KW_PACKED_BITS };

/* The flags of one submission: who wakes the reader? `kin`: by how many the number of kin changes with this record. */
static __always_inline uint64_t wake_flags(uint64_t now_ns, bool urgent, int64_t kin)
{
	uint64_t before = __sync_fetch_and_add(&control.activity, ONE_RECORD + kin);
	uint32_t reader;

	barrier_var(before); /* an add whose result is used is a full barrier on every machine */
	reader = *(volatile uint32_t *)&control.reader;
	if (reader == KW_READER_SLEEPING ||
	    (reader == KW_READER_NAPPING && ((urgent && now_ns - control.last_wake_ns >= control.urgent_ns) ||
					     bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > control.wake_bytes))) {
		control.reader = KW_READER_AWAKE; /* one wake-up is enough */
		control.last_wake_ns = now_ns;
		__sync_fetch_and_add(&control.woken, 1);
		return BPF_RB_FORCE_WAKEUP;
	}
	return BPF_RB_NO_WAKEUP;
}

/*
 * A record whose size is not constant. bpf_ringbuf_output() reserves and submits in one step, so the question whether
 * the reader sleeps is asked before it and, because the answer may have changed, once more after it.
 */
static __always_inline void output(void *record, uint32_t size, uint64_t now_ns)
{
	uint64_t flags = wake_flags(now_ns, false, 0);

	if (bpf_ringbuf_output(&events, record, size, flags)) {
		lose(KW_RING_FULL);
		if (flags == BPF_RB_FORCE_WAKEUP) /* promised by wake_flags(), and nobody else will */
			knock();
		return;
	}
	if (flags == BPF_RB_FORCE_WAKEUP || wake_flags(now_ns, false, -ONE_RECORD) == BPF_RB_NO_WAKEUP)
		return;
	knock();
}

static __always_inline void submit(void *record, uint64_t now_ns, bool urgent, int64_t kin)
{
	bpf_ringbuf_submit(record, wake_flags(now_ns, urgent, kin));
}

static __always_inline uint32_t kin_alive(void)
{
	return control.activity & KW_PACKED_MASK;
}

#endif
