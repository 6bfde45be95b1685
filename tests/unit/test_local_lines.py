"""What the local Device Defender prints is harmless on a terminal and whole in JSON, whatever it was sent."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.defender.responder import Heard
from monitor.detect.evaluator import Kind, Verdict
from monitor.detect.profile import Behavior, Operator
from monitor.local.lines import MAX_COLUMNS, MAX_METRICS, Lines, Table
from monitor.sinks.text import UNSAFE

if TYPE_CHECKING:
    from monitor.detect.compare import Value

NOW_NS = 1_800_000_000_123_456_789
SGR = re.compile(r"\x1b\[[0-9;]*m")
ACCEPTED = Heard(
    thing="mything1",
    format="json",
    report_id=7,
    status="accepted",
    values={"aws:all-bytes-in": 5, "num_child_procs_myapp": 1.0, "child_exes_myapp": ("/bin/cat", "/bin/ls")},
)
REJECTED = Heard(
    thing="mything1", format="cbor", report_id=None, status="rejected", code="InvalidPayload", reason="it is broken"
)
NONE_EXPECTED = Behavior(name="no-child", metric="num_child_procs_myapp", operator="less-than-equals", number=0)


def verdict(kind: Kind = "in-alarm", value: Value = 2.0, behavior: Behavior = NONE_EXPECTED) -> Verdict:
    return Verdict(kind=kind, behavior=behavior, value=value, since_s=1_800_000_000.5)


def plain() -> Table:
    return Table(colour=False, timezone=UTC)


def test_a_report_reads_as_who_what_and_its_custom_metrics() -> None:
    assert plain().report(ACCEPTED, NOW_NS) == (
        "08:00:00.123  mything1  report 7  accepted\n"
        "    num_child_procs_myapp 1\n"
        "    child_exes_myapp [/bin/cat, /bin/ls]\n"
    )
    expected = "08:00:00.123  mything1  report  rejected  InvalidPayload: it is broken\n"
    assert plain().report(REJECTED, NOW_NS) == expected


@pytest.mark.parametrize(
    ("kind", "word"),
    [("in-alarm", "IN ALARM"), ("alarm-cleared", "CLEARED"), ("alarm-invalidated", "INVALIDATED")],
)
def test_a_verdict_reads_as_its_word_its_value_and_what_is_normal(kind: Kind, word: str) -> None:
    text = "no-child  mything1  num_child_procs_myapp 2  (normal: <= 0)"
    assert plain().verdict("mything1", verdict(kind), NOW_NS) == f"08:00:00.123  {word}  {text}\n"
    assert SGR.sub("", Table(colour=True, timezone=UTC).verdict("mything1", verdict(kind), NOW_NS)) == (
        f"08:00:00.123  {word}  {text}\n"
    )


def test_every_kind_of_verdict_has_its_own_colour() -> None:
    coloured = {SGR.findall(Table(colour=True).verdict("t", verdict(kind), NOW_NS))[2] for kind in get_args(Kind)}
    assert len(coloured) == len(get_args(Kind)) == 3


def test_json_lines_carry_what_the_api_s_events_do() -> None:
    assert json.loads(Lines().report(ACCEPTED, NOW_NS)) == {
        "time": "2027-01-15T08:00:00.123456789Z",
        "event": "report",
        "thing": "mything1",
        "report_id": 7,
        "format": "json",
        "status": "accepted",
        "metrics": {
            "aws:all-bytes-in": 5,
            "num_child_procs_myapp": 1.0,
            "child_exes_myapp": ["/bin/cat", "/bin/ls"],
        },
    }
    rejected = json.loads(Lines().report(REJECTED, NOW_NS))
    assert (rejected["status"], rejected["code"], rejected["reason"]) == ("rejected", "InvalidPayload", "it is broken")
    assert "report_id" not in rejected
    assert json.loads(Lines().verdict("mything1", verdict(), NOW_NS)) == {
        "time": "2027-01-15T08:00:00.123456789Z",
        "event": "in-alarm",
        "thing": "mything1",
        "behavior": "no-child",
        "metric": "num_child_procs_myapp",
        "value": 2.0,
        "criteria": {"comparisonOperator": "less-than-equals", "value": {"number": 0}},
        "since": "2027-01-15T08:00:00.500000000Z",
    }


def test_a_report_of_very_many_metrics_and_entries_stays_readable() -> None:
    values: dict[str, Any] = {f"m{index}": tuple(range(10_000)) for index in range(1000)}
    rows = plain().report(Heard(thing="t", format="json", report_id=1, status="accepted", values=values), NOW_NS)
    *_, last = lines = rows.splitlines()
    assert len(lines) == 1 + MAX_METRICS + 1
    assert str(1000 - MAX_METRICS) in last
    assert "(10000)" in lines[1]
    assert max(map(len, lines)) <= 2 * MAX_COLUMNS


def test_the_alarm_of_a_list_that_was_given_up_shows_no_value() -> None:
    assert "num_child_procs_myapp  (normal" in plain().verdict("t", verdict("alarm-invalidated", ()), NOW_NS)
    assert "num_child_procs_myapp []  (normal" in plain().verdict("t", verdict("alarm-cleared", ()), NOW_NS)


hostile = st.text() | st.sampled_from(["\x1b]0;title\x07", "\x1b[2J", "a\nIN ALARM", "\u202e", "\x9b31m", "\r"])
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(1 << 63), 1 << 63), st.lists(hostile).map(tuple)
)
heards = st.builds(
    Heard,
    thing=hostile,
    format=st.sampled_from(["json", "cbor"]),
    report_id=st.none() | st.integers(1, 1 << 62),
    status=st.sampled_from(["accepted", "rejected"]),
    code=hostile,
    reason=hostile,
    values=st.dictionaries(hostile, values),
)
behaviors = st.builds(
    Behavior,
    name=hostile,
    metric=hostile,
    operator=st.sampled_from([name for name in get_args(Operator) if name.endswith("in-set")]),
    texts=st.lists(hostile).map(tuple),
    suppressed=st.booleans(),
)
verdicts = st.builds(
    Verdict,
    kind=st.sampled_from(get_args(Kind)),
    behavior=behaviors,
    value=values,
    since_s=st.floats(0, 4e9),
)


def harmless(text: str) -> None:
    """Whole lines, and nothing that acts on a terminal but our own colours."""
    assert text.endswith("\n")
    for char in SGR.sub("", text).replace("\n", ""):
        assert unicodedata.category(char) not in UNSAFE


@given(heards, st.booleans())
def test_hostile_words_of_a_report_do_nothing_on_a_terminal(heard: Heard, colour: bool) -> None:  # noqa: FBT001
    text = Table(colour=colour).report(heard, NOW_NS)
    harmless(text)
    custom = [name for name in heard.values if not name.startswith("aws:")]
    assert text.count("\n") == 1 + len(custom)
    line = Lines().report(heard, NOW_NS)
    assert line.count("\n") == 1
    assert json.loads(line)["thing"] == heard.thing


@given(hostile, verdicts, st.booleans())
def test_hostile_words_of_a_verdict_do_nothing_on_a_terminal(thing: str, found: Verdict, colour: bool) -> None:  # noqa: FBT001
    text = Table(colour=colour).verdict(thing, found, NOW_NS)
    harmless(text)
    assert text.count("\n") == 1
    line = Lines().verdict(thing, found, NOW_NS)
    assert line.count("\n") == 1
    assert json.loads(line)["behavior"] == found.behavior.name
