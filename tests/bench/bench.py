"""The bench: everything that kinwatch promises in figures, measured in one run on this machine, as Markdown on stdout.

bench.py [--quick] [--write]

Owns the order of measuring and the words of the tables; refuses to know how anything is measured. Needs root. What cannot be
measured is said in its row, with the reason.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from tests.bench import daemon, hooks, programs, storms, table, watchers
from tests.bench.table import Row, Spread, at_most
from tests.bench.watcher import Unmeasured

STORM: Final = "kwb-storm"
FIRST: Final = "kwb-first"
OTHER: Final = "kwb-other"
PAGE: Final = programs.ROOT / "docs" / "bench.md"
FAILURES: Final = (Unmeasured, subprocess.SubprocessError, OSError)

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    children: int
    rounds: int
    hook_children: int
    hook_rounds: int
    samples: int
    starts: int
    idle_s: float


FULL: Final = Size(children=100_000, rounds=9, hook_children=50_000, hook_rounds=5, samples=1000, starts=9, idle_s=10.0)
QUICK: Final = Size(children=20_000, rounds=5, hook_children=20_000, hook_rounds=3, samples=200, starts=5, idle_s=10.0)


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
        """`scratch`: an empty directory for programs and logs."""
        self.scratch, self.size = scratch, size
        self.storm = programs.compiled("storm.c", scratch / STORM)
        self.first = programs.compiled("first_event.c", scratch / FIRST)
        self.empty = programs.compiled("empty_hooks.c", scratch / "kwb-empty", *programs.libbpf())
        self.engine = programs.compiled("bench_engine.c", scratch / "kwb-engine", *programs.engine_sources())

    def run(self) -> str:
        """All of it, as one page."""
        others = hooks.of_others(set())
        with hooks.stats(on=False):
            results = self._storms()
        ours, psutil, forkstat = results["watched"], results["psutil"], results["forkstat"]
        parts = [
            head(self.size, max(others, hooks.of_others(set()))),
            table.goals([*self._storm_rows(results), *self._hook_rows(), *self._daemon_rows()]),
            self._hook_table(),
            "## Beside what else there is\n\nThe same storm; the fewest children that any round saw.\n",
            peers((ours, "spawned"), (psutil, "children"), (forkstat, "children"), self.size.children),
        ]
        return "\n".join(parts)

    # -------- the storm --------

    def _storms(self) -> dict[str, storms.Result]:
        conditions = [
            watchers.Maker("watched", lambda: watchers.ByKinwatch(self.scratch, STORM)),
            watchers.Maker("other, a root lives", lambda: watchers.ByKinwatch(self.scratch, OTHER, root=True)),
            watchers.Maker("other, no root", lambda: watchers.ByKinwatch(self.scratch, OTHER)),
            watchers.Maker("nobody", watchers.Nobody),
            watchers.Maker("psutil", lambda: watchers.ByPolling(self.scratch, STORM)),
            watchers.Maker("forkstat", lambda: watchers.ByForkstat(self.scratch)),
        ]
        results: dict[str, storms.Result] = {}
        for step, results in storms.run_rounds(self.storm, self.size.children, self.size.rounds, conditions, FAILURES):
            say(step)
        return results

    def _storm_rows(self, results: dict[str, storms.Result]) -> list[Row]:
        children = self.size.children
        watched = results["watched"]
        rows = []
        if watched.failed:
            rows.append(Row("children of the storm that were seen", f"not measured: {watched.failed}"))
        else:
            lost = max(seen["lost"] for seen in watched.saw)
            told = min(watched.worst("forks"), watched.worst("exits"))
            whole = watched.worst("spawned") == told == children and lost == 0
            counts = f"{watched.worst('spawned'):,} of {children:,} counted, {told:,} told in lines, {lost} lost"
            rows.append(Row("children of the storm that were seen", counts, "all, 0 lost", whole))
        for name, goal in (("watched", 5.0), ("other, a root lives", 1.0), ("other, no root", 1.0)):
            rows.append(slower(f"storm slower, {name}", results[name], goal))
        rows.append(slower("storm slower, unwatched against unwatched (the noise)", results["nobody"], None))
        if watched.watcher_cpu:
            share = Spread.of(watched.watcher_cpu).median
            per_child = share * statistics.median(pair[1] for pair in watched.elapsed) / children
            rows.append(
                Row(
                    "CPU of the daemon in its storm",
                    f"{100 * share:.0f} % of a core, {per_child / 1000:.2f} us per child",
                )
            )
        return rows

    # -------- hooks --------

    def _hook_rows(self) -> list[Row]:
        bench = hooks.Bench(self.scratch, self.storm, self.empty, self.size.hook_children, self.size.hook_rounds)
        cases = (
            ("of kin", STORM, False),
            ("of others, a root lives", OTHER, True),
            ("of others, no root", OTHER, False),
        )
        self.costs = {
            name: tried(f"hooks: {name}", lambda watch=watch, root=root: bench.measure(watch, root=root))
            for name, watch, root in cases
        }
        rows = []
        for (name, _, _), goal in zip(cases, (800, 160, 20), strict=True):
            cost = self.costs[name]
            what = f"kernel, fork + exit {name}"
            if isinstance(cost, str):
                rows.append(at_most(what, None, goal, "ns", more=cost))
                continue
            net, raw = (sum(getattr(cost[hook], kind) for hook in ("on_fork", "on_exit")) for kind in ("net", "raw"))
            rows.append(at_most(what, net, goal, "ns", more=f"net; raw {raw:.0f}"))
        return rows

    def _hook_table(self) -> str:
        rows = []
        for name in hooks.HOOKS:
            cells = [name]
            for cost in self.costs.values():
                cells.append(
                    "not measured" if isinstance(cost, str) else f"{cost[name].net:.0f} net, {cost[name].raw:.0f} raw"
                )
            rows.append(cells)
        return (
            "## Hooks, ns per run\n\n"
            "By the kernel's own measuring (kernel.bpf_stats_enabled). Net: less what programs that do nothing cost,\n"
            "at the same tracepoints, in the same storm, measured the same way.\n\n"
        ) + table.markdown(("hook", *self.costs), rows)

    # -------- the daemon --------

    def _daemon_rows(self) -> list[Row]:
        size, scratch = self.size, self.scratch
        engine = tried("engine", lambda: daemon.engine_ns(self.engine, 5))
        ready = tried("starts", lambda: daemon.ready_ms(scratch, OTHER, size.starts))
        idle = tried("idle", lambda: daemon.idle(scratch, OTHER, self.storm, size.children, size.idle_s))
        peak = tried("memory", lambda: daemon.peak_rss_kb(scratch, STORM, self.storm, size.children))
        first = tried("first event", lambda: daemon.first_event_ns(scratch, self.first, size.samples))
        rows = [
            unless(engine, "engine, bytes to line", "per record", 250, "ns"),
            unless(
                ready if isinstance(ready, str) else statistics.median(ready),
                "start until every hook is live",
                f"median of {size.starts} starts"
                if isinstance(ready, str)
                else f"median of {len(ready)} starts, longest {max(ready):.0f} ms",
                300,
                "ms",
            ),
        ]
        return (
            rows
            + idle_rows(idle)
            + [
                unless(
                    peak if isinstance(peak, str) else peak / 1024,
                    "memory at most, in its storm",
                    "VmHWM",
                    40,
                    "MB",
                    digits=1,
                ),
                *first_rows(first),
            ]
        )


def slower(what: str, result: storms.Result, goal: float | None) -> Row:
    """By the median of paired ratios, of wall time; of the storm's own CPU time beside it."""
    bound = "" if goal is None else f"<= {goal:g} %"
    if result.failed or not result.elapsed:
        return Row(what, f"not measured: {result.failed}", bound)
    wall = Spread.of(table.ratios(result.elapsed))
    cpu = Spread.of(table.ratios(result.cpu))
    text = f"{wall.percent_more()}; CPU time {cpu.percent_more()}"
    return Row(what, text, bound, None if goal is None else 100 * (wall.median - 1) <= goal)


