/* SPDX-License-Identifier: Apache-2.0 */
/* What the loader's network files share: netload.c (load, pin, take over), netrun.c (attach packets, walk, read). */
#ifndef KINWATCH_NETLOAD_H
#define KINWATCH_NETLOAD_H

#include "loader_parts.h"

enum net_map { NET_MAP_TAGS, NET_MAP_COUNTERS, NET_MAP_CONTROL, NET_MAPS };

enum net_program {
	NET_STATE,
	NET_SOCK_CREATE,
	NET_SOCK_RELEASE,
	NET_CONNECT4,
	NET_CONNECT6,
	NET_SENDMSG4,
	NET_SENDMSG6,
	NET_RECVMSG4,
	NET_RECVMSG6,
	NET_POST_BIND4,
	NET_POST_BIND6,
	NET_SEND,
	NET_RECV,
	NET_EGRESS,
	NET_INGRESS,
	NET_WALK,
	NET_PROGRAMS
};

enum { NET_ROOTS = 64 };

/* Does the kernel skip this one's program sometimes? Those of cgroups it does not. */
static inline int is_tracing(int program)
{
	return program == NET_STATE || program == NET_SEND || program == NET_RECV;
}

struct net_side {
	uint32_t hooks;			 /* enum kw_net_hook: live, or ready to be (packets) */
	char reasons[KW_NET_HOOKS][256]; /* why not, by bit */
	int maps[NET_MAPS];		 /* -1: none */
	int links[NET_PROGRAMS];	 /* -1: not attached */
	int programs[NET_PROGRAMS];	 /* of those that are attached anew or that the kernel may skip; -1: none */
	int cgroup;			 /* the root of the cgroup2 hierarchy */
	int packets_failed;		 /* errno of the last attempt: not tried again */
	uint32_t roots[NET_ROOTS];	 /* pids of fresh ones, whose open files are looked at next */
	uint32_t roots_noted;		 /* more than NET_ROOTS: everybody's are */
	int portless;			 /* a listener's port is to be found */
	int taken_over;			 /* an earlier daemon told of its sockets; 0: the walk that adopts them does */
	struct kw_net_control *control;	 /* mapped */
	char pins[300];			 /* "" = unpinned */

	/* Loading, in a thread of its own while the first object is loaded. */
	int loading; /* the thread is not joined */
	pthread_t thread;
	char path[512];
	uint32_t wanted;
	struct bpf_object *loaded; /* by the thread; NULL: refused */
};

#endif
