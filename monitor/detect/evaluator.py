"""Judges the metrics of one thing against a profile: when an alarm begins, ends, or is no longer known.

Owns the semantics of Device Defender's rule detection: a behavior states what is normal, a datapoint that is not is in
violation. Refuses to know reports, clocks and how an alarm is told; times come in as seconds of one clock, which should
survive a restart as the state does.

Documented are the operators, the consecutive datapoints, that empty lists conform and the two days. Not documented is
how a window slides; here it holds the datapoints of the last durationSeconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.detect.compare import Datapoint, Value, judge_of, types_of, unfit
from monitor.detect.profile import SUMMED, Behavior, Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["in-alarm", "alarm-cleared", "alarm-invalidated"]
"""violationEventType of ListViolationEvents."""

INVALID_AFTER_S: Final = 2 * 86_400
"""An alarm without a datapoint for longer than this is no longer known to hold."""
SLOTS: Final = 100
"""Datapoints of a window that come closer together than a hundredth of it count as one; that bounds memory."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm of one behavior began, ended, or is no longer known."""

    kind: Kind
    behavior: Behavior
    value: Value
    """What was judged, the sum over the window where there is one; of an invalidated alarm, what was judged last, of a
    list nothing."""
    since_s: float
    """When the first of the violations came that led to the alarm."""


class Watched(msgspec.Struct, kw_only=True):
    """What is remembered of one behavior."""

    behavior: Behavior
    """As it was judged: a behavior that has changed begins anew."""
    violations: int = 0
    """In a row, up to now; counted until there is an alarm."""
    conforming: int = 0
    """In a row, up to now; counted during an alarm."""
    since_s: float = 0.0
    in_alarm: bool = False
    last_s: float = 0.0
    """Time of the last datapoint."""
    last: float | None = None
    """Its value, unless it was a list."""
    begun_s: float | None = None
    """Time of the first datapoint of a window metric."""
    points: list[tuple[float, float]] = []
    """(time, value) within the window."""


State = dict[str, Watched]
"""By the name of the behavior; what msgspec encodes and decodes, so that alarms survive a restart."""


class Evaluator:
    """Judges the datapoints of one thing, in the order of their arrival."""

    def __init__(self, profile: Profile) -> None:
        self._judges = {behavior.name: judge_of(behavior) for behavior in profile.behaviors}
        self._types = {behavior.name: types_of(behavior) for behavior in profile.behaviors}
        self.metrics = frozenset(behavior.metric for behavior in profile.behaviors)
        """What the profile is about."""
        self.state: State = {behavior.name: Watched(behavior=behavior) for behavior in profile.behaviors}
        self.unfit: dict[str, str] = {}
        """Behaviors that could not judge what their metric last carried, and why: it is of another type."""

    def observe(self, values: Mapping[str, Value], at_s: float, *, whole: bool = True) -> list[Verdict]:
        """Judge the metrics of one report; returns what changed, in the order of the behaviors.

        A metric that is absent, or of a type that its behavior does not compare, is no datapoint. `whole`: False: the
        window was cut short, so what asks for more than there was is not judged.
        """
        verdicts = self.expire(at_s)
        points = {metric: Datapoint(value) for metric, value in values.items() if metric in self.metrics}
        for name, watched in self.state.items():
            behavior = watched.behavior
            point = points.get(behavior.metric)
            if point is None or (not whole and behavior.operator.startswith("greater-than")):
                continue
            if not point.types <= self._types[name]:
                self.unfit[name] = unfit(behavior, point)
                continue
            if self.unfit:
                self.unfit.pop(name, None)
            verdict = self._datapoint(watched, point, at_s)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _datapoint(self, watched: Watched, point: Datapoint, at_s: float) -> Verdict | None:
        behavior, value = watched.behavior, point.value
        watched.last_s = at_s
        if behavior.duration_s is not None and behavior.metric in SUMMED and not isinstance(value, tuple):
            value, whole = _slide(watched, value, behavior.duration_s, at_s)
            if not whole and behavior.operator.startswith("greater-than"):
                return None  # too little so far is no violation yet
            point = Datapoint(value)
        watched.last = None if isinstance(value, tuple) else float(value)
        conforms = self._judges[behavior.name](point)
        if watched.in_alarm:
            watched.conforming = watched.conforming + 1 if conforms else 0
            if watched.conforming < behavior.to_clear:
                return None
            kind: Kind = "alarm-cleared"
        else:
            if not conforms and watched.violations == 0:
                watched.since_s = at_s
            watched.violations = 0 if conforms else watched.violations + 1
            if watched.violations < behavior.to_alarm:
                return None
            kind = "in-alarm"
        watched.in_alarm = kind == "in-alarm"
        watched.violations = watched.conforming = 0
        return Verdict(kind=kind, behavior=behavior, value=value, since_s=watched.since_s)

    def expire(self, at_s: float) -> list[Verdict]:
        """Give up the alarms that have seen no datapoint for more than two days."""
        return [
            self._invalidate(watched)
            for watched in self.state.values()
            if watched.in_alarm and at_s - watched.last_s > INVALID_AFTER_S
        ]

    def restore(self, state: State) -> list[Verdict]:
        """Go on from a state that was kept.

        Behaviors that are no longer in the profile, or not as they were, are forgotten; their alarms are returned as
        invalidated.
        """
        gone = []
        for name, watched in state.items():
            mine = self.state.get(name)
            if mine is not None and mine.behavior == watched.behavior:
                self.state[name] = msgspec.structs.replace(watched, points=list(watched.points))
            elif watched.in_alarm:
                gone.append(self._invalidate(watched))
        return gone

    def progress(self) -> State:
        """Take what `restore` needs to go on from here: a behavior of which nothing is under way may begin anew."""
        return {
            name: watched
            for name, watched in self.state.items()
            if watched.in_alarm or watched.violations or watched.begun_s is not None
        }

    def alarms(self) -> list[Behavior]:
        """The behaviors in alarm."""
        return [watched.behavior for watched in self.state.values() if watched.in_alarm]

    @staticmethod
    def _invalidate(watched: Watched) -> Verdict:
        watched.in_alarm = False
        watched.violations = watched.conforming = 0
        value: Value = () if watched.last is None else watched.last
        return Verdict(kind="alarm-invalidated", behavior=watched.behavior, value=value, since_s=watched.since_s)


def _slide(watched: Watched, value: float, duration_s: float, at_s: float) -> tuple[float, bool]:
    """Sum of the last `duration_s` with this datapoint, and whether it has watched that long.

    A datapoint exactly that old is out, so that reports just so far apart are judged one by one. What a clock that was
    set back leaves in the future is out as well.
    """
    points = [point for point in watched.points if at_s - duration_s < point[0] <= at_s]
    if points and at_s - points[-1][0] < duration_s / SLOTS:
        points[-1] = (points[-1][0], points[-1][1] + value)
    else:
        points.append((at_s, float(value)))
    watched.points = points
    if watched.begun_s is None or watched.begun_s > at_s:
        watched.begun_s = at_s
    return sum(amount for _, amount in points), at_s - watched.begun_s >= duration_s
