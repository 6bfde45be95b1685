"""What the capture costs that BCC compiles at each start: time, memory, and what of a storm it sees."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.storms import SETTLE_S, run_storm
from tests.bench.table import Row
from tests.bench.watcher import Kinwatch, Sleeper, memory_kb

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Compiled:
    """Of several starts, and of one storm of kin."""

    starts_ms: list[float]
    rss_kb: int
    """Idle, a root lives (VmRSS)."""
    children: int
    spawned: int
    lost: int


def measure(scratch: Path, watch: str, storm: Path, children: int, starts: int) -> Compiled:
    """Start it several times; let kin named as the program `storm` storm once."""
    times = []
    rss_kb = 0
    for _ in range(starts):
        with Kinwatch(scratch, watch, capture="bcc") as kinwatch, Sleeper(scratch, watch):
            times.append(kinwatch.ready_ms)
            time.sleep(SETTLE_S)
            rss_kb = memory_kb(kinwatch.pid, "VmRSS")
    with Kinwatch(scratch, storm.name, capture="bcc") as kinwatch:
        run_storm(storm, children)
        time.sleep(SETTLE_S)
    counted = kinwatch.counted()
    return Compiled(times, rss_kb, children, counted["spawned"], counted["lost"])


def rows(compiled: Compiled | str) -> list[Row]:
    """Without goals: it is for kernels that have nothing better."""
    ready, memory, seen = (
        f"{what}, capture bcc" for what in ("start until every hook is live", "memory, idle", "storm")
    )
    if isinstance(compiled, str):
        return [Row(what, f"not measured: {compiled}") for what in (ready, memory, seen)]
    times = compiled.starts_ms
    more = f"median of {len(times)} starts, {min(times):.0f} to {max(times):.0f}"
    return [
        Row(ready, f"{statistics.median(times):.0f} ms ({more}; clang compiles the hooks at each)"),
        Row(memory, f"{compiled.rss_kb / 1024:.1f} MB (VmRSS; most of it is clang and LLVM)"),
        Row(seen, f"{compiled.spawned:,} of {compiled.children:,} children counted, {compiled.lost:,} records lost"),
    ]
