/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of internal.h that is about rules on lineage; internal.h alone includes this.
 *
 * rules.c     what breaks a rule        breaches.c  who breaks it, the lines of alarms
 * ruleset.c   what is expected          enforced.c  what was done about it
 */
#ifndef KINWATCH_RULES_H
#define KINWATCH_RULES_H

struct kw_engine;
struct kw_process;
struct kw_path;

enum {
	MEMBERS_MOST = 4096,	      /* executables, edges or users in one expectation */
	BREACHES_KEPT = 1 << 18,      /* rules broken by living processes at once; more are told and not waited for */
	RATE_CELLS = 240,	      /* a minute */
	RATE_CELL_NS = 250 * 1000000, /* so that a minute is exact to a quarter of a second */
};

enum kw_rule {
	RULE_ROOT, /* a root executed what its watch does not mean */
	RULE_EXECUTABLES,
	RULE_EDGES,
	RULE_DEPTH,
	RULE_RATE,
	RULE_UIDS,
	RULE_MEMFD,
	RULE_DELETED,
	RULE_TEMPORARY,
	RULES
};

/* What breaks a rule: an image, an image and the one before it, a depth, a user. The other members are zero. */
struct kw_culprit {
	uint32_t path, before;
	uint32_t number;
	uint32_t processes; /* that break it so now */
};

struct kw_broken {
	struct kw_culprit kept[OFFENDERS_KEPT];
	uint32_t count;
	uint32_t beyond; /* processes whose culprit found no room */
	uint64_t since_wall_ns;
	struct kw_id last; /* the process that broke it last */
};

/* One rule that one process breaks in one slot. */
struct kw_breach {
	uint32_t next; /* of the same process, or in the free list */
	uint8_t slot, rule;
	uint16_t beyond;
	uint32_t path, before, number;
};

struct kw_breaches {
	struct kw_breach *cells;
	uint32_t room, used, free_cell;
};

/* Texts back to back, each ended by a zero byte. */
struct kw_texts {
	char *bytes;
	uint64_t length;
	uint32_t count;
};

struct kw_rate {
	uint32_t cells[RATE_CELLS];
	uint64_t newest; /* number of the newest cell since boot */
	uint64_t sum;
};

struct kw_rules {
	uint32_t judged;  /* bits of enum kw_rule */
	uint32_t alarmed; /* bits of enum kw_rule */
	struct kw_texts executables, edges;
	struct kw_file *files;
	uint32_t files_count;
	bool files_known; /* identities decide, and the kernel's word counts; else paths do */
	uint32_t *uids;
	uint32_t uids_count;
	uint32_t depth, forks_per_minute;
	struct kw_texts root; /* one text: the path or the name that a root is matched by */
	struct kw_rate rate;
	struct kw_broken broken[RULES];
};

struct kw_breaker {
	int64_t most; /* kills within a minute, -1: unknown */
	bool tripped;
	uint64_t since_wall_ns;
};

/* ruleset.c */
void kw_rules_end(struct kw_engine *engine, uint32_t slot);
bool kw_texts_have(const struct kw_texts *texts, const struct kw_path *path);

/* rules.c */
void kw_rules_forked(struct kw_engine *engine, uint32_t slot, struct kw_process *process, bool first);
void kw_rules_image(struct kw_engine *engine, uint32_t slot, const struct kw_image *record, struct kw_process *process,
		    uint32_t before);
void kw_rules_user(struct kw_engine *engine, uint32_t slot, struct kw_process *process);
void kw_rules_anew(struct kw_engine *engine, uint32_t slot, bool images);
void kw_rate_reaches(struct kw_rate *rate, uint64_t time_ns);

/* breaches.c */
void kw_breaks(struct kw_engine *engine, uint32_t slot, struct kw_process *process, enum kw_rule rule,
	       const struct kw_culprit *culprit, const struct kw_image *record);
struct kw_breach *kw_breach_of(struct kw_engine *engine, const struct kw_process *process, uint32_t slot,
			       enum kw_rule rule);
void kw_breaks_no_more(struct kw_engine *engine, uint32_t slot, struct kw_process *process, uint32_t rules);
void kw_breaks_as(struct kw_engine *engine, uint32_t slot, struct kw_process *process, const struct kw_process *parent);
void kw_rate_alarm(struct kw_engine *engine, uint32_t slot, struct kw_process *process);
void kw_rules_settle(struct kw_engine *engine, uint32_t slot, uint32_t withdrawn);

/* enforced.c */
void kw_enforced_happens(struct kw_engine *engine, const struct kw_enforced *record);

#endif
