/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the kernel what it offers, by existence, never by version. Decides nothing: monitor/capture/choose.py does.
 */
#define _GNU_SOURCE
#include <linux/magic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "event.h"
#include "engine.h"
#include "net_table.h"
#include "loader.h"

enum { CAPABILITY_SYS_ADMIN = 21, CAPABILITY_PERFMON = 38, CAPABILITY_BPF = 39 }; /* include/uapi/linux/capability.h */

/* What ebpf/proc.bpf.h and walk.bpf.h attach to. */
static const char *const tracepoints[] = {
    "btf_trace_sched_process_fork", "btf_trace_sched_process_exec", "btf_trace_sched_process_exit",
    "btf_trace_cgroup_attach_task", "btf_trace_cgroup_mkdir",	    "btf_trace_cgroup_rmdir",
};
static const char *const iterators[] = {"bpf_iter_task", "bpf_iter_bpf_map"};

/* What ebpf/enforce.bpf.h does without where it is missing. */
static const char *const signal_task = "bpf_send_signal_task";

/* What tracepoints count their readers with, where they do not switch preemption off. */
static const char *const readers = "tracepoint_srcu_srcu_data";

static int knows_all(const struct btf *btf, const char *const *names, size_t count, uint32_t kind)
{
	for (size_t i = 0; i < count; i++)
		if (btf__find_by_name_kind(btf, names[i], kind) < 0)
			return 0;
	return 1;
}

/* Other kernels have it larger or smaller. -1: it is not in there. */
static int64_t task_bytes(const struct btf *btf)
{
	int id = btf__find_by_name_kind(btf, "task_struct", BTF_KIND_STRUCT);

	return id < 0 ? -1 : (int64_t)btf__type_by_id(btf, (uint32_t)id)->size;
}

static int capable(void)
{
	unsigned long long effective = 0;
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "CapEff: %llx", &effective) == 1)
			break;
	fclose(file);
	return (effective >> CAPABILITY_SYS_ADMIN & 1) ||
	       ((effective >> CAPABILITY_BPF & 1) && (effective >> CAPABILITY_PERFMON & 1));
}

static int locked_down(void)
{
	FILE *file = fopen("/sys/kernel/security/lockdown", "re");
	char line[128] = "";

	if (!file)
		return 0;
	if (!fgets(line, sizeof(line), file))
		line[0] = 0;
	fclose(file);
	return strstr(line, "[confidentiality]") != NULL;
}

static int lsm_is_active(void)
{
	FILE *file = fopen("/sys/kernel/security/lsm", "re");
	char line[256] = "";
	char *name, *rest = line;
	int found = 0;

	if (!file)
		return 0;
	if (!fgets(line, sizeof(line), file))
		line[0] = 0;
	fclose(file);
	while ((name = strsep(&rest, ",\n")))
		found |= strcmp(name, "bpf") == 0;
	return found;
}

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return 0;
}

static int loads(const struct bpf_insn *instructions, size_t count)
{
	int program = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, NULL, "GPL", instructions, count, NULL);

	if (program < 0)
		return 0;
	close(program);
	return 1;
}

int kw_bpffs_mounted(void)
{
	struct statfs mounted;

	return statfs("/sys/fs/bpf", &mounted) == 0 && (uint32_t)mounted.f_type == BPF_FS_MAGIC;
}

/* "bpf: Add instructions for atomic_[cmp]xchg" and the fetching ones before it (5ffa25502b5a, in 5.12). */
static int atomics(void)
{
	const struct bpf_insn adds_and_fetches[] = {
	    {.code = BPF_ST | BPF_MEM | BPF_DW, .dst_reg = BPF_REG_10, .off = -8},
	    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1},
	    {.code = BPF_STX | BPF_ATOMIC | BPF_DW,
	     .dst_reg = BPF_REG_10,
	     .src_reg = BPF_REG_0,
	     .off = -8,
	     .imm = BPF_ADD | BPF_FETCH},
	    {.code = BPF_JMP | BPF_EXIT},
	};

	return loads(adds_and_fetches, sizeof(adds_and_fetches) / sizeof(adds_and_fetches[0]));
}

void kw_facts_probe(const char *path, struct kw_facts *facts)
{
	struct btf *btf, *file;

	memset(facts, 0, sizeof(*facts));
	libbpf_set_print(quiet);
	btf = btf__load_vmlinux_btf();
	file = path[0] ? btf__parse(path, NULL) : NULL;
	facts->btf_file_bad = path[0] && !file;
	facts->btf_file_foreign = file && btf && task_bytes(file) != task_bytes(btf);
	if (btf) {
		facts->btf = 1;
		facts->tracing =
		    knows_all(btf, tracepoints, sizeof(tracepoints) / sizeof(tracepoints[0]), BTF_KIND_TYPEDEF) &&
		    knows_all(btf, iterators, sizeof(iterators) / sizeof(iterators[0]), BTF_KIND_FUNC);
		facts->signal_task = knows_all(btf, &signal_task, 1, BTF_KIND_FUNC);
		facts->hooks_preemptible = knows_all(btf, &readers, 1, BTF_KIND_VAR);
	}
	btf__free(file);
	btf__free(btf);
	facts->ring_buffer = libbpf_probe_bpf_map_type(BPF_MAP_TYPE_RINGBUF, NULL) == 1;
	facts->atomics = atomics();
	facts->capable = capable();
	facts->bpffs = kw_bpffs_mounted();
	facts->lockdown_confidentiality = locked_down();
	facts->lsm = lsm_is_active();
}

uint32_t kw_ways(void)
{
	struct btf *btf;
	uint32_t ways;

	libbpf_set_print(quiet);
	btf = btf__load_vmlinux_btf();
	if (!btf)
		return 0;
	ways = knows_all(btf, &readers, 1, BTF_KIND_VAR) ? KW_WAY_AGAIN : 0;
	if (lsm_is_active() && !knows_all(btf, &signal_task, 1, BTF_KIND_FUNC))
		ways |= KW_WAY_DENY;
	btf__free(btf);
	return ways;
}

int kw_reads_apart(void)
{
	libbpf_set_print(quiet);
	return libbpf_probe_bpf_helper(BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_FUNC_probe_read_kernel, NULL) == 1;
}

int kw_loops(void)
{
	const struct bpf_insn counts_to_four[] = {
	    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
	    {.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = BPF_REG_0, .imm = 1},
	    {.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = BPF_REG_0, .imm = 4, .off = -2},
	    {.code = BPF_JMP | BPF_EXIT},
	};

	libbpf_set_print(quiet);
	return loads(counts_to_four, sizeof(counts_to_four) / sizeof(counts_to_four[0]));
}

int kw_raw_tracepoints(void)
{
	libbpf_set_print(quiet);
	return libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_RAW_TRACEPOINT, NULL) == 1;
}
