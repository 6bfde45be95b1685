"""The device's own Detect: at the end of each window its metrics become datapoints, and datapoints lines.

Owns one reader's window, what is remembered of each behavior, and the names that a profile has for expectations of the
instant clock. Refuses to know when a window ends and where lines go.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from monitor.detect.clocks import owner
from monitor.detect.device import device_values
from monitor.detect.evaluator import Evaluator, State
from monitor.judging.culprits import Culprits, counted_watch, culprits
from monitor.judging.names import Names
from monitor.judging.said import verdict_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable

    from monitor.detect.compare import Value
    from monitor.detect.evaluator import Verdict
    from monitor.judging.plan import Plan
    from monitor.window import Look, Store, Window


class Said(NamedTuple):
    """Lines about windows."""

    lines: bytes = b""
    lines_count: int = 0
    loud: bytes = b""
    """Those of them that somebody wants to be told of."""
    alarms: int = 0
    """Alarms among these."""


class _Kept(msgspec.Struct, kw_only=True):
    """What a restart needs."""

    window: msgspec.Raw = msgspec.Raw(b"null")
    behaviors: State = {}


class _Held:
    """The window's state, which goes to the disk together with what was judged by it."""

    def __init__(self, state: bytes | None) -> None:
        self.state = state

    def load(self) -> bytes | None:
        return self.state

    def save(self, state: bytes) -> None:
        self.state = state


class Detection:
    """Judges windows. Any thread may call; `named` is for one at a time."""

    def __init__(
        self,
        plan: Plan,
        window: Callable[[Store], Window],
        *,
        kin: Callable[[], bytes] = bytes,
        store: Store | None = None,
        anew: bool = True,
    ) -> None:
        """`window`: makes one of a reader of its own. `store`: where state survives a restart; None: nowhere.

        `kin`: live kin, as Engine.tree tells them; asked only when numbers of processes are in alarm.

        `anew`: the capture's counters begin with this start, so that the first window does.
        """
        self._store, self._anew = store, anew
        self._kept_any = False
        """Whether something is on the disk."""
        kept = self._load()
        self._lock = threading.Lock()
        self._held = _Held(None if kept.window == b"null" else bytes(kept.window))
        self._window = window(self._held)
        self._kin = kin
        self._begun = False
        self._names = Names(plan.names)
        self._plan = plan
        self._evaluator = Evaluator(plan.window)
        self.active = bool(self._evaluator.state)
        """Windows are judged at all."""
        self._gone = self._evaluator.restore(kept.behaviors)
        self.windows = 0
        """Windows judged since this start."""

    def begin(self) -> None:
        """Let the first window begin, or go on with that of the last life. Later calls do nothing."""
        with self._lock:
            self._begin()

    def left_s(self, interval_s: float, now_ns: int) -> float:
        """Seconds until a window of `interval_s` ends. `now_ns`: CLOCK_REALTIME."""
        if (self._anew and not self.windows) or not self._window.began_wall_ns:
            return interval_s  # what is kept of an earlier life ended with the counters
        return interval_s - min(interval_s, max(0.0, (now_ns - self._window.began_wall_ns) / 1e9))

    def _begin(self) -> None:
        if self._begun or not self.active:
            return
        self._begun = True
        self._window.begin()
        if not self._anew and not self._window.began_wall_ns:
            self._window.accept(self._window.look())  # what was counted before the profile came is no datapoint

    def judge(self, *, whole: bool = True) -> Said:
        """Judge the window so far and begin the next one. Nothing is remembered on the disk until `settle`.

        `whole`: False: the window was cut short.
        """
        with self._lock:
            if not self.active:
                return Said()
            self._begin()
            look = self._window.look()
            at_s = look.snapshot.wall_ns / 1e9
            verdicts = self._evaluator.observe(values(look, self._evaluator.metrics), at_s, whole=whole)
            self._window.accept(look)
            self.windows += 1
            return self._say(verdicts, at_s)

    def resumed(self, at_s: float) -> Said:
        """Tell of the alarms of the last life whose behaviors are not judged any more. `at_s`: since the epoch."""
        gone, self._gone = self._gone, []
        return self._say(gone, at_s)

    def change(self, plan: Plan, at_s: float) -> Said:
        """Judge by another plan from now on; alarms of behaviors that it has not, or not so, are invalidated."""
        with self._lock:
            evaluator = Evaluator(plan.window)
            said = self._say(evaluator.restore(self._evaluator.state), at_s)
            idle = not self.active
            self._plan, self._evaluator, self._anew = plan, evaluator, False
            self._names.change(plan.names)
            self.active = bool(evaluator.state)
            if idle and self._window.began_wall_ns and self.active:
                self._window.accept(self._window.look())  # what came while there was no profile is no datapoint
            return said

    def settle(self) -> None:
        """Remember what was judged: the lines about it are out."""
        with self._lock:
            if self._store is None or not (self.active or self._kept_any):
                return
            state = self._evaluator.progress()
            window = self._held.state if self.active and self._held.state else b"null"
            kept = _Kept(window=msgspec.Raw(window), behaviors=state)
            with contextlib.suppress(OSError):  # a full disk costs the memory of a restart, not the alarm
                self._store.save(msgspec.json.encode(kept))
                self._kept_any = self.active

    def named(self, lines: bytes) -> bytes:
        """As Names.named. For one thread at a time."""
        return self._names.named(lines)

    def status(self, unknown: Collection[str] = ()) -> dict[str, Any]:
        """What `kinwatch status` says of it. `unknown`: fields of WatchSnapshot that the capture does not know."""
        alarms = {behavior.name for behavior in self._evaluator.alarms()}
        rows = []
        for one in self._plan.found(unknown):
            row: dict[str, Any] = {"name": one.name, "clock": one.clock, "why": one.why}
            if one.clock == "window":
                row["in_alarm"] = one.name in alarms
            if one.name in self._evaluator.unfit:
                row["unfit"] = self._evaluator.unfit[one.name]
            rows.append(row)
        return {"profile": self._plan.profile.name, "windows": self.windows, "behaviors": rows}

    def _load(self) -> _Kept:
        if self._store is None:
            return _Kept()
        try:
            state = self._store.load()
            self._kept_any = state is not None
            return _Kept() if state is None else msgspec.json.decode(state, type=_Kept)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return _Kept()  # torn or foreign: alarms that still hold are raised again

    def _say(self, verdicts: Iterable[Verdict], at_s: float) -> Said:
        names = {watch.name for watch in self._plan.config.watches}
        lines: list[bytes] = []
        loud: list[bytes] = []
        alarms = 0
        tree: bytes | None = None
        for verdict in verdicts:
            metric = verdict.behavior.metric
            who = Culprits()
            if verdict.kind == "in-alarm" and (counted := counted_watch(metric, names)):
                tree = self._kin() if tree is None else tree
                who = culprits(tree, counted)
            line = verdict_line(verdict, at_s, owner(metric, names)[1], who)
            lines.append(line)
            if not verdict.behavior.suppressed:
                loud.append(line)
                alarms += verdict.kind == "in-alarm"
        return Said(b"".join(lines), len(lines), b"".join(loud), alarms)


def values(look: Look, wanted: Container[str]) -> dict[str, Value]:
    """Every datapoint of a window by the name of its metric, long lists of the device where they are `wanted`.

    Custom metrics as they are: whole lists, and strings not yet reduced to what a report may hold.
    """
    return {metric.name: metric.value for metric in look.metrics} | device_values(look.before, look.reading, wanted)
