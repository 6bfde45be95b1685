"""What all counters were at one moment, as plain data; knows neither where they came from nor the clock.

A capture builds a Snapshot, `metrics` turns two of them into the metrics of a window. What a capture cannot know it
names: absent is not zero, and the poller cannot count what lived between two of its looks.
"""

from __future__ import annotations

from typing import Final

import msgspec

from monitor.remote import Remote, endpoint

LATEST: Final = 8
"""Destinations that `status` shows of a watch."""
TRAFFIC: Final = (
    "bytes_in",
    "bytes_out",
    "wire_bytes_in",
    "wire_bytes_out",
    "packets_in",
    "packets_out",
    "tcp_segments_in",
    "tcp_segments_out",
    "connections_out",
    "connections_in",
    "connections_failed",
    "attempts",
)
"""Network fields of WatchSnapshot that only grow. They begin anew by themselves when the network hooks do."""

NETWORK: Final = frozenset(
    (*TRAFFIC, "open", "listening", "remotes", "remotes_missed", "listening_ports", "listening_missed")
)
"""Every network field of WatchSnapshot: what a capture without network hooks cannot know."""


class WatchSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one watch (source: `struct kw_counters` in ebpf/event.h; all counts since the watch began)."""

    name: str
    roots: int
    alive: int
    peak: int
    spawned: int
    adopted: int
    execs: int
    exits: int
    root_starts: int
    root_exits: int
    enforced: int | None = None
    """Processes killed, or to be killed by user space, and forks refused; None: the watch is not enforced."""
    would_enforce: int | None = None
    """Processes that a dry run, or a breaker that had tripped, let go; None: the watch is not enforced."""
    window_peak: int
    """Most descendants alive at once since this reader began its window."""
    exes: tuple[str, ...] = ()
    """Distinct executables run by descendants in the reader's window, oldest first."""
    exes_missed: int = 0
    """Distinct executables beyond the bounded set."""
    # Network of roots and descendants together, by the owners of sockets (source: `struct kw_net_counters` in
    # ebpf/net_table.h).
    bytes_in: int = 0
    """Payload that programs read."""
    bytes_out: int = 0
    """Payload that programs wrote; retransmissions do not count."""
    wire_bytes_in: int = 0
    """On the wire, from the IP header on."""
    wire_bytes_out: int = 0
    packets_in: int = 0
    """Packets on the wire: an offloaded bundle counts as the segments it stands for."""
    packets_out: int = 0
    tcp_segments_in: int = 0
    """Segments of TCP, as the kernel counts them for each socket (RFC 4898): bundles one by one, those without payload
    and retransmissions too, until the connection is closed."""
    tcp_segments_out: int = 0
    connections_out: int = 0
    """Established by kin."""
    connections_in: int = 0
    """Accepted by kin."""
    connections_failed: int = 0
    """Refused, timed out or reset before they were established."""
    attempts: int = 0
    """Connections that kin began, whatever became of them."""
    open: int = 0
    """Connections established now."""
    listening: int = 0
    """Listening sockets now."""
    remotes: tuple[Remote, ...] = ()
    """Distinct remote addresses of the reader's window, or of connections still open; oldest first."""
    remotes_missed: int = 0
    """Distinct remote addresses beyond the bounded set."""
    listening_ports: tuple[int, ...] = ()
    """Ports, TCP and UDP, that kin listened on in the reader's window, or do now; ascending, each once."""
    listening_missed: int = 0
    """Ports beyond the bounded set."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All watches at one moment."""

    wall_ns: int
    """CLOCK_REALTIME, nanoseconds."""
    boot_ns: int
    """CLOCK_BOOTTIME, nanoseconds."""
    watches: tuple[WatchSnapshot, ...]
    lost: dict[str, int]
    """Details lost by stage name (ring_full, table_full, ...), since the capture's counters began."""
    lower_bounds: frozenset[str] = frozenset()
    """Fields of WatchSnapshot that this capture knows only as a lower bound."""
    unknown: frozenset[str] = frozenset()
    """Fields of WatchSnapshot that this capture cannot know; their value must not be used."""


def destinations(watch: WatchSnapshot) -> dict[str, object]:
    """How many remote addresses kin had to do with, and the latest of those it connected or sent to."""
    latest = [remote for remote in reversed(watch.remotes) if not remote.incoming][:LATEST]
    return {
        "remotes": len(watch.remotes) + watch.remotes_missed,
        "destinations": [endpoint(remote.address, remote.port) for remote in latest],
    }
