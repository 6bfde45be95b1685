// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The table of contents of the kernel side, and its licence for the kernel.
 *
 *   event.h     the wire             kernel.h  the kernel structs we read     quirk.h  where kernels differ
 *   table.h     control cells, keys  maps.h    every map                      emit.h   the ring and its losses
 *   kin.h       who is kin, counts   match.h   what a watch matches           image.h  what a process runs
 *   proc.bpf.h  fork, exec, exit, cgroups   again.bpf.h  fork, exec, exit where the kernel skips hooks
 *   walk.bpf.h  iterators                   deny.bpf.h   forks refused by the BPF LSM
 *
 * net.bpf.c is a second object, which shares the maps of this one.
 */
#include "again.bpf.h"
#include "deny.bpf.h"
#include "walk.bpf.h"

char LICENSE[] SEC("license") = "GPL";
