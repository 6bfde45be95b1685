"""What the device does by itself when an alarm is raised: freeze, run a command.

Owns the queue of alarms, the bound on commands at once and the counts. Refuses to raise alarms and to know where lines
go. Whoever raises one is never held up: what does not fit is skipped and counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.defender.alarms import ALARM, alarm_lines
from monitor.judging.command import Cannot, Running, hindrance
from monitor.judging.freeze import NoCgroup, descendants, freeze, stop
from monitor.judging.freeze import hindrance as freezer_hindrance
from monitor.judging.said import enforced_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.schema import Action
    from monitor.watch import Watch

AT_ONCE: Final = 4
"""Commands that run at the same time."""
WAITING: Final = 256
"""Alarms that wait for their turn."""
ROUNDS: Final = 20
"""Looks for descendants that were born while others were stopped."""
LOOK_S: Final = 0.01
"""Between two of them: records of births take as long to arrive."""


class _Ancestor(msgspec.Struct):
    process_id: str


class _Alarm(msgspec.Struct):
    behavior: str
    metric: str
    watch: str = ""
    process_ids: list[str] = []
    lineage: list[_Ancestor] = []


_alarms: Final = msgspec.json.Decoder(_Alarm)


class Actions:
    """Acts on alarms, in a thread of its own that begins with the first."""

    def __init__(
        self,
        settings: Action,
        watches: Sequence[Watch],
        tree: Callable[[], bytes],
        tell: Callable[[bytes], None],
        say: Callable[[str], None],
    ) -> None:
        """`tree`: as Engine.tree. `tell`: takes an `enforced` line. Both are called in the actions' threads."""
        self._settings, self._watches = settings, {watch.name: watch for watch in watches}
        self._tree, self._tell, self._say = tree, tell, say
        self._queue: deque[bytes] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running: dict[Running, threading.Thread] = {}
        self._ending = False
        self._hurry, self._hurried = os.pipe()
        self._said: set[str] = set()
        self._counts = {"commands": 0, "failed": 0, "skipped": 0, "stopped": 0, "frozen": 0}
        self._foresee()

    def change(self, settings: Action, watches: Sequence[Watch]) -> None:
        """Act by other settings from the next alarm on; what was wrong before may be said again."""
        with self._change:
            self._said.clear()
            self._settings, self._watches = settings, {watch.name: watch for watch in watches}
        self._foresee()

    def alarm(self, lines: bytes) -> None:
        """Take the alarms among event lines. Waits for nobody."""
        with self._change:
            if self._ending or not (self._settings.command or self._settings.freeze != "off"):
                return
            alarms = [line for line in alarm_lines(lines) if ALARM in line]
            room = WAITING - len(self._queue)
            self._queue.extend(alarms[:room])
            self._skip(len(alarms[room:]))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="actions", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Act on what waits, wait for what runs, at most so long; then end it. Later calls do nothing."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            if self._ending:
                return
            self._ending = True
            self._change.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        with self._change:
            self._counts["skipped"] += len(self._queue)
            self._queue.clear()
            self._change.wait_for(lambda: not self._running, max(0.0, deadline - time.monotonic()))
        os.close(self._hurried)  # makes the other end readable, also to a command that begins only now
        if thread is not None:
            thread.join(timeout_s)
        with self._change:
            rest = list(self._running.values())
        for one in rest:
            one.join(timeout_s)
        if not any(one is not None and one.is_alive() for one in (thread, *rest)):
            os.close(self._hurry)

    def status(self) -> dict[str, int]:
        """What was done, for `kinwatch status`."""
        with self._change:
            return dict(self._counts)

    def _skip(self, count: int) -> None:
        if count:
            self._counts["skipped"] += count
            self._once(
                "skipped",
                f"detect.action: more alarms than it can act on, {AT_ONCE} commands at once; skipped ones are counted",
            )

    def _once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(text)

    def _foresee(self) -> None:
        """Say now what the first alarm would be too late for."""
        if self._settings.command and (why := hindrance(self._settings.user)):
            self._once("command", f"detect.action.command: {why}")
        if self._settings.freeze == "cgroup" and (why := freezer_hindrance()):
            self._say(f"detect.action.freeze: {why}")

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._queue) or self._ending)
                if not self._queue:
                    return
                line = self._queue.popleft()
                settings, watches = self._settings, self._watches
            alarm = _alarms.decode(line)
            watch = watches.get(alarm.watch)
            if settings.freeze == "stop" and watch is not None:
                self._stop(alarm)
            elif settings.freeze == "cgroup" and watch is not None:
                self._freeze(alarm, watch)
            if settings.command:
                self._command(settings, alarm, line)

    def _enforced(self, alarm: _Alarm, action: str, process_id: str = "", error: str = "") -> None:
        keys = {"watch": alarm.watch, "process_id": process_id, "action": action, "reason": alarm.behavior}
        self._tell(enforced_line(time.time(), **keys, error=error))

    # -------- freeze --------

    def _stop(self, alarm: _Alarm) -> None:
        """Stop the descendants of the alarm's root, or of all, until there is none that goes on; a root never is."""
        # An alarm with several processes is about a number of them, whatever root they have.
        root = alarm.lineage[0].process_id if alarm.lineage and len(alarm.process_ids) <= 1 else ""
        handled: set[str] = set()
        for _ in range(ROUNDS):
            fresh = [one for one in descendants(self._tree(), alarm.watch, root) if one not in handled]
            if not fresh:
                return
            with self._change:
                spared = {os.getpid(), *(one.pid for one in self._running)}
            for process_id in fresh:
                handled.add(process_id)
                self._stop_one(alarm, process_id, spared)
            time.sleep(LOOK_S)

    def _stop_one(self, alarm: _Alarm, process_id: str, spared: set[int]) -> None:
        try:
            if stop(process_id, spared):
                self._count("stopped")
                self._enforced(alarm, "stop", process_id)
        except OSError as error:
            self._count("failed")
            self._once("stop", f"detect.action.freeze: {process_id} cannot be stopped: {error.strerror}")
            self._enforced(alarm, "stop", process_id, error.strerror or str(error))

    def _freeze(self, alarm: _Alarm, watch: Watch) -> None:
        try:
            if freeze(watch):
                self._count("frozen")
                self._enforced(alarm, "freeze")
        except (OSError, NoCgroup) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self._count("failed")
            self._once(f"freeze {watch.name}", f"detect.action.freeze: watch {watch.name} cannot be frozen: {why}")
            self._enforced(alarm, "freeze", error=why)

    # -------- command --------

    def _command(self, settings: Action, alarm: _Alarm, line: bytes) -> None:
        with self._change:
            if len(self._running) >= AT_ONCE:
                self._skip(1)
                return
        told = {
            "KINWATCH_EVENT": "alarm",
            "KINWATCH_WATCH": alarm.watch,
            "KINWATCH_BEHAVIOR": alarm.behavior,
            "KINWATCH_METRIC": alarm.metric,
        }
        try:
            running = Running(settings.command, settings.user, line + b"\n", told)
        except Cannot as error:
            self._failed(alarm, str(error))
            return
        self._count("commands")
        waiter = threading.Thread(
            target=self._wait, args=(running, alarm, settings.timeout_s), name="action", daemon=True
        )
        with self._change:
            self._running[running] = waiter
        waiter.start()

    def _wait(self, running: Running, alarm: _Alarm, timeout_s: float) -> None:
        why = running.wait(timeout_s, self._hurry)
        if why:
            self._failed(alarm, why)
        else:
            self._enforced(alarm, "command")
        with self._change:
            del self._running[running]
            self._change.notify_all()

    def _failed(self, alarm: _Alarm, why: str) -> None:
        self._count("failed")
        self._once("command", f"detect.action.command: {why}; further failures are counted and stand in the log")
        self._enforced(alarm, "command", error=why)

    def _count(self, what: str) -> None:
        with self._change:
            self._counts[what] += 1
