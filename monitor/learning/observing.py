"""From event lines to what each watch did.

Owns the reading of lines for `learn`: which one tells of what. Refuses to know where lines come from and what is made
of what was seen.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.detect.learn import AMOUNTS, FORBIDDEN, Observed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TICKS: Final = 100
"""Of a process id, to the second."""
RATE_TICKS: Final = 61 * TICKS
"""A minute as the engine counts it is 60 s of record times; a second more covers what is between start and record."""


class _Told(msgspec.Struct):
    """The keys that matter, of any line; unset is unknown or not so."""

    event: str
    time: str
    watch: str = ""
    process_id: str = ""
    parent_process_id: str = ""
    depth: int | None = None
    exe: str = ""
    uid: int | None = None
    memfd: bool = False
    deleted: bool = False
    temporary: bool = False
    local: str = ""
    remote: str = ""
    behavior: str = ""
    value: Any = None


class Observer:
    """Follows the lines of a run."""

    def __init__(self, names: Iterable[str], watches: Mapping[str, Observed] | None = None) -> None:
        """`watches`: what is known of them already."""
        self.watches = dict(watches) if watches is not None else {name: Observed() for name in names}
        self.span = ("", "")
        """Times of the first and the last line."""
        self.sockets = False
        """There were lines about sockets."""
        self._images: dict[tuple[str, str], str] = {}
        self._forks: dict[str, deque[int]] = {name: deque() for name in self.watches}
        self._decoder = msgspec.json.Decoder(_Told)

    def take(self, lines: bytes) -> None:
        """Learn from whole lines."""
        for line in self._decoder.decode_lines(lines):
            self.span = (self.span[0] or line.time, line.time)
            watch = self.watches.get(line.watch)
            if watch is None:
                continue
            watch.began = True
            self._line(watch, line)

    def alarms(self, lines: bytes) -> Counter[tuple[str, str]]:
        """Learn from alarms alone; how many there were, by watch and behavior."""
        count: Counter[tuple[str, str]] = Counter()
        for line in self._decoder.decode_lines(lines):
            if line.event == "alarm":
                count[line.watch, line.behavior] += 1
                if line.watch in self.watches:
                    _alarm(self.watches[line.watch], line)
        return count

    def _line(self, watch: Observed, line: _Told) -> None:
        if line.event in {"fork", "exec", "adopt"}:
            _descendant(watch, line)
        if line.event in {"root", "fork", "exec", "adopt", "exit"}:
            self._lineage(watch, line)
        elif line.event == "connect" and line.remote:
            watch.note("destinations", _address(line.remote), line.time)
        elif line.event == "listen":
            watch.note("listening_ports", _port(line.local), line.time)
        elif line.event == "alarm":
            _alarm(watch, line)
        self.sockets |= line.event in {"connect", "accept", "listen", "peer", "close"}

    def _lineage(self, watch: Observed, line: _Told) -> None:
        """Which image comes before which, and how many are forked within a minute."""
        process = (line.watch, line.process_id)
        if line.event == "exit":
            self._images.pop(process, None)
        elif line.event == "fork":
            self._images[process] = self._images.get((line.watch, line.parent_process_id), "")
            watch.reached("forks_per_minute", self._rate(line))
        else:
            before = self._images.get(process, "")
            if line.event == "exec" and line.depth and before and line.exe:
                watch.note("edges", f"{before} -> {line.exe}", line.time)
            self._images[process] = line.exe

    def _rate(self, line: _Told) -> int:
        """Forked within the minute that this one ends. Counted by starts, which no setting of the clock moves."""
        forks = self._forks[line.watch]
        started = int(line.process_id.rpartition("-")[2])
        forks.append(started)
        while forks[0] < started - RATE_TICKS:
            forks.popleft()
        return len(forks)


def _descendant(watch: Observed, line: _Told) -> None:
    if not line.depth:
        return
    watch.reached("depth", line.depth)
    if line.uid is not None:
        watch.note("uids", line.uid, line.time)
    if line.event == "exec" and line.exe:
        watch.note("executables", line.exe, line.time)
        for rule in FORBIDDEN:
            if getattr(line, rule):
                watch.note(rule, line.exe, line.time)


def _alarm(watch: Observed, line: _Told) -> None:
    """What the engine judges and no line tells: the user at an exit, an image that was found running."""
    rule = "executables" if line.behavior == "root_image" else line.behavior
    if rule in AMOUNTS:
        watch.reached(rule, int(line.value))
    elif rule in watch.members:
        for member in line.value:
            watch.told(rule, member, line.time)


def _address(endpoint: str) -> str:
    return str(ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]")))


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
