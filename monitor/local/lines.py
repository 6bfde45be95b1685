"""What the local Device Defender heard and judged, as lines: JSON, or text for a terminal.

Owns the form of a line and its harmlessness: every word comes from outside. Refuses to know clocks and streams.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.detect.profile import plain
from monitor.sinks.text import fit, safe, styled

if TYPE_CHECKING:
    from datetime import tzinfo

    from monitor.defender.responder import Heard
    from monitor.detect.compare import Value
    from monitor.detect.evaluator import Verdict

MAX_METRICS: Final = 40
"""Custom metrics that the text of a report shows."""
MAX_ENTRIES: Final = 8
"""Entries of a list that it shows."""
MAX_COLUMNS: Final = 100

_WORDS: Final = {
    "in-alarm": ("IN ALARM", "alarm"),
    "alarm-cleared": ("CLEARED", "clear"),
    "alarm-invalidated": ("INVALIDATED", "yellow"),
}
_SECOND_NS: Final = 10**9


class Lines:
    """JSON Lines: `time`, `event` and what belongs to it; "report", or a violation event type of the AWS API."""

    def report(self, heard: Heard, now_ns: int) -> str:
        """Write a report that came."""
        line: dict[str, Any] = {"time": _rfc3339(now_ns), "event": "report", "thing": heard.thing}
        if heard.report_id is not None:
            line["report_id"] = heard.report_id
        line |= {"format": heard.format, "status": heard.status}
        if heard.status == "rejected":
            line |= {"code": heard.code, "reason": heard.reason}
        return _line(line | {"metrics": heard.values})

    def verdict(self, thing: str, verdict: Verdict, now_ns: int) -> str:
        """Write a verdict."""
        behavior = verdict.behavior
        line: dict[str, Any] = {"time": _rfc3339(now_ns), "event": verdict.kind, "thing": thing}
        line |= {"behavior": behavior.name, "metric": behavior.metric, "value": verdict.value}
        line |= {"criteria": behavior.criteria(), "since": _rfc3339(int(verdict.since_s * _SECOND_NS))}
        return _line(line | ({"suppressed": True} if behavior.suppressed else {}))


class Table:
    """Text for people."""

    def __init__(self, *, colour: bool, timezone: tzinfo | None = None) -> None:
        """`timezone`: of the times, None: local."""
        self._colour = colour
        self._timezone = timezone

    def report(self, heard: Heard, now_ns: int) -> str:
        """Write a report that came, and the custom metrics of it."""
        which = "report" if heard.report_id is None else f"report {heard.report_id}"
        style = "green" if heard.status == "accepted" else "red"
        said = styled(heard.status, style, colour=self._colour)
        if heard.status == "rejected":
            said += f"  {safe(heard.code)}: {safe(heard.reason)}"
        rows = [f"{self._clock(now_ns)}  {safe(heard.thing)}  {which}  {said}"]
        custom = [name for name in heard.values if not name.startswith("aws:")]
        rows += [f"    {safe(name)} {_shown(heard.values[name])}" for name in custom[:MAX_METRICS]]
        if len(custom) > MAX_METRICS:
            rows.append(f"    … and {len(custom) - MAX_METRICS} metrics more")
        return "".join(f"{row}\n" for row in rows)

    def verdict(self, thing: str, verdict: Verdict, now_ns: int) -> str:
        """Write a verdict."""
        behavior = verdict.behavior
        word, style = _WORDS[verdict.kind]
        value = "" if verdict.value == () and verdict.kind == "alarm-invalidated" else f" {_shown(verdict.value)}"
        text = f"{safe(behavior.name)}  {safe(thing)}  {safe(behavior.metric)}{value}"
        text += f"  (normal: {fit(safe(behavior.normal()), MAX_COLUMNS)})"
        if behavior.suppressed:
            text += "  (alerts suppressed)"
        return f"{self._clock(now_ns)}  {styled(word, style, colour=self._colour)}  {text}\n"

    def _clock(self, now_ns: int) -> str:
        moment = datetime.fromtimestamp(now_ns // _SECOND_NS, UTC).astimezone(self._timezone)
        milliseconds = now_ns % _SECOND_NS // 10**6
        return styled(f"{moment:%H:%M:%S}.{milliseconds:03}", "dim", colour=self._colour)


def _shown(value: Value) -> str:
    if not isinstance(value, tuple):
        return plain(value)
    some = ", ".join(safe(member) if isinstance(member, str) else plain(member) for member in value[:MAX_ENTRIES])
    more = f", … ({len(value)})" if len(value) > MAX_ENTRIES else ""
    return f"[{fit(some, MAX_COLUMNS)}{more}]"


def _line(line: dict[str, Any]) -> str:
    return msgspec.json.encode(line).decode() + "\n"


def _rfc3339(now_ns: int) -> str:
    seconds, nanoseconds = divmod(now_ns, _SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
