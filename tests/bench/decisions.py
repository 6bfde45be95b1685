"""What it costs a fork or exec that the kernel decides about it: hooks with rules less hooks without.

Owns the rules that are measured; hooks.py measures. Nothing breaks a rule: what is measured is the decision, not the
kill.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.bench.hooks import EXEC_SHARE, programs_of, runs, stats
from tests.bench.storms import run_storm
from tests.bench.watcher import Kinwatch, Unmeasured

if TYPE_CHECKING:
    from pathlib import Path

FORK, EXEC = "on_fork", "on_exec"
EXECUTABLES: Final = "executables alone"
CHILDREN: Final = "limit of children alone"
ALL: Final = "all rules"
RULES: Final = (CHILDREN, EXECUTABLES, ALL)
FORK_RULES: Final = "child_processes = 1000, depth = 10, forks_per_minute = 4000000, uids = [0]"


def _rules(storm: Path) -> dict[str, str]:
    """By name: what the watch expects. "": nothing."""
    return {
        "": "",
        CHILDREN: "child_processes = 1000",
        EXECUTABLES: f'executables = ["{storm}"]',
        ALL: f'{FORK_RULES}, executables = ["{storm}"], memfd = false, deleted = false',
    }


@dataclass(frozen=True)
class Decisions:
    """In each round, ns per run."""

    none: dict[str, list[float]] = field(default_factory=lambda: {FORK: [], EXEC: []})
    """Of a watch without rules, by hook."""
    more: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By the rules and by hook: how much more than in the same round without rules."""


def measure(scratch: Path, storm: Path, children: int, rounds: int) -> Decisions:
    """All rules in each round, every time with a kinwatch of its own; each round begins with other rules."""
    found = Decisions()
    order = list(_rules(storm).items())
    for _ in range(rounds):
        costs = {name: _cost(scratch, storm, children, expect) for name, expect in order}
        order = [*order[1:], order[0]]
        none = costs.pop("")
        for hook, cost in none.items():
            found.none[hook].append(cost)
            for name, other in costs.items():
                found.more.setdefault(name, {FORK: [], EXEC: []})[hook].append(other[hook] - cost)
    return found


def _cost(scratch: Path, storm: Path, children: int, expect: str) -> dict[str, float]:
    rules = f'enforce = "kill"\nexpect = {{ {expect} }}' if expect else ""
    with ExitStack() as stack:
        kinwatch = stack.enter_context(Kinwatch(scratch, storm.name, rules=rules))
        stack.enter_context(stats(on=True))
        ours = programs_of(kinwatch.pid)
        forks = runs(ours, lambda: run_storm(storm, children))
        execs = runs(ours, lambda: run_storm(storm, children // EXEC_SHARE, None, "exec"))
    counted = kinwatch.counted()
    if expect and (counted["enforced"], counted["would_enforce"]) != (0, 0):
        raise Unmeasured(f"somebody was killed by rules that nothing breaks: {expect}")
    return {FORK: forks[FORK], EXEC: execs[EXEC]}
