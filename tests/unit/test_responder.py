"""The local Device Defender answers as the service does, judges each thing by itself, and bears anything it is sent."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.defender.report import MAX_BYTES
from monitor.defender.responder import FILTERS, Faults, Heard, Limits, Responder
from monitor.defender.values import metric_values
from monitor.detect.evaluator import INVALID_AFTER_S
from monitor.detect.profile import DEVICE_SIDE, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.defender.responder import Message
    from monitor.detect.evaluator import Verdict
    from monitor.detect.profile import Profile

NOW_S = 1_800_000_000.25
THING = "mything1"
JSON = f"$aws/things/{THING}/defender/metrics/json"
CBOR = f"$aws/things/{THING}/defender/metrics/cbor"

FULL: dict[str, Any] = {
    "header": {"report_id": 7, "version": "1.0"},
    "metrics": {
        "listening_tcp_ports": {"ports": [{"port": 22, "interface": "lo"}, {"port": 22}, {"port": 443}], "total": 9},
        "listening_udp_ports": {"ports": [{"port": 53}], "total": 1},
        "network_stats": {"bytes_in": 1, "bytes_out": 2, "packets_in": 3, "packets_out": 4},
        "tcp_connections": {
            "established_connections": {
                "connections": [{"remote_addr": "[fd00::1]:80"}, {"remote_addr": "10.0.0.1:81", "local_port": 5}],
                "total": 2,
            }
        },
    },
    "custom_metrics": {
        "number": [{"number": -1.5}],
        "numbers": [{"number_list": [1, 2, 1]}],
        "strings": [{"string_list": ["/bin/cat", "/bin/ls"]}],
        "addresses": [{"ip_list": ["10.0.0.1", "::1"]}],
    },
}
SHORT: dict[str, Any] = {
    "hed": {"rid": 7, "v": "1.0"},
    "met": {"tp": {"pts": [{"pt": 22, "if": "lo"}], "t": 1}, "ns": {"bi": 1, "bo": 2, "pi": 3, "po": 4}},
    "cmet": {"num_child_procs_myapp": [{"number": 1}]},
}


def report(report_id: int, value: float = 1, metric: str = "num_child_procs_myapp") -> bytes:
    header = {"report_id": report_id, "version": "1.0"}
    return json.dumps({"header": header, "custom_metrics": {metric: [{"number": value}]}}).encode()


def profile(metric: str = "num_child_procs_myapp", operator: str = "less-than-equals", **value: object) -> Profile:
    criteria = {"comparisonOperator": operator, "value": value or {"number": 0}}
    return load(json.dumps({"behaviors": [{"name": "b", "metric": metric, "criteria": criteria}]}).encode())


def read(messages: list[Message]) -> tuple[str, dict[str, Any]]:
    """The one answer's topic, and the answer."""
    ((topic, payload),) = messages
    answer: dict[str, Any] = cbor2.loads(payload) if "/cbor/" in topic else json.loads(payload)
    return topic, answer


def error_code(messages: list[Message]) -> str:
    """The ErrorCode of a refusal; "" of an acceptance."""
    topic, answer = read(messages)
    assert topic.endswith("/rejected") == (answer["status"] == "REJECTED")
    code: str = answer.get("statusDetails", {}).get("ErrorCode", "")
    return code


@pytest.mark.parametrize("document", [FULL, SHORT], ids=["long", "short"])
@pytest.mark.parametrize(("topic", "encode"), [(JSON, lambda found: json.dumps(found).encode()), (CBOR, cbor2.dumps)])
def test_a_good_report_is_accepted_by_its_id_in_its_own_encoding(
    topic: str, encode: Callable[[object], bytes], document: dict[str, Any]
) -> None:
    assert read(Responder().answer(topic, encode(document), NOW_S)) == (
        f"{topic}/accepted",
        {"thingName": THING, "reportId": 7, "status": "ACCEPTED", "timestamp": 1_800_000_000_250},
    )