def unless(measured: float | str, what: str, more: str, goal: float, unit: str, *, digits: int = 0) -> Row:  # noqa: PLR0913 - a row
    """A row of an upper bound, or of the reason why there is none."""
    if isinstance(measured, str):
        return at_most(what, None, goal, unit, more=measured)
    return at_most(what, measured, goal, unit, digits=digits, more=more)


def idle_rows(idle: daemon.Idle | str) -> list[Row]:
    """Wake-ups and memory of a daemon with nothing to do."""
    what = "wake-ups per second, idle, a root lives"
    if isinstance(idle, str):
        return [Row(what, f"not measured: {idle}", "0"), Row("memory, idle", f"not measured: {idle}", "<= 40 MB")]
    awake = (
        f"{idle.polls / idle.seconds:g} of the capture thread, {idle.switches / idle.seconds:g} of all threads, "
        f"over {idle.seconds:g} s in which others started {idle.others}"
    )
    return [
        Row(what, awake, "0", idle.polls == idle.woken == idle.switches == 0),
        Row(
            "wake-ups while another application storms",
            f"{idle.storm_polls} for {idle.storm_children:,} children",
            "0",
            idle.storm_polls == 0,
        ),
        at_most("memory, idle", idle.rss_kb / 1024, 40, "MB", digits=1, more="VmRSS"),
    ]


