/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One iterator, run by user space: every open file of every process. Before a snapshot it brings the payload of live
 * TCP sockets into the counters; when a watch begins it takes in what its processes have open; it finds the ports of
 * listeners that were never bound.
 *
 * An iterator over the tags themselves would be apt, but some kernels refuse to load one (EPERM). What no process has
 * open (not accepted yet, or closed and still sending) is accounted when its connection ends.
 */
#ifndef KINWATCH_NET_WALK_BPF_H
#define KINWATCH_NET_WALK_BPF_H

#include "net_tcp.bpf.h"

enum { TELLABLE = TAG_OPEN | TAG_LISTENING | TAG_CONNECTED | TAG_CONNECTING };

/* Tell user space again of what it may have missed, or never knew: to the one who walks, for the ring may be full. */
static __noinline int file_retell(struct seq_file *seq, const struct kw_tag *tag, uint64_t watches)
{
	struct kw_socket record = tag->record;

	record.header.time_ns = bpf_ktime_get_boot_ns();
	record.header.watches = watches;
	record.header.roots &= watches;
	record.event = KW_SOCKET_LIVE;
	record.result = net.retell & KW_LIVE_TOLD;
	if (tag->flags & TAG_INCOMING)
		record.result |= KW_LIVE_INCOMING;
	bpf_seq_write(seq, &record, sizeof(record));
	return 0;
}

/* Take in a socket that was made before the watch, or by somebody else: its first owner among kin is who has it now. */
static __noinline int file_adopt(struct sock *sk, struct task_struct *task, const struct kw_kin *row)
{
	struct kw_tag *tag = bpf_sk_storage_get(&socket_tags, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!tag)
		return 0;
	tag_own(tag, row, BPF_CORE_READ(task, tgid));
	bpf_core_read(tag->record.comm, KW_COMM_BYTES, &task->comm);
	tag->record.family = sk->__sk_common.skc_family;
	if (tag->record.family == AF_INET || tag->record.family == AF_INET6)
		tag_hold(tag);
	tag->record.protocol = sk->sk_protocol;
	tag->record.type = sk->sk_type;
	tag->record.cookie = bpf_get_socket_cookie(sk);
	__sync_fetch_and_add(&net.changed, 1);
	return tag_catch_up(tag, sk, 0, 0);
}

SEC("iter/task_file")
int net_walk(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	const struct kw_kin *row;
	struct socket *socket;
	struct kw_tag *tag;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	tag = tag_find(sk);
	if (tag && tag_watches(tag) && tag->flags & TAG_OPEN && tag->record.protocol == IPPROTO_TCP)
		tag_account(tag, sk);
	if (tag && tag->flags & TAG_LISTENING && !tag->record.local_port) {
		/* Its listen() may have been interrupted before the port: then it is looked for again. */
		tag_local(tag, sk);
		tag_emit(tag, KW_SOCKET_LISTENING, 0);
	}
	if (net.retell && tag && tag->flags & TELLABLE && tag_watches(tag))
		file_retell(context->meta->seq, tag, tag->record.header.watches);
	if (!net.adopt)
		return 0;
	row = kin_of(task->tgid, BPF_CORE_READ(task, group_leader, start_boottime));
	if (!row || !(row->watches & net.adopt))
		return 0;
	if (!tag)
		return file_adopt(sk, task, row);
	if (tag->record.process.pid == (uint32_t)task->tgid && tag->record.process.start_ns == row->start_ns)
		tag_join(tag, row->watches & net.adopt, row->roots, false);
	return 0;
}

#endif
