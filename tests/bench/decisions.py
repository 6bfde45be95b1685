"""What it costs a fork or exec that the kernel decides about it: watches with rules less one without, in one kinwatch.

Owns the rules that are measured; hooks.py measures. Nothing breaks a rule: what is measured is the decision, not the
kill. All watches are those of one kinwatch, each with a storm of its own name, and the storms take turns: another
start of the hooks lies elsewhere in memory, which alone moved a hook by more than what is sought here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.bench.hooks import programs_of, runs, stats
from tests.bench.storms import run_storm
from tests.bench.watcher import Kinwatch, Unmeasured

if TYPE_CHECKING:
    from pathlib import Path

FORK, EXEC = "on_fork", "on_exec"
EXECUTABLES: Final = "executables alone"
CHILDREN: Final = "limit of children alone"
ALL: Final = "all rules"
RULES: Final = (CHILDREN, EXECUTABLES, ALL)
TURNS: Final = 200
"""Of a round: many short storms, so that the machine's moods meet all of them."""
EXECS: Final = 10
"""In a turn."""
FORK_RULES: Final = "child_processes = 1000, depth = 10, forks_per_minute = 4000000, uids = [0]"


def _rules(storms: dict[str, Path]) -> dict[str, str]:
    """By name: what the watch of that storm expects. "": nothing."""
    return {
        "": "",
        CHILDREN: "child_processes = 1000",
        EXECUTABLES: f'executables = ["{storms[EXECUTABLES]}"]',
        ALL: f'{FORK_RULES}, executables = ["{storms[ALL]}"], memfd = false, deleted = false',
    }


@dataclass(frozen=True)
class Decisions:
    """In each round, ns per run."""

    none: dict[str, list[float]] = field(default_factory=lambda: {FORK: [], EXEC: []})
    """Of a watch without rules, by hook."""
    more: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By the rules and by hook: how much more than in the same round without rules."""


def measure(scratch: Path, storm: Path, children: int, rounds: int) -> Decisions:
    """All storms in each round, each beginning with another. `children`: forks of a round under each of the rules.

    Raises Unmeasured when a rule did anything.
    """
    found = Decisions()
    storms = {name: scratch / f"kwdec{number}" for number, name in enumerate(("", *RULES))}
    for path in storms.values():
        shutil.copy(storm, path)
    rules = _rules(storms)
    tables = "".join(
        f'[[watch]]\nname = "{storms[name].name}"\nprocess = "{storms[name].name}"\nenforce = "kill"\n'
        f"expect = {{ {expect} }}\n"
        for name, expect in rules.items()
        if expect
    )
    order = list(storms.items())
    with Kinwatch(scratch, storms[""].name, rules=tables) as kinwatch, stats(on=True):
        ours = programs_of(kinwatch.pid)
        for _ in range(rounds * TURNS):
            costs = {name: _cost(ours, path, children // TURNS) for name, path in order}
            order = [*order[1:], order[0]]
            none = costs.pop("")
            for hook, cost in none.items():
                found.none[hook].append(cost)
                for name, other in costs.items():
                    found.more.setdefault(name, {FORK: [], EXEC: []})[hook].append(other[hook] - cost)
    for name in RULES:
        counted = kinwatch.counted(storms[name].name)
        if (counted["enforced"], counted["would_enforce"]) != (0, 0):
            raise Unmeasured(f"somebody was killed by rules that nothing breaks: {name}")
        if counted["spawned"] < children:
            raise Unmeasured(f"the rules of {name} met {counted['spawned']} of at least {children} children")
    return found


def _cost(ours: dict[str, int], storm: Path, children: int) -> dict[str, float]:
    forks = runs(ours, lambda: run_storm(storm, children))
    execs = runs(ours, lambda: run_storm(storm, EXECS, None, "exec"))
    return {FORK: forks[FORK], EXEC: execs[EXEC]}