@pytest.mark.parametrize("topic", [JSON, CBOR])
def test_a_report_that_cannot_be_read_is_rejected_as_documented_without_an_id(topic: str) -> None:
    where, answer = read(Responder().answer(topic, b"{", NOW_S))
    assert where == f"{topic}/rejected"
    message = answer["statusDetails"].pop("ErrorMessage")
    assert message.startswith("Malformed metrics report")
    assert answer == {
        "thingName": THING,
        "status": "REJECTED",
        "statusDetails": {"ErrorCode": "InvalidPayload"},
        "timestamp": 1_800_000_000_250,
    }


def test_the_documented_mistake_of_a_bare_number_is_rejected_with_its_path() -> None:
    bare = {"header": {"report_id": 1, "version": "1.0"}, "custom_metrics": {"cpu": {"number": 0}}}
    _, answer = read(Responder().answer(JSON, json.dumps(bare).encode(), NOW_S))
    assert answer["statusDetails"]["ErrorCode"] == "InvalidPayload"
    assert "custom_metrics.cpu" in answer["statusDetails"]["ErrorMessage"]


def test_the_encoding_of_the_topic_counts_not_that_of_the_payload() -> None:
    assert error_code(Responder().answer(CBOR, json.dumps(FULL).encode(), NOW_S)) == "InvalidPayload"
    assert error_code(Responder().answer(JSON, cbor2.dumps(FULL), NOW_S)) == "InvalidPayload"


def test_a_report_takes_at_most_128_kilobytes() -> None:
    good = json.dumps(FULL).encode()
    assert MAX_BYTES == 131_072
    assert error_code(Responder().answer(JSON, good.ljust(MAX_BYTES), NOW_S)) == ""
    assert error_code(Responder().answer(JSON, good.ljust(MAX_BYTES + 1), NOW_S)) == "InvalidPayload"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        f"{JSON}/accepted",
        f"{JSON}/",
        f"{JSON}\n",
        f"/{JSON}",
        "$aws/things//defender/metrics/json",
        "$aws/things/+/defender/metrics/json",
        "$aws/things/#/defender/metrics/json",
        "$aws/things/a/b/defender/metrics/json",
        "$aws/things/a/defender/metrics/xml",
        "$aws/things/a/shadow/update",
        "$aws/things/\0/defender/metrics/json",
        "$aws/things/\ud800/defender/metrics/json",
        f"$aws/things/{'a' * 300}/defender/metrics/json",
    ],
)
def test_nothing_is_said_on_a_topic_that_is_none_of_a_report(topic: str) -> None:
    heard: list[Heard] = []
    responder = Responder(heard=heard.append)
    assert responder.answer(topic, report(1), NOW_S) == []
    assert (heard, responder.ignored, responder.accepted) == ([], 1, 0)


def test_both_filters_lead_to_topics_that_are_answered() -> None:
    assert [name.replace("+", THING) for name in FILTERS] == [JSON, CBOR]


@pytest.mark.parametrize("thing", ["a" * 129, "ä" * 65, "a\x07", "a\u202eb"])
def test_a_thing_whose_name_is_too_long_or_invisible_is_rejected(thing: str) -> None:
    responder = Responder()
    assert error_code(responder.answer(f"$aws/things/{thing}/defender/metrics/json", report(1), NOW_S)) != ""
    assert (responder.accepted, responder.rejected) == (0, 1)


def test_an_id_must_rise_above_that_of_the_last_accepted_report_of_the_thing() -> None:
    responder = Responder()
    assert error_code(responder.answer(JSON, report(5), NOW_S)) == ""
    for report_id in (5, 4, 1):
        _, answer = read(responder.answer(JSON, report(report_id), NOW_S + 1))
        assert (answer["statusDetails"]["ErrorCode"], answer["reportId"]) == ("InvalidPayload", report_id)
        assert "not above 5" in answer["statusDetails"]["ErrorMessage"]
    other = "$aws/things/other/defender/metrics/cbor"
    assert error_code(responder.answer(other, cbor2.dumps(SHORT), NOW_S)) == ""
    assert error_code(responder.answer(JSON, report(6), NOW_S)) == ""
    assert error_code(Responder(rising_ids=False).answer(JSON, report(1), NOW_S)) == ""


