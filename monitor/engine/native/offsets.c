/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where fields are in the kernel's structs, by type information: for programs that are compiled on the device. Reads
 * and answers; what is done without a field, monitor/capture/bccsource.py knows.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "event.h"
#include "engine.h"
#include "net_table.h"
#include "loader.h"

enum { DEEPEST = 8 }; /* structs without a name, one in the other */

/* Bytes from the beginning of the type, -1: it has no such field, nor has what it embeds without a name. */
static int32_t field_offset(const struct btf *btf, const struct btf_type *type, const char *field, int depth)
{
	const struct btf_member *members = btf_members(type);

	for (uint32_t i = 0; i < btf_vlen(type); i++) {
		const char *name = btf__name_by_offset(btf, members[i].name_off);
		int32_t offset = (int32_t)(btf_member_bit_offset(type, i) / 8);
		const struct btf_type *inner;
		int32_t within;

		if (name && name[0]) {
			if (strcmp(name, field) == 0)
				return offset;
			continue;
		}
		inner = btf__type_by_id(btf, members[i].type);
		if (depth >= DEEPEST || !inner || !btf_is_composite(inner))
			continue;
		within = field_offset(btf, inner, field, depth + 1);
		if (within >= 0)
			return offset + within;
	}
	return -1;
}

static int32_t offset_of(const struct btf *btf, const char *path)
{
	const char *field = strchr(path, '.');
	char name[64];
	int32_t id;

	if (!field || (size_t)(field - path) >= sizeof(name))
		return -1;
	memcpy(name, path, (size_t)(field - path));
	name[field - path] = 0;
	id = btf__find_by_name_kind(btf, name, BTF_KIND_STRUCT);
	return id < 0 ? -1 : field_offset(btf, btf__type_by_id(btf, (uint32_t)id), field + 1, 0);
}

int kw_btf_offsets(const char *path, const char *const *fields, uint32_t count, int32_t *offsets)
{
	struct btf *btf = path[0] ? btf__parse(path, NULL) : btf__load_vmlinux_btf();

	if (!btf)
		return errno ? -errno : -ENOENT;
	for (uint32_t i = 0; i < count; i++)
		offsets[i] = offset_of(btf, fields[i]);
	btf__free(btf);
	return 0;
}
