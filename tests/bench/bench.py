"""The bench: everything that kinwatch promises in figures, measured in one run on this machine, as Markdown on stdout.

bench.py [--quick] [--write]

Owns the order of measuring and the frame of the page; refuses to know how anything is measured. Needs root. What cannot
be measured is said in its row, with the reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from tests.bench import (
    compiled,
    daemon,
    decisions,
    device,
    hooks,
    network,
    page,
    programs,
    publishing,
    storms,
    table,
    watchers,
    windows,
)
from tests.bench.watcher import Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

STORM: Final = "kwb-storm"
FIRST: Final = "kwb-first"
OTHER: Final = "kwb-other"
TURN_CHILDREN: Final = 2_000
"""About 70 ms: long beside the daemon's naps, short beside the moods of a shared machine."""
LAST_UNLOAD_S: Final = 2.0
"""The kernel frees programs some time after their last user has gone."""
NOBODY: Final = "nobody"
PSUTIL: Final = "psutil"
FORKSTAT: Final = "forkstat"
PAGE: Final = programs.ROOT / "docs" / "bench.md"
FAILURES: Final = (Unmeasured, subprocess.SubprocessError, OSError)

HOOKS_HEAD: Final = """\
## Hooks, ns per run

By the kernel's own measuring (kernel.bpf_stats_enabled). Net: less what programs that do nothing cost, at the same
tracepoints, in the same storm, measured the same way.
"""
PEERS_HEAD: Final = f"""\
## Beside what else there is

The same storm. psutil: `children(recursive=True)` of the storming process, every {watchers.POLL_MS} ms. forkstat:
`-e fork,exec,exit -l -S`; a child whose parent it could not tell counts for it.
"""

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    children: int
    rounds: int
    peer_rounds: int
    turns: int
    hook_children: int
    hook_rounds: int
    samples: int
    starts: int
    idle_s: float
    streams: int
    cycles: int
    alarms: int
    backlog: int
    throttled: int
    engine_runs: int = 5
    looks: int = 25
    windows: int = 50


FULL: Final = Size(
    children=100_000,
    rounds=7,
    peer_rounds=3,
    turns=300,
    hook_children=50_000,
    hook_rounds=5,
    samples=1000,
    starts=9,
    idle_s=10,
    streams=40,
    cycles=50_000,
    alarms=450,
    backlog=10_000,
    throttled=10_000,
)
QUICK: Final = Size(
    children=20_000,
    rounds=5,
    peer_rounds=3,
    turns=100,
    hook_children=20_000,
    hook_rounds=3,
    samples=200,
    starts=5,
    idle_s=10,
    streams=20,
    cycles=20_000,
    alarms=90,
    backlog=10_000,
    throttled=1_000,
)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def tried(what: str, measure: Callable[[], Measured]) -> Measured | str:
    """What was measured, or why it could not be."""
    say(what)
    try:
        return measure()
    except FAILURES as error:
        say(f"{what}: {error}")
        return str(error)


