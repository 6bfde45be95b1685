/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is lost, and of that what the kernel skipped: it does not run a program on a processor on which that program is
 * still running, and counts it. Such losses join the others' cells here. Refuses to know how they are told (drain.c).
 */
#include <bpf/bpf.h>

#include "loader_parts.h"

static uint64_t program_skipped(int fd)
{
	struct bpf_prog_info program = {};
	uint32_t size = sizeof(program);

	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &program, &size))
		return 0;
	return program.recursion_misses;
}

/* Of a hook and its second, what both skipped: no more than the one that skipped less. */
static uint64_t both_skipped(const struct kernel_set *set, int link)
{
	uint64_t skipped = program_skipped(set->programs[link]), again;

	if (!skipped || link > LINK_EXIT || set->links[LINKS_ALWAYS + link] < 0)
		return skipped;
	again = program_skipped(set->programs[LINKS_ALWAYS + link]);
	return again < skipped ? again : skipped;
}

void skips_look(struct kw_loader *loader)
{
	struct kw_control *control = loader->set.control;
	uint64_t before = __atomic_load_n(&control->skipped, __ATOMIC_ACQUIRE);
	uint64_t skipped = net_skipped(loader, program_skipped);

	for (int i = LINK_FORK; i <= LINK_CGROUP_RMDIR; i++)
		skipped += both_skipped(&loader->set, i);
	/* Two threads may look; and programs that were loaded anew count from zero. */
	if (skipped != before && __sync_bool_compare_and_swap(&control->skipped, before, skipped) && skipped > before)
		__sync_fetch_and_add(&control->lost[KW_HOOK_MISSED], skipped - before);
}

int kw_loader_losses(struct kw_loader *loader, uint64_t *losses)
{
	skips_look(loader);
	for (int i = 0; i < KW_STAGES; i++)
		losses[i] = __atomic_load_n(&loader->set.control->lost[i], __ATOMIC_ACQUIRE);
	return 0;
}
