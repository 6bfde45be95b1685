"""Verdicts about windows and local actions as lines of the event log; knows neither clocks nor files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.engine.lines import Alarm, Clear, Criteria, Enforced

if TYPE_CHECKING:
    from monitor.detect.compare import Value
    from monitor.detect.evaluator import Verdict
    from monitor.detect.profile import Behavior
    from monitor.judging.culprits import Culprits

_FIRST: Final = ("time", "event", "watch", "behavior", "metric", "value")
_EXACT: Final = 1 << 53
"""Beyond, a double is no longer a whole number's only spelling."""


def moment(at_s: float) -> str:
    """RFC 3339, UTC, nine digits, of seconds since the epoch."""
    ns = round(at_s * 1e9)
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def verdict_line(verdict: Verdict, at_s: float, watch: str, who: Culprits) -> bytes:
    """Write an `alarm` or `clear` line. `watch`: that the metric is about, "" for a metric of the device.

    `who`: the processes that an alarm is about, as far as they are known.
    """
    shared: dict[str, Any] = {
        "time": moment(at_s),
        "watch": watch or msgspec.UNSET,
        "behavior": verdict.behavior.name,
        "metric": verdict.behavior.metric,
        "criteria": _criteria(verdict.behavior),
        "since": moment(verdict.since_s),
        "suppressed": verdict.behavior.suppressed or msgspec.UNSET,
    }
    if verdict.kind == "in-alarm":
        shared["process_ids"] = who.process_ids or msgspec.UNSET
        return encoded(Alarm(value=_plain(verdict.value), lineage=who.lineage or msgspec.UNSET, **shared))
    invalidated = verdict.kind == "alarm-invalidated"
    # Of a list that was judged long ago nothing is remembered, and an empty one would be a lie.
    known = not (invalidated and isinstance(verdict.value, tuple))
    value = _plain(verdict.value) if known else msgspec.UNSET
    return encoded(Clear(value=value, invalidated=invalidated or msgspec.UNSET, **shared))


def enforced_line(at_s: float, **keys: Any) -> bytes:  # noqa: ANN401 - keys of Enforced
    """Write an `enforced` line; what is empty is left out."""
    return encoded(Enforced(time=moment(at_s), **{key: value for key, value in keys.items() if value}))


def encoded(line: Alarm | Clear | Enforced) -> bytes:
    """Write a line, its keys in the engine's order, and a newline."""
    keys = msgspec.to_builtins(line)
    first = {key: keys.pop(key) for key in _FIRST if key in keys}
    return msgspec.json.encode(first | keys) + b"\n"


def _criteria(behavior: Behavior) -> Criteria:
    written = behavior.criteria()
    if behavior.duration_s is not None:
        written["durationSeconds"] = behavior.duration_s
    if behavior.to_alarm > 1:
        written["consecutiveDatapointsToAlarm"] = behavior.to_alarm
    if behavior.to_clear > 1:
        written["consecutiveDatapointsToClear"] = behavior.to_clear
    return msgspec.convert(written, Criteria)


def _plain(value: Value) -> Any:  # noqa: ANN401 - what JSON takes
    """A sum is a double; a whole one is told as a whole number."""
    if isinstance(value, tuple):
        return value
    return int(value) if abs(value) < _EXACT and value == int(value) else value
