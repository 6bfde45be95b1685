/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs that do nothing, at the tracepoints of a process's life: what the kernel's own measuring of a program costs.
 * Prints their ids, one "NAME ID" a line, and stays until stdin ends; nothing is pinned, so nothing outlives it.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

static int hook(const char *name, const char *tracepoint)
{
	const struct bpf_insn nothing[] = {
	    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0},
	    {.code = BPF_JMP | BPF_EXIT},
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_TRACE_RAW_TP);
	struct bpf_prog_info info = {};
	uint32_t size = sizeof(info);
	int type = libbpf_find_vmlinux_btf_id(tracepoint, BPF_TRACE_RAW_TP);
	int program;

	if (type < 0)
		return type;
	options.attach_btf_id = (uint32_t)type;
	program = bpf_prog_load(BPF_PROG_TYPE_TRACING, name, "GPL", nothing, 2, &options);
	if (program < 0 || bpf_raw_tracepoint_open(NULL, program) < 0 || bpf_obj_get_info_by_fd(program, &info, &size))
		return -errno;
	printf("%s %u\n", name, info.id);
	return 0; /* both descriptors stay open: they are the hook */
}

int main(void)
{
	static const char *const hooks[][2] = {
	    {"on_fork", "sched_process_fork"}, {"on_exec", "sched_process_exec"}, {"on_exit", "sched_process_exit"}};
	char byte;

	for (int i = 0; i < 3; i++) {
		int error = hook(hooks[i][0], hooks[i][1]);

		if (error) {
			fprintf(stderr, "empty_hooks: %s: %s\n", hooks[i][1], strerror(-error));
			return 1;
		}
	}
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		continue;
	return 0;
}
