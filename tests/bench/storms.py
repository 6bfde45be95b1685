"""The storm under several watchers, in pairs with an unwatched one. Owns the order of rounds; knows no watcher.

The machine is shared and nothing is pinned to a CPU, so nothing is compared but neighbours in time: each watched storm
with an unwatched one right before or right after it.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SETTLE_S = 0.3
"""Between a watcher's start and the storm, so that its start is not measured."""


class Storm(msgspec.Struct, frozen=True):
    """What the storm said of itself."""

    children: int
    elapsed_ns: int


class Watcher(Protocol):
    """A context that watches while the storm runs."""

    def __enter__(self) -> Self: ...  # noqa: D105
    def __exit__(self, *exception: object) -> None: ...  # noqa: D105

    def storm_is(self, pid: int) -> None:
        """The storm's pid, before it has ended."""

    def drained(self) -> int:
        """CPU time spent since the storm began, ns, once everything is seen that will be."""

    def saw(self) -> dict[str, int]:
        """After the end: what was counted, by name."""


class Condition(Protocol):
    """Makes a fresh watcher for every round."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    def watcher(self) -> Watcher: ...  # noqa: D102


@dataclass
class Result:
    """All rounds of one condition."""

    name: str
    children: int
    elapsed: list[tuple[float, float]] = field(default_factory=list)
    """Pairs of wall time, ns: unwatched, watched."""
    watcher_cpu: list[float] = field(default_factory=list)
    """CPU time of the watcher per wall time of the storm."""
    saw: list[dict[str, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Why a round has no result."""

    def seen(self, what: str) -> list[int]:
        """What each round saw."""
        return [seen[what] for seen in self.saw]


def run_storm(program: Path, children: int, watcher: Watcher | None = None, *more: str) -> Storm:
    """One storm. Raises CalledProcessError when it failed."""
    process = subprocess.Popen([program, str(children), *more], stdout=subprocess.PIPE)
    try:
        if watcher is not None:
            watcher.storm_is(process.pid)
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, str(program))
    return msgspec.json.decode(output, type=Storm)


def _watched(program: Path, condition: Condition, result: Result) -> Storm:
    with condition.watcher() as watcher:
        time.sleep(SETTLE_S)
        storm = run_storm(program, result.children, watcher)
        spent = watcher.drained() / storm.elapsed_ns
    result.saw.append(watcher.saw())
    result.watcher_cpu.append(spent)
    return storm


def results_of(conditions: Sequence[Condition], children: int) -> dict[str, Result]:
    """One empty result a condition."""
    return {condition.name: Result(condition.name, children) for condition in conditions}


def run_rounds(
    program: Path,
    conditions: Sequence[Condition],
    results: dict[str, Result],
    failures: tuple[type[Exception], ...],
) -> Iterator[str]:
    """Run every condition once a round, in as many rounds as it wants, filling its result; yields after each step.

    What raises one of `failures` leaves its reason in the result, and has another chance in the next round.
    """
    rounds = max(condition.rounds for condition in conditions)
    for number in range(rounds):
        for condition in conditions:
            if number >= condition.rounds:
                continue
            result = results[condition.name]
            step = f"round {number + 1} of {rounds}: {condition.name}"
            try:
                pair = _pair(program, condition, result, watched_first=number % 2 == 1)
            except failures as error:
                result.failures.append(str(error))
                yield f"{step}: {error}"
                continue
            alone, watched = pair
            result.elapsed.append((alone.elapsed_ns, watched.elapsed_ns))
            more = 100 * (watched.elapsed_ns / alone.elapsed_ns - 1)
            yield f"{step}: {alone.elapsed_ns / alone.children / 1000:.1f} us per child alone, {more:+.1f} % watched"


def in_turns(watched: Path, plain: Path, children: int, turns: int) -> list[tuple[float, float]]:
    """Two programs storm in turns, so short that the machine's moods meet both: pairs of times, ns, plain and watched.

    Raises CalledProcessError when one failed.
    """
    with ExitStack() as stack:
        takes = [stack.enter_context(_taking_turns(program, children)) for program in (plain, watched)]
        pairs = []
        for number in range(turns):
            first = number % 2
            times = {side: takes[side]().elapsed_ns for side in (first, 1 - first)}
            pairs.append((float(times[0]), float(times[1])))
        return pairs


@contextmanager
def _taking_turns(program: Path, children: int) -> Iterator[Callable[[], Storm]]:
    """A storm that waits for its turn; call it to let it."""
    process = subprocess.Popen([program, str(children), "turns"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answer = process.stdin, process.stdout

    def take() -> Storm:
        ask.write(b"t")
        ask.flush()
        line = answer.readline()
        if not line:
            raise subprocess.CalledProcessError(process.wait(), str(program))
        return msgspec.json.decode(line, type=Storm)

    try:
        take()  # warm
        yield take
    finally:
        process.kill()
        process.communicate()


def _pair(program: Path, condition: Condition, result: Result, *, watched_first: bool) -> tuple[Storm, Storm]:
    """One storm alone and one watched, in this order in the answer, not in time."""
    watched = _watched(program, condition, result) if watched_first else None
    time.sleep(SETTLE_S)
    alone = run_storm(program, result.children)
    return alone, watched or _watched(program, condition, result)
