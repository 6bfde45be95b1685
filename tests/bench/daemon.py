"""What a daemon costs while nothing happens, and how soon it tells. Owns starts, idle time, memory, the first event."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.programs import ROOT
from tests.bench.storms import SETTLE_S, run_storm
from tests.bench.watcher import Kinwatch, Sleeper, Unmeasured, memory_kb, voluntary_switches

ENGINE: Final = re.compile(r"engine: (\d+) ns per record")
ROOT_COMES_S: Final = 1.0


@dataclass(frozen=True)
class Idle:
    """A daemon with a live root, nothing happening to its kin."""

    seconds: float
    polls: int
    """Returns of the capture thread from its wait."""
    woken: int
    """Wake-ups that hooks sent."""
    switches: int
    """Of all threads: how often one went to sleep, so had been awake."""
    others: int
    """Processes and threads that the rest of the machine made meanwhile (/proc/stat)."""
    storm_children: int
    storm_polls: int
    """As `polls`, while somebody else storms."""
    rss_kb: int


def ready_ms(scratch: Path, watch: str, starts: int) -> list[float]:
    """From the start of the command to its line that says it watches, as a daemon, with pins."""
    times = []
    for _ in range(starts):
        with Kinwatch(scratch, watch, daemon=True) as kinwatch:
            times.append(kinwatch.ready_ms)
    return times


def forks() -> int:
    """Processes and threads made since boot (proc(5): /proc/stat, processes)."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith("processes "):
            return int(line.split()[1])
    raise Unmeasured("/proc/stat has no processes")


def _facts(kinwatch: Kinwatch) -> dict[str, int]:
    kernel = kinwatch.status()["kernel"]
    return {"polls": int(kernel["polls"]), "woken": int(kernel["woken"])}


def idle(scratch: Path, watch: str, storm: Path, children: int, seconds: float) -> Idle:
    """Do nothing for a while, then let another application storm."""
    with Kinwatch(scratch, watch, daemon=True) as kinwatch, Sleeper(scratch, watch):
        time.sleep(ROOT_COMES_S)
        before = _facts(kinwatch)
        time.sleep(SETTLE_S)  # its answer is not part of the quiet
        made, slept = forks(), voluntary_switches(kinwatch.pid)
        time.sleep(seconds)
        slept, made = voluntary_switches(kinwatch.pid) - slept, forks() - made
        rss_kb = memory_kb(kinwatch.pid, "VmRSS")
        after = _facts(kinwatch)
        run_storm(storm, children)
        stormed = _facts(kinwatch)
        return Idle(
            seconds=seconds,
            polls=after["polls"] - before["polls"],
            woken=after["woken"] - before["woken"],
            switches=slept,
            others=made,
            storm_children=children,
            storm_polls=stormed["polls"] - after["polls"],
            rss_kb=rss_kb,
        )


def peak_rss_kb(scratch: Path, watch: str, storm: Path, children: int) -> int:
    """The most memory held while the storm named `watch` was watched (VmHWM)."""
    with Kinwatch(scratch, watch) as kinwatch:
        run_storm(storm, children)
        time.sleep(SETTLE_S)
        return memory_kb(kinwatch.pid, "VmHWM")


def first_event_ns(scratch: Path, program: Path, samples: int, *, alarm: bool = False) -> list[int]:
    """From fork() to the line in the hands of whoever reads the log, each after 20 ms of quiet.

    `alarm`: to the line of the alarm that the child raises, by a daemon: `run --once` ends with an alarm's report.
    """
    rules, sought = ("expect = { child_processes = 0 }", ["alarm"]) if alarm else ("", [])
    read_end, write_end = os.pipe()
    try:
        with Kinwatch(scratch, program.name, log_to=write_end, rules=rules, daemon=alarm):
            os.close(write_end)
            write_end = -1
            done = subprocess.run(
                [program, str(samples), *sought],
                stdin=read_end,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            os.close(read_end)  # nobody reads any more: it ends by itself
            read_end = -1
    finally:
        for fd in (read_end, write_end):
            if fd >= 0:
                os.close(fd)
    if done.returncode:
        raise Unmeasured(done.stderr.strip() or f"first_event exited {done.returncode}")
    return [int(line) for line in done.stdout.split()]


def engine_ns(program: Path, runs: int) -> float:
    """Per record, bytes to line, the engine alone; the middle of several runs."""
    found = []
    for _ in range(runs):
        done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=True)
        match = ENGINE.match(done.stdout)
        if match is None:
            raise Unmeasured(f"bench_engine said {done.stdout!r}")
        found.append(int(match[1]))
    return statistics.median(found)