def test_ids_need_not_rise_where_that_is_not_asked_for() -> None:
    responder = Responder(rising_ids=False)
    assert [error_code(responder.answer(JSON, report(report_id), NOW_S)) for report_id in (5, 5, 1)] == ["", "", ""]


def test_spacing_is_counted_from_the_last_accepted_report_of_the_thing() -> None:
    responder = Responder(min_spacing_s=300)
    other = "$aws/things/other/defender/metrics/json"
    for after_s, topic, report_id, code in (
        (0, JSON, 1, ""),
        (1, other, 1, ""),
        (299, JSON, 2, "Throttled"),
        (299.9, JSON, 3, "Throttled"),
        (300, JSON, 4, ""),
        (599, JSON, 5, "Throttled"),
        (599, JSON, 4, "InvalidPayload"),
        (600, JSON, 5, ""),
    ):
        messages = responder.answer(topic, report(report_id), NOW_S + after_s)
        assert error_code(messages) == code, after_s
        if code == "Throttled":
            assert read(messages)[1]["reportId"] == report_id
    assert (responder.accepted, responder.rejected) == (4, 4)


def test_a_malformed_report_does_not_use_up_the_slot() -> None:
    responder = Responder(min_spacing_s=300)
    assert error_code(responder.answer(JSON, b"{", NOW_S)) == "InvalidPayload"
    assert error_code(responder.answer(JSON, report(1), NOW_S + 1)) == ""


def test_a_clock_set_back_does_not_throttle_for_ever() -> None:
    responder = Responder(min_spacing_s=300)
    responder.answer(JSON, report(1), NOW_S)
    assert error_code(responder.answer(JSON, report(2), NOW_S - 86_400)) == ""


def test_every_metric_of_the_guide_has_its_value_in_a_full_report() -> None:
    values = metric_values(FULL)
    assert {name for name in values if name.startswith("aws:")} == DEVICE_SIDE
    assert values == {
        "aws:all-bytes-in": 1,
        "aws:all-bytes-out": 2,
        "aws:all-packets-in": 3,
        "aws:all-packets-out": 4,
        "aws:num-listening-tcp-ports": 9,
        "aws:listening-tcp-ports": (22, 443),
        "aws:num-listening-udp-ports": 1,
        "aws:listening-udp-ports": (53,),
        "aws:num-established-tcp-connections": 2,
        "aws:destination-ip-addresses": ("fd00::1", "10.0.0.1"),
        "number": -1.5,
        "numbers": (1, 2),
        "strings": ("/bin/cat", "/bin/ls"),
        "addresses": ("10.0.0.1", "::1"),
    }


@pytest.mark.parametrize("block", ["listening_tcp_ports", "network_stats", "tcp_connections"])
def test_what_a_report_leaves_out_is_absent_and_not_zero(block: str) -> None:
    document = copy.deepcopy(FULL)
    document["metrics"][block] = {}
    expected = {"listening_tcp_ports": 2, "network_stats": 4, "tcp_connections": 2}[block]
    assert len(metric_values(document)) == len(metric_values(FULL)) - expected


def test_a_report_is_told_before_the_verdicts_on_it() -> None:
    said: list[object] = []
    responder = Responder(
        profile(), heard=said.append, judged=lambda thing, verdict: said.append((thing, verdict.kind, verdict.value))
    )
    responder.answer(JSON, report(1, 2), NOW_S)
    responder.answer(JSON, report(2, 0), NOW_S + 300)
    first, alarm, second, cleared = said
    assert isinstance(first, Heard)
    assert isinstance(second, Heard)
    assert (first.thing, first.format, first.report_id, first.status) == (THING, "json", 1, "accepted")
    assert alarm == (THING, "in-alarm", 2)
    assert cleared == (THING, "alarm-cleared", 0)


