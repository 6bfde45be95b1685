"""Whatever the service may say about a report is understood, and whatever else comes does no harm.

Owns the shapes of answers as the developer guide and AWS's demos show them. Refuses to know who waits for one.
"""

from __future__ import annotations

import json
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.defender.answers import TOPIC, Answer, parse

THING = "mything1"
MALFORMED = {"ErrorCode": "InvalidPayload", "ErrorMessage": "Malformed metrics report"}


def topic(what: str = "accepted", form: str = "json", thing: str = THING) -> str:
    """Where the answer comes."""
    return f"{TOPIC.format(thing=thing, format=form)}/{what}"


def answer(document: Any, what: str = "accepted") -> Answer | None:  # noqa: ANN401 - whatever JSON and CBOR hold
    """What is read, the same in both formats."""
    seen = parse(topic(what), json.dumps(document).encode(), THING)
    assert parse(topic(what, "cbor"), cbor2.dumps(document), THING) == seen
    return seen


def test_an_acceptance_names_its_report() -> None:
    document = {"thingName": THING, "reportId": 1635800375, "status": "ACCEPTED", "timestamp": 1635800375123}
    assert answer(document) == Answer(accepted=True, report_id=1635800375)


def test_the_odd_acceptance_of_the_developer_guide_names_no_report() -> None:
    document = {"thingName": THING, "12334567": 1635800375, "status": "ACCEPTED", "timestamp": 1635801636023}
    assert answer(document) == Answer(accepted=True, report_id=None)


def test_the_refusal_of_the_developer_guide_says_why_and_names_no_report() -> None:
    document = {"thingName": THING, "status": "REJECTED", "statusDetails": MALFORMED, "timestamp": 1635802047699}
    assert answer(document, "rejected") == Answer(
        accepted=False, report_id=None, code="InvalidPayload", message="Malformed metrics report"
    )


def test_a_refusal_may_name_its_report_as_the_demos_expect() -> None:
    document = {"thingName": THING, "reportId": 7, "status": "REJECTED", "statusDetails": MALFORMED}
    seen = answer(document, "rejected")
    assert seen is not None
    assert (seen.accepted, seen.report_id) == (False, 7)


@pytest.mark.parametrize("what", ["accepted", "rejected"])
def test_the_topic_alone_is_an_answer(what: str) -> None:
    assert answer({}, what) == Answer(accepted=what == "accepted", report_id=None)


def test_a_status_that_contradicts_the_topic_is_no_acceptance() -> None:
    refused, taken = answer({"status": "REJECTED"}), answer({"status": "ACCEPTED"}, "rejected")
    assert refused is not None
    assert taken is not None
    assert not refused.accepted
    assert not taken.accepted


@pytest.mark.parametrize(
    ("given_id", "seen_id"),
    [
        (1, 1),
        ("1635800375", 1635800375),
        (2**63 - 1, 2**63 - 1),
        (None, None),
        (True, None),
        (1.5, None),
        ("", None),
        ("-1", None),
        ("1" * 5000, None),
        ("\u0661", None),
        ([1], None),
        ({"a": 1}, None),
    ],
)
def test_an_id_is_a_number_or_one_in_quotes_and_anything_else_is_none(given_id: object, seen_id: int | None) -> None:
    seen = answer({"reportId": given_id})
    assert seen is not None
    assert seen.report_id == seen_id


@pytest.mark.parametrize(
    ("details", "code", "message"),
    [
        (None, "", ""),
        ("Throttled", "", ""),
        ([], "", ""),
        ({}, "", ""),
        ({"ErrorCode": None, "ErrorMessage": None}, "", ""),
        ({"ErrorCode": 429}, "429", ""),
        ({"ErrorCode": "Throttled"}, "Throttled", ""),
        ({"ErrorMessage": "Not a Thing"}, "", "Not a Thing"),
        ({"ErrorCode": "a\nb\x1b[1m"}, "a?b?[1m", ""),
        ({"ErrorCode": "x" * 10_000}, "x" * 200, ""),
    ],
)
def test_details_are_a_short_printable_line_whatever_they_were(details: object, code: str, message: str) -> None:
    seen = answer({"status": "REJECTED", "statusDetails": details}, "rejected")
    assert seen is not None
    assert (seen.code, seen.message) == (code, message)


def test_numbers_beyond_all_bounds_are_no_code_and_no_harm() -> None:
    huge = 1 << 20_000
    payload = cbor2.dumps({"reportId": huge, "statusDetails": {"ErrorCode": huge, "ErrorMessage": [huge]}})
    seen = parse(topic("rejected", "cbor"), payload, THING)
    assert seen is not None
    assert (seen.accepted, seen.code, seen.message) == (False, "", "")


@pytest.mark.parametrize(
    "name",
    [
        topic(thing="another"),
        topic("accepted", "xml"),
        topic("delayed"),
        TOPIC.format(thing=THING, format="json"),
        topic() + "/more",
        topic() + "\n",
        "x" + topic(),
        f"kinwatch/{THING}/alarms",
        "",
    ],
)
def test_what_comes_on_another_topic_is_no_answer(name: str) -> None:
    assert parse(name, b"{}", THING) is None


def test_an_answer_about_another_thing_is_none_of_ours() -> None:
    assert answer({"thingName": "another", "reportId": 1}) is None


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"1", b"null", b'"ACCEPTED"', b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_no_object_is_no_answer(payload: bytes) -> None:
    assert parse(topic(), payload, THING) is None


def test_an_answer_in_the_other_format_is_none() -> None:
    assert parse(topic("accepted", "cbor"), b'{"reportId": 1}', THING) is None
    assert parse(topic("accepted", "json"), cbor2.dumps({"reportId": 1}), THING) is None


tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["thingName", "reportId", "status", "statusDetails", "ErrorCode", ""]), inner)
    ),
)


@given(
    st.binary() | tree.map(cbor2.dumps), st.sampled_from(["json", "cbor"]), st.sampled_from(["accepted", "rejected"])
)
def test_no_bytes_from_outside_raise_anything(payload: bytes, form: str, what: str) -> None:
    seen = parse(topic(what, form), payload, THING)
    assert seen is None or seen.accepted <= (what == "accepted")
    if seen is not None:
        assert (seen.code + seen.message).isprintable()