def first_rows(first: Sequence[int] | str) -> list[Row]:
    """From a fork to its line."""
    what = "first event after quiet, fork() to line, p99"
    if isinstance(first, str):
        return [at_most(what, None, 2, "ms", more=first)]
    middle = table.percentile(first, 50) / 1e6
    more = f"p50 {middle:.2f} ms, longest {max(first) / 1e6:.2f} ms, {len(first)} samples"
    return [at_most(what, table.percentile(first, 99) / 1e6, 2, "ms", digits=2, more=more)]


def peers(*seen: tuple[storms.Result, str] | int) -> str:
    """One row per thing asked, one column per watcher."""
    *results, children = seen
    names = ("kinwatch", f"psutil every {watchers.POLL_MS} ms", "forkstat")
    rows: list[list[str]] = [["children seen"], ["storm slower"], ["CPU of the watcher, of a core"]]
    for result, what in results:  # type: ignore[misc]
        if result.failed or not result.saw:
            for row in rows:
                row.append(f"not measured: {result.failed}")
            continue
        rows[0].append(f"{result.worst(what):,} of {children:,}")
        rows[1].append(Spread.of(table.ratios(result.elapsed)).percent_more())
        rows[2].append(f"{100 * Spread.of(result.watcher_cpu).median:.0f} %")
    return table.markdown(("", *names), rows)


def head(size: Size, others: int) -> str:
    """What was measured, where, when."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        os.uname().machine,
    )
    foreign = f" {others} programs like ours, of other runs on this machine, were loaded meanwhile." if others else ""
    return (
        "# What kinwatch costs\n\n"
        "Made by `make bench`; every figure is of one run on one machine.\n\n"
        f"{model}, {os.cpu_count()} cores, {os.uname().sysname} {os.uname().release}; commit {commit()}; "
        f"{datetime.now(UTC):%Y-%m-%d}; load {os.getloadavg()[1]:.1f} over the last 5 minutes.\n\n"
        f"The storm: {size.children:,} x vfork() + _exit() + waitpid(). Slowdowns are medians of {size.rounds} ratios, each of a\n"
        "watched storm to the unwatched one right before or after it. Nothing is pinned to a CPU, and others may use the\n"
        f"machine: the row of the noise says what such a ratio is worth here.{foreign}\n"
    )


def commit() -> str:
    """Of the checkout, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=programs.ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    name = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{name} with changes" if git("status", "--porcelain", "--untracked-files=no") else name


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure kinwatch on this machine and print the tables.")
    parser.add_argument("--quick", action="store_true", help="smaller storms, fewer rounds")
    parser.add_argument("--write", action="store_true", help=f"also write {PAGE.relative_to(programs.ROOT)}")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root (sudo make bench)", file=sys.stderr)
        return 2
    began = time.monotonic()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kinwatch-bench-")))
        page = Bench(scratch, QUICK if arguments.quick else FULL).run()
    print(page)
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
    say(f"took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
