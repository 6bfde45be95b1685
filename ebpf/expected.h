/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Where a file lies in the table of expected executables; the same for the hooks that read and the loader that writes.
 */
#ifndef KINWATCH_EXPECTED_H
#define KINWATCH_EXPECTED_H

/* The row to begin the search with; the next ones follow, KW_EXPECTED_PROBES in all. */
static inline uint32_t expected_row(const struct kw_file_key *file)
{
	uint64_t mixed = (file->inode ^ (uint64_t)file->device << 32) * 0x9e3779b97f4a7c15ULL; /* 2^64 / golden ratio */

	return mixed >> 32 & (KW_EXPECTED_ROWS - 1);
}

static inline uint32_t expected_next(uint32_t row)
{
	return (row + 1) & (KW_EXPECTED_ROWS - 1);
}

static inline int expected_is(const struct kw_expected *row, const struct kw_identity *identity)
{
	/* One branch, not four: the verifier goes through all ways there are. */
	return !((row->file.inode ^ identity->file.inode) | (row->file.device ^ identity->file.device) |
		 (row->ctime_ns ^ identity->ctime_ns) | (row->size ^ identity->size));
}

#endif