def test_each_thing_is_judged_by_itself() -> None:
    said: list[tuple[str, str]] = []
    responder = Responder(profile(), judged=lambda thing, verdict: said.append((thing, verdict.kind)))
    for thing, report_id, value in (("a", 1, 1), ("b", 1, 1), ("a", 2, 1), ("a", 3, 0), ("b", 2, 1)):
        responder.answer(f"$aws/things/{thing}/defender/metrics/json", report(report_id, value), NOW_S + report_id)
    assert said == [("a", "in-alarm"), ("b", "in-alarm"), ("a", "alarm-cleared")]


def test_a_rejected_report_is_told_and_not_judged() -> None:
    said: list[Verdict] = []
    heard: list[Heard] = []
    responder = Responder(
        profile(), min_spacing_s=300, heard=heard.append, judged=lambda _, verdict: said.append(verdict)
    )
    responder.answer(JSON, report(1, 0), NOW_S)
    responder.answer(JSON, report(2, 9), NOW_S + 1)
    assert said == []
    assert (heard[1].status, heard[1].code) == ("rejected", "Throttled")
    assert heard[1].values == {"num_child_procs_myapp": 9}
    assert responder.accepted == 1


def test_an_empty_list_of_ports_clears_a_violation() -> None:
    said: list[str] = []
    responder = Responder(
        profile("aws:listening-tcp-ports", "in-port-set", ports=[22]),
        judged=lambda _, verdict: said.append(verdict.kind),
    )
    for report_id, ports in ((1, [{"port": 23}]), (2, [])):
        document = {
            "header": {"report_id": report_id, "version": "1.0"},
            "metrics": {"listening_tcp_ports": {"ports": ports}},
        }
        responder.answer(JSON, json.dumps(document).encode(), NOW_S + report_id)
    assert said == ["in-alarm", "alarm-cleared"]


def test_an_alarm_of_a_thing_that_fell_silent_is_given_up() -> None:
    said: list[tuple[str, str]] = []
    responder = Responder(profile(), judged=lambda thing, verdict: said.append((thing, verdict.kind)))
    responder.answer(JSON, report(1, 1), NOW_S)
    responder.expire(NOW_S + INVALID_AFTER_S)
    assert said == [(THING, "in-alarm")]
    responder.expire(NOW_S + INVALID_AFTER_S + 1)
    assert said[1:] == [(THING, "alarm-invalidated")]


def test_without_a_profile_nothing_is_judged() -> None:
    responder = Responder(judged=lambda *_: pytest.fail("a verdict without a profile"))
    responder.answer(JSON, report(1, 99), NOW_S)
    responder.expire(NOW_S + 10 * INVALID_AFTER_S)
    assert responder.evaluator(THING) is None


def test_a_fault_drops_every_so_many_th_answer_although_the_report_counts() -> None:
    responder = Responder(faults=Faults(drop_every=3))
    sent = [len(responder.answer(JSON, report(report_id), NOW_S)) for report_id in range(1, 8)]
    assert sent == [1, 1, 0, 1, 1, 0, 1]
    assert responder.accepted == 7
    assert Responder(faults=Faults(drop_every=1)).answer(JSON, report(1), NOW_S) == []


def test_a_fault_sends_answers_late_once_and_in_order() -> None:
    responder = Responder(faults=Faults(late_s=10))
    assert responder.next_due_s() is None
    assert responder.answer(JSON, report(1), NOW_S) == responder.answer(JSON, report(2), NOW_S + 1) == []
    assert responder.next_due_s() == NOW_S + 10
    assert responder.due(NOW_S + 9) == []
    assert read(responder.due(NOW_S + 10))[1]["reportId"] == 1
    assert responder.next_due_s() == NOW_S + 11
    assert read(responder.due(NOW_S + 99))[1]["reportId"] == 2
    assert (responder.due(NOW_S + 99), responder.next_due_s()) == ([], None)


def test_a_fault_answers_with_the_id_of_another_report() -> None:
    responder = Responder(faults=Faults(foreign_id=True))
    assert read(responder.answer(JSON, report(1), NOW_S))[1]["reportId"] != 1
    largest = report((1 << 63) - 1)
    foreign = read(responder.answer(CBOR, cbor2.dumps(json.loads(largest)), NOW_S))[1]["reportId"]
    assert foreign != (1 << 63) - 1
    assert 1 <= foreign < 1 << 63, "an id that a report could have"