class Bench:
    """One run: measures, then tells."""

    def __init__(self, scratch: Path, size: Size) -> None:
        """`scratch`: an empty directory for programs and logs. Raises CalledProcessError when one does not compile."""
        self.scratch, self.size = scratch, size
        self.storm = programs.compiled("storm.c", scratch / STORM)
        self.plain = programs.compiled("storm.c", scratch / "kwb-plain")
        self.first = programs.compiled("first_event.c", scratch / FIRST)
        self.empty = programs.compiled("empty_hooks.c", scratch / "kwb-empty", *programs.libbpf())
        self.engine = programs.compiled("bench_engine.c", scratch / "kwb-engine", *programs.engine_sources())

    def run(self) -> str:
        """All of it, as one page."""
        others = loaded()
        results = self._storms()
        turns = tried("storms in turns", self._turns)
        costs = self._hooks()
        rows = [
            page.seen_row(results[page.KIN]),
            page.turns_row(turns, TURN_CHILDREN),
            *(page.slower_row(name, results[name]) for name in (*page.SLOWER_PERCENT, NOBODY)),
            page.daemon_row(results[page.KIN]),
            *page.hook_rows(costs),
            *page.decision_rows(
                tried(
                    "decisions",
                    lambda: decisions.measure(self.scratch, self.storm, self.size.hook_children, self.size.hook_rounds),
                )
            ),
            *self._daemon_rows(),
            *compiled.rows(
                tried(
                    "the capture that BCC compiles",
                    lambda: compiled.measure(self.scratch, OTHER, self.storm, self.size.children, self.size.starts),
                )
            ),
            *self._network_rows(),
            *self._publishing_rows(),
            page.look_row(tried("looks at all sockets", lambda: device.looks(self.size.looks))),
            page.window_row(tried("windows", lambda: windows.ends(self.scratch, self.size.windows))),
        ]
        parts = [
            head(self.size, max(others, loaded())),
            table.goals(rows),
            HOOKS_HEAD,
            page.hook_table(costs),
            PEERS_HEAD,
            page.peers(results[page.KIN], results[PSUTIL], results[FORKSTAT]),
        ]
        return "\n".join(parts)

    def _storms(self) -> dict[str, storms.Result]:
        scratch, rounds, fewer = self.scratch, self.size.rounds, self.size.peer_rounds
        conditions = [
            watchers.Maker(page.KIN, lambda: watchers.ByKinwatch(scratch, STORM), rounds),
            watchers.Maker(page.OTHERS, lambda: watchers.ByKinwatch(scratch, OTHER, root=True), rounds),
            watchers.Maker(page.NO_ROOT, lambda: watchers.ByKinwatch(scratch, OTHER), rounds),
            watchers.Maker(NOBODY, watchers.Nobody, rounds),
            watchers.Maker(PSUTIL, lambda: watchers.ByPolling(scratch, STORM), fewer),
            watchers.Maker(FORKSTAT, lambda: watchers.ByForkstat(scratch), fewer),
        ]
        results = storms.results_of(conditions, self.size.children)
        storms.run_storm(self.storm, self.size.children)  # a machine that has slept is slow at first
        with hooks.stats(on=False):
            for step in storms.run_rounds(self.storm, conditions, results, FAILURES):
                say(step)
        return results

    def _turns(self) -> list[tuple[float, float]]:
        with watchers.ByKinwatch(self.scratch, STORM), hooks.stats(on=False):
            return storms.in_turns(self.storm, self.plain, TURN_CHILDREN, self.size.turns)

    def _hooks(self) -> dict[str, dict[str, hooks.Cost] | str]:
        bench = hooks.Bench(self.scratch, self.storm, self.empty, self.size.hook_children, self.size.hook_rounds)
        return {
            page.KIN: tried("hooks, kin", lambda: bench.measure(STORM, root=False)),
            page.OTHERS: tried("hooks, others", lambda: bench.measure(OTHER, root=True)),
            page.NO_ROOT: tried("hooks, no root", lambda: bench.measure(OTHER, root=False)),
        }

    def _daemon_rows(self) -> list[table.Row]:
        size, scratch = self.size, self.scratch
        return [
            page.engine_row(tried("engine", lambda: daemon.engine_ns(self.engine, size.engine_runs))),
            page.ready_row(tried("starts", lambda: daemon.ready_ms(scratch, OTHER, size.starts))),
            *page.idle_rows(tried("idle", lambda: daemon.idle(scratch, OTHER, self.storm, size.children, size.idle_s))),
            page.peak_row(tried("memory", lambda: daemon.peak_rss_kb(scratch, STORM, self.storm, size.children))),
            *(page.first_row(self._first_ns(alarm=alarm), alarm=alarm) for alarm in (False, True)),
        ]

    def _first_ns(self, *, alarm: bool) -> list[int] | str:
        return tried(
            f"first event, {alarm=}",
            lambda: daemon.first_event_ns(self.scratch, self.first, self.size.samples, alarm=alarm),
        )

    def _network_rows(self) -> list[table.Row]:
        return [
            *(
                page.stream_row(self._streams(kin=kin, packets=packets), kin=kin, packets=packets)
                for packets in (False, True)
                for kin in (True, False)
            ),
            *(self._cycle_row(packets=packets) for packets in (False, True)),
        ]

    def _cycle_row(self, *, packets: bool) -> table.Row:
        return page.cycle_row(
            tried(
                f"connections, {packets=}",
                lambda: network.cycles(self.scratch, self.empty, self.size.cycles, packets=packets),
            ),
            packets=packets,
        )

    def _streams(self, *, kin: bool, packets: bool) -> list[tuple[float, float]] | str:
        return tried(
            f"streams, {kin=}, {packets=}",
            lambda: network.stream_pairs(self.scratch, self.size.streams, kin=kin, packets=packets),
        )

    def _publishing_rows(self) -> list[table.Row]:
        size, scratch = self.size, self.scratch
        return [
            *page.alarm_rows(tried("alarms", lambda: publishing.alarm_ns(scratch, size.alarms))),
            page.connected_row(
                tried("memory, connected", lambda: publishing.connected_rss_kb(scratch)),
                tried("memory of the sample agent", lambda: publishing.sample_agent_rss_kb(scratch)),
            ),
            self._drain_row(throttle=False, count=size.backlog),
            self._drain_row(throttle=True, count=size.throttled),
        ]

    def _drain_row(self, *, throttle: bool, count: int) -> table.Row:
        drained = tried(f"drain, {throttle=}", lambda: publishing.drained(self.scratch, count, throttle=throttle))
        return page.drain_row(drained, throttle=throttle)


def loaded() -> int:
    """How many programs like ours are loaded; 0 where nobody can tell."""
    time.sleep(LAST_UNLOAD_S)
    found = tried("programs like ours that are loaded", hooks.of_others)
    return 0 if isinstance(found, str) else found


def head(size: Size, others: int) -> str:
    """What was measured, where, when."""
    facts = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    model = next((value.strip() for key, _, value in facts if key.strip() == "model name"), os.uname().machine)
    command = "make bench" if size is FULL else "python -m tests.bench.bench --quick"
    foreign = f" {others} programs like ours, of other runs on this machine, were loaded meanwhile." if others else ""
    return f"""\
# What kinwatch costs

Made by `{command}`; every figure is of one run on one machine.

{model}, {os.cpu_count()} cores, {os.uname().sysname} {os.uname().release}; commit {commit()};
{datetime.now(UTC):%Y-%m-%d}; load {os.getloadavg()[2]:.1f} over 15 minutes.

The storm: {size.children:,} x vfork() + _exit() + waitpid(). Slowdowns are medians of ratios, each of a
watched storm to the unwatched one right before or after it, with the margin within which the median is sure (about
95 %); where a goal lies within it the answer is "unclear". Nothing is pinned to a CPU, and others may use the
machine.{foreign}
"""


def commit() -> str:
    """Of the checkout, and whether what is measured was changed since."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{name} with changes" if git("status", "--porcelain", "--", "ebpf", "monitor") else name


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure kinwatch on this machine and print the tables.")
    parser.add_argument("--quick", action="store_true", help="smaller storms, fewer rounds")
    parser.add_argument("--write", action="store_true", help=f"also write {PAGE.relative_to(programs.ROOT)}")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root (sudo make bench)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is ended
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kinwatch-bench-") as scratch:
        text = Bench(Path(scratch), QUICK if arguments.quick else FULL).run()
    print(text)
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    say(f"took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
