// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The second object of the kernel side: the network of kin. It shares the lineage table, the ring and the control cells
 * with kinwatch.bpf.c (the loader hands them over) and owns everything else.
 *
 *   net.h         tags of sockets, counters, records    net_table.h       cells shared with the loader
 *   net_tcp.bpf.h     TCP states, payload of the rest    net_cgroup.bpf.h  makers, UDP peers, bound ports
 *   net_packet.bpf.h  wire bytes, DNS                    net_walk.bpf.h    iterators
 */
#include "net_cgroup.bpf.h"
#include "net_packet.bpf.h"
#include "net_tcp.bpf.h"
#include "net_walk.bpf.h"

char LICENSE[] SEC("license") = "GPL";
