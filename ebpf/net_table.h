/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the loader and the network's hooks share beyond the wire. Same rules as event.h: enums and structs only. A
 * change here needs no KW_LAYOUT: the network side is taken over only from the very same object.
 */

/* One row, in the object's .data.net, mapped by the loader. User space writes the first group, the hooks the second. */
struct kw_net_control {
	uint64_t object_hash;	/* of the object file the programs came from */
	uint32_t rows_id;	/* of the lineage table they read */
	uint32_t hooks;		/* enum kw_net_hook: what was live when they were pinned */
	uint64_t adopt;		/* watches whose processes' sockets the walk over files takes in */
	uint64_t expecting;	/* watches that expect certain destinations: told when a connection begins */
	uint32_t forgotten[32]; /* KW_SLOTS: the epoch in which a slot's watch was removed last */
	uint32_t epoch;		/* how often a watch was removed; a tag of an earlier one looks what it lost */
	uint32_t desk;		/* 0: tags go into the sockets alone */
	uint64_t retell;	/* 1: the walk over files tells its reader of every socket of kin; with enum kw_live */

	uint64_t pad_to_line[2];
	uint64_t sockets; /* of kin, alive */
	uint64_t changed; /* sockets that the current walk took in */
};

/*
 * Network of a watch, roots and descendants together; monotonic but for open and listening. Payload is what programs
 * wrote and read; wire is what the interfaces saw, headers and retransmissions included.
 */
struct kw_net_counters {
	uint64_t bytes_in, bytes_out;
	uint64_t wire_bytes_in, wire_bytes_out;
	uint64_t packets_in, packets_out;
	uint64_t tcp_segments_in, tcp_segments_out; /* as TCP itself counts them for its sockets */
	uint64_t connections_out;		    /* established by kin */
	uint64_t connections_in;		    /* accepted by kin */
	uint64_t connections_failed;		    /* refused, timed out or reset before they were established */
	uint64_t attempts;			    /* connections that kin began */
	uint64_t open;				    /* connections established now */
	uint64_t listening;			    /* listening sockets now */
};

/* row of `net_counters`: the cells, on two cache lines of their own */
struct kw_net_row {
	struct kw_net_counters cells;
	uint64_t reserved[2];
};