def test_a_fault_refuses_good_reports_with_the_wanted_code() -> None:
    responder = Responder(faults=Faults(reject_code="Grumpy"))
    assert error_code(responder.answer(JSON, report(1), NOW_S)) == "Grumpy"
    assert error_code(responder.answer(JSON, b"{", NOW_S)) == "InvalidPayload"
    assert (responder.accepted, responder.rejected) == (0, 2)


def test_the_thing_that_was_silent_longest_is_forgotten_first() -> None:
    responder = Responder(profile(), limits=Limits(things=2))
    for report_id, thing in enumerate(("a", "b", "a", "c"), start=1):
        responder.answer(f"$aws/things/{thing}/defender/metrics/json", report(report_id), NOW_S)
    assert [thing for thing in "abc" if responder.evaluator(thing) is not None] == ["a", "c"]
    assert responder.forgotten == 1


def test_late_answers_beyond_the_limit_are_not_sent() -> None:
    responder = Responder(faults=Faults(late_s=1), limits=Limits(waiting=2))
    for report_id in (1, 2, 3):
        responder.answer(JSON, report(report_id), NOW_S)
    assert [json.loads(payload)["reportId"] for _, payload in responder.due(NOW_S + 1)] == [2, 3]


tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["header", "metrics", "hed", "number", "n", ""]) | st.text(), inner)
    ),
    max_leaves=8,
)
PATHS = [
    *("header", "header.report_id", "metrics", "custom_metrics", "custom_metrics.number"),
    *("custom_metrics.number.0.number", "custom_metrics.strings.0.string_list", "metrics.network_stats"),
    *("metrics.listening_tcp_ports.ports", "metrics.tcp_connections.established_connections.connections"),
]


def changed(path: str, value: object) -> dict[str, Any]:
    """FULL with the value at a dotted path replaced."""
    made = copy.deepcopy(FULL)
    *way, last = path.split(".")
    node: Any = made
    for part in way:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    return made


things = st.sampled_from([THING, "\x1b[31m", "ä" * 70, "\ud800"]) | st.text()
topics = st.one_of(
    st.text(),
    st.builds("$aws/things/{}/defender/metrics/{}".format, things, st.sampled_from(["json", "cbor", "x"])),
    st.sampled_from([JSON, CBOR]),
)
altered = st.builds(changed, st.sampled_from(PATHS), tree)
payloads = st.one_of(
    st.binary(),
    st.just(b"[" * 100_000),
    st.just(b"\x81" * 100_000),
    tree.map(cbor2.dumps),
    altered.map(cbor2.dumps),
    st.builds(lambda found: json.dumps(found, default=repr).encode("utf-8", "replace"), altered),
    st.builds(
        lambda good, at, byte: good[: at % len(good)] + byte + good[at % len(good) + 1 :],
        st.sampled_from([json.dumps(FULL).encode(), cbor2.dumps(FULL), cbor2.dumps(SHORT)]),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=1),
    ),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(topics, payloads, st.floats(0, 4e9)), max_size=5))
def test_whatever_comes_on_whatever_topic_is_answered_at_most_once_in_a_form_that_can_be_read(
    messages: list[tuple[str, bytes, float]],
) -> None:
    heard: list[Heard] = []
    responder = Responder(profile(), min_spacing_s=1, heard=heard.append)
    for topic, payload, now_s in messages:
        before = len(heard)
        answers = responder.answer(topic, payload, now_s)
        assert len(answers) == len(heard) - before
        for where, answer in answers:
            assert where in {f"{topic}/accepted", f"{topic}/rejected"}
            found = cbor2.loads(answer) if topic.endswith("/cbor") else json.loads(answer)
            assert found["status"].lower() == where.rpartition("/")[2]
            assert len(answer) < 4096
    assert responder.accepted + responder.rejected == len(heard)
