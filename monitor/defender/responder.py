"""The local Device Defender: takes reports, answers as the service does, judges them; knows no MQTT and no clock.

Owns what is remembered of each thing, within limits that hostile input cannot move. Refuses to know where messages come
from and how verdicts are shown.

Documented are the shapes of both answers, that an answer comes in the encoding of the report, and the one error code
InvalidPayload. Not documented are the error codes of everything else, so nobody should depend on them: whether the
service says anything at all about a throttled report, or enforces rising ids. Here a report too soon is refused with
"Throttled", and an id that does not rise with InvalidPayload. A refusal of a report that can be read names its id, as
AWS's own demos expect; the documented refusal, of a malformed report, does not.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.defender.report import Document, Format, encode
from monitor.defender.validate import parse
from monitor.defender.values import metric_values
from monitor.detect.compare import Value  # noqa: TC001 - msgspec reads the fields' types
from monitor.detect.evaluator import Evaluator
from monitor.errors import ReportInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.detect.evaluator import Verdict
    from monitor.detect.profile import Profile

FILTERS: Final = ("$aws/things/+/defender/metrics/json", "$aws/things/+/defender/metrics/cbor")
"""What to subscribe to."""
MAX_TOPIC_BYTES: Final = 256
"""Of AWS IoT Core. Its other limit, seven slashes, the shape of the topics keeps."""
MAX_THING_BYTES: Final = 128

_TOPIC: Final = re.compile(r"\$aws/things/([^/+#]+)/defender/metrics/(json|cbor)\Z")
_MAX_MESSAGE: Final = 300
_FOREIGN: Final = 1_000_000

Message = tuple[str, bytes]


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong on purpose, to try a publisher out. Nothing, unless said."""

    drop_every: int = 0
    """Every so many-th answer is not sent, although the report counts; 1: none is. 0: all are."""
    late_s: float = 0.0
    """Answers wait so long: `due` returns them."""
    foreign_id: bool = False
    """Answers name the id of another report."""
    reject_code: str = ""
    """Good reports are refused with this ErrorCode."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is remembered, at most."""

    things: int = 256
    """Beyond, the thing that has been silent longest is forgotten."""
    waiting: int = 1000
    """Late answers; beyond, the oldest are not sent."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One report that came, and what was answered."""

    thing: str
    format: Format
    report_id: int | None
    """None: the report could not be read."""
    status: Literal["accepted", "rejected"]
    code: str = ""
    reason: str = ""
    values: dict[str, Value] = {}
    """By the name of the metric; empty when the report could not be read."""


class _Thing:
    def __init__(self, profile: Profile | None) -> None:
        self.evaluator = None if profile is None else Evaluator(profile)
        self.accepted_id: int | None = None
        self.accepted_s: float | None = None


