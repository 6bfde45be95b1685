// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The programs of a kernel that skips hooks: the first fork, exec and exit hooks see one event in SEES only, or none
 * (SEES 0). What they do with one that they see is what they always do. tests/kernel/test_skipped.py compiles it.
 */
#define on_fork seeing_fork
#define on_exec seeing_exec
#define on_exit seeing_exit
#include "again.bpf.h"
#include "deny.bpf.h"
#include "walk.bpf.h"
#undef on_fork
#undef on_exec
#undef on_exit

char LICENSE[] SEC("license") = "GPL";

#if SEES
#define SEEN (bpf_get_prandom_u32() % SEES == 0)
#else
#define SEEN 0
#endif

SEC("tp_btf/sched_process_fork")
int on_fork(unsigned long long *context)
{
	return SEEN ? ____on_fork(context, (void *)context[0], (void *)context[1]) : 0;
}

SEC("tp_btf/sched_process_exec")
int on_exec(unsigned long long *context)
{
	return SEEN ? ____on_exec(context, (void *)context[0], (int)context[1], (void *)context[2]) : 0;
}

SEC("tp_btf/sched_process_exit")
int on_exit(unsigned long long *context)
{
	return SEEN ? ____on_exit(context, (void *)context[0]) : 0;
}
