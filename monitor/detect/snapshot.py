"""What all counters were at one moment, as plain data; knows neither where they came from nor the clock.

A capture builds a Snapshot, `metrics` turns two of them into the metrics of a window. What a capture cannot know it
names: absent is not zero, and the poller cannot count what lived between two of its looks.
"""

from __future__ import annotations

import msgspec


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
    window_peak: int
    """Most descendants alive at once since this reader began its window."""
    exes: tuple[str, ...] = ()
    """Distinct executables run by descendants in the reader's window, oldest first."""
    exes_missed: int = 0
    """Distinct executables beyond the bounded set."""


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