class Responder:
    """Answers reports. Never raises for anything that comes over the wire."""

    def __init__(  # noqa: PLR0913 - each is one setting, by name
        self,
        profile: Profile | None = None,
        *,
        min_spacing_s: float = 0.0,
        rising_ids: bool = True,
        faults: Faults | None = None,
        limits: Limits | None = None,
        heard: Callable[[Heard], None] = lambda _: None,
        judged: Callable[[str, Verdict], None] = lambda _, __: None,
    ) -> None:
        """`profile`: judged for every thing; None: nothing is judged.

        `min_spacing_s`: a report that comes sooner after the thing's last accepted one is refused; 0: none is.
        `rising_ids`: an id must be above the thing's last accepted one. `heard` is told of every report, then `judged`
        of every verdict, with the name of the thing.
        """
        self._profile = profile
        self._min_spacing_s = min_spacing_s
        self._rising_ids = rising_ids
        self._faults = faults or Faults()
        self._limits = limits or Limits()
        self._heard = heard
        self._judged = judged
        self._things: OrderedDict[str, _Thing] = OrderedDict()
        self._late: deque[tuple[float, Message]] = deque()
        self._answers = 0
        self.accepted = 0
        self.rejected = 0
        self.ignored = 0
        """Messages that were no reports, or on topics that cannot be answered."""
        self.forgotten = 0
        """Things that had to make room for others."""

    def answer(self, topic: str, payload: bytes, now_s: float) -> list[Message]:
        """Take what came on a topic; returns what to publish now. `now_s`: seconds since the epoch."""
        found = _TOPIC.match(topic)
        if found is None or not _answerable(topic):
            self.ignored += 1
            return []
        kind: Format = "json" if found[2] == "json" else "cbor"
        heard, document = self._judge(found[1], kind, payload, now_s)
        if document is None:
            self.rejected += 1
        else:
            self.accepted += 1
        self._heard(heard)
        if document is not None:
            self._accept(heard, now_s)
        return self._send(topic, heard, now_s)

    def _judge(self, name: str, kind: Format, payload: bytes, now_s: float) -> tuple[Heard, Document | None]:
        """What to say about a report; the document when it is accepted."""
        if len(name.encode()) > MAX_THING_BYTES or not name.isprintable():
            return _refused(name, kind, "InvalidPayload", "the name of a thing is printable, at most 128 bytes"), None
        try:
            document = parse(payload, kind, sample=True)
        except ReportInvalid as error:
            return _refused(name, kind, "InvalidPayload", f"Malformed metrics report: {error}"), None
        report_id: int = document["header"]["report_id"]
        values = metric_values(document)
        code, reason = self._objection(self._things.get(name), report_id, now_s)
        if code:
            return _refused(name, kind, code, reason, report_id, values), None
        heard = Heard(thing=name, format=kind, report_id=report_id, status="accepted", values=values)
        return heard, document

    def _objection(self, thing: _Thing | None, report_id: int, now_s: float) -> tuple[str, str]:
        if thing is not None and self._rising_ids and thing.accepted_id is not None and report_id <= thing.accepted_id:
            return "InvalidPayload", f"report_id {report_id} is not above {thing.accepted_id}, the last accepted one"
        if thing is not None and thing.accepted_s is not None and 0 <= now_s - thing.accepted_s < self._min_spacing_s:
            after_s = now_s - thing.accepted_s
            return (
                "Throttled",
                f"{after_s:.1f} s after the last accepted report; the least is {self._min_spacing_s:g} s",
            )
        if self._faults.reject_code:
            return self._faults.reject_code, "refused on purpose"
        return "", ""

    def _accept(self, heard: Heard, now_s: float) -> None:
        thing = self._things.get(heard.thing)
        if thing is None:
            if len(self._things) >= self._limits.things:
                self._things.popitem(last=False)
                self.forgotten += 1
            thing = self._things[heard.thing] = _Thing(self._profile)
        self._things.move_to_end(heard.thing)
        report_id = heard.report_id or 0
        thing.accepted_id, thing.accepted_s = report_id, now_s
        if thing.evaluator is not None:
            for verdict in thing.evaluator.observe(heard.values, now_s):
                self._judged(heard.thing, verdict)

    def _send(self, topic: str, heard: Heard, now_s: float) -> list[Message]:
        message = (f"{topic}/{heard.status}", encode(self._written(heard, now_s), heard.format))
        self._answers += 1
        if self._faults.drop_every and self._answers % self._faults.drop_every == 0:
            return []
        if self._faults.late_s <= 0:
            return [message]
        self._late.append((now_s + self._faults.late_s, message))
        while len(self._late) > self._limits.waiting:
            self._late.popleft()
        return []

    def _written(self, heard: Heard, now_s: float) -> Document:
        written: Document = {"thingName": heard.thing}
        if heard.report_id is not None:
            written["reportId"] = _foreign(heard.report_id) if self._faults.foreign_id else heard.report_id
        written["status"] = heard.status.upper()
        if heard.status == "rejected":
            written["statusDetails"] = {"ErrorCode": heard.code, "ErrorMessage": heard.reason}
        return written | {"timestamp": int(now_s * 1000)}

    def due(self, now_s: float) -> list[Message]:
        """Return the late answers whose time has come, once."""
        ready = []
        while self._late and self._late[0][0] <= now_s:
            ready.append(self._late.popleft()[1])
        return ready

    def next_due_s(self) -> float | None:
        """When the next late answer is due; None: there is none."""
        return self._late[0][0] if self._late else None

    def expire(self, now_s: float) -> None:
        """Give up alarms of things that have been silent too long; `judged` is told. Call it now and then."""
        for name, thing in self._things.items():
            for verdict in thing.evaluator.expire(now_s) if thing.evaluator is not None else ():
                self._judged(name, verdict)

    def evaluator(self, thing: str) -> Evaluator | None:
        """The judge of a thing. None: no report of it is remembered, or there is no profile."""
        known = self._things.get(thing)
        return known.evaluator if known else None


def _foreign(report_id: int) -> int:
    """An id that a report could have, yet this one has not."""
    return report_id - _FOREIGN if report_id > _FOREIGN else report_id + _FOREIGN


def _answerable(topic: str) -> bool:
    """Whether an answer's topic is one that a broker takes."""
    try:
        return len(topic.encode()) + len("/accepted") <= MAX_TOPIC_BYTES and "\0" not in topic
    except UnicodeEncodeError:
        return False


def _refused(  # noqa: PLR0913, PLR0917 - the parts of a refusal
    thing: str,
    kind: Format,
    code: str,
    reason: str,
    report_id: int | None = None,
    values: dict[str, Value] | None = None,
) -> Heard:
    said = reason[:_MAX_MESSAGE].encode("utf-8", "replace").decode()
    return Heard(
        thing=thing, format=kind, report_id=report_id, status="rejected", code=code, reason=said, values=values or {}
    )
