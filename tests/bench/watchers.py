"""The watchers that a storm meets: nobody, kinwatch, psutil in a loop, forkstat.

Owns how each is started and asked what it saw. Refuses to know what is compared.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.bench.watcher import STOP_S, Kinwatch, Sleeper, Unmeasured, cpu_ns, end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.bench.storms import Watcher

POLL_MS: Final = 10
POLLING: Final = Path(__file__).resolve().parent / "polling.py"
FORK: Final = re.compile(rb"^\S+ fork +(\d+) (parent|child)")
EXIT: Final = re.compile(rb"^\S+ exit +(\d+) ")


@dataclass(frozen=True)
class Maker:
    """A condition: its name, and how to make a watcher for it."""

    name: str
    watcher: Callable[[], Watcher]
    rounds: int
    """How many of the rounds it takes part in."""


class Nobody:
    """The control: two unwatched storms differ too."""

    def __enter__(self) -> Self:
        """Nothing begins."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing ends."""

    def storm_is(self, pid: int) -> None:
        """Nobody cares."""

    def drained(self) -> int:
        """Nothing is spent."""
        return 0

    def saw(self) -> dict[str, int]:
        """Nothing is seen."""
        return {}


class ByKinwatch:
    """kinwatch, watching processes of a name; with a live root of that name, or not."""

    def __init__(self, scratch: Path, watch: str, *, root: bool = False) -> None:
        """`root`: a process of that name lives that does nothing."""
        self._scratch, self._root = scratch, root
        self._kinwatch = Kinwatch(scratch, watch)
        self._before_ns = 0

    def __enter__(self) -> Self:
        """Every hook is live, and the root, if there is one."""
        with ExitStack() as stack:
            stack.enter_context(self._kinwatch)
            if self._root:
                stack.enter_context(Sleeper(self._scratch, self._kinwatch.watch))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """It drains, reports and unloads."""
        self._stack.close()

    def storm_is(self, pid: int) -> None:  # noqa: ARG002 - it is found by its name
        """What was spent before does not count."""
        self._before_ns = cpu_ns(self._kinwatch.pid)

    def drained(self) -> int:
        """The log has stopped growing, then what was spent."""
        settle(self._kinwatch.log)
        return cpu_ns(self._kinwatch.pid) - self._before_ns

    def saw(self) -> dict[str, int]:
        """From its report, and the lines of its log."""
        return self._kinwatch.counted()


class _Process:
    """A peer that is one process with its output in a file."""

    def __init__(self, scratch: Path, name: str, command: list[str]) -> None:
        self._output = scratch / f"{name}.out"
        self._command = command
        self._before_ns = 0
        self.storm = 0

    def __enter__(self) -> Self:
        """Start it."""
        with self._output.open("wb") as output:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(self._command, stdout=output)
        time.sleep(1.0)  # neither says when it is ready
        if self.process.poll() is not None:
            raise Unmeasured(f"{self._command[0]} ended at once")
        return self

    def __exit__(self, *exception: object) -> None:
        """SIGINT, as a user would."""
        end(self.process, signal.SIGINT)

    def storm_is(self, pid: int) -> None:
        """What was spent before does not count."""
        self.storm = pid
        self._before_ns = cpu_ns(self.process.pid)

    def drained(self) -> int:
        """Its output has stopped growing, then what was spent."""
        settle(self._output)
        return cpu_ns(self.process.pid) - self._before_ns


class ByPolling(_Process):
    """psutil's children(recursive=True), every POLL_MS."""

    def __init__(self, scratch: Path, name: str) -> None:
        super().__init__(scratch, "polling", [sys.executable, str(POLLING), name, str(POLL_MS)])

    def saw(self) -> dict[str, int]:
        """Distinct children."""
        return {"children": int(self._output.read_text(encoding="utf-8").split()[-1])}


class ByForkstat(_Process):
    """forkstat, which reads the kernel's process connector."""

    def __init__(self, scratch: Path) -> None:
        program = shutil.which("forkstat")
        if program is None:
            raise Unmeasured("forkstat is not installed (Debian package forkstat)")
        super().__init__(scratch, "forkstat", [program, "-e", "fork,exec,exit", "-l", "-S"])

    def saw(self) -> dict[str, int]:
        """Children of the storm whose fork, and whose exit, stands in its output."""
        with self._output.open("rb") as stream:
            return children_told(stream, self.storm)


def children_told(lines: Iterable[bytes], parent: int) -> dict[str, int]:
    """Read forkstat's output: a fork is two lines, the parent's and then the child's; pids come back within a storm.

    When it is late it says 0 for the parent: such a child is taken for the storm's, in its favour.
    """
    forked = exited = 0
    ours = False
    alive: set[int] = set()
    for line in lines:
        if match := FORK.match(line):
            pid = int(match[1])
            if match[2] == b"parent":
                ours = pid in {parent, 0}
            elif ours:
                forked += 1
                alive.add(pid)
        elif (match := EXIT.match(line)) and int(match[1]) in alive:
            alive.remove(int(match[1]))
            exited += 1
    return {"children": forked, "exits": exited}


def settle(path: Path) -> None:
    """Wait until a file has not grown for half a second."""
    deadline = time.monotonic() + STOP_S
    size, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5 and time.monotonic() < deadline:
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.05)
