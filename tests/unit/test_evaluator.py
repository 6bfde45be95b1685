"""One device's datapoints are judged as the service judges them."""

from __future__ import annotations

import ipaddress
import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.detect.behaviors import aws_form, expected
from monitor.detect.evaluator import INVALID_AFTER_S, SLOTS, Evaluator, State, Value, Verdict
from monitor.detect.profile import Behavior, Operator, Profile, load
from monitor.expect import Expect


def loaded(document: object) -> Profile:
    return load(json.dumps(document).encode())


def behavior(metric: str, operator: str, value: dict[str, Any], **more: object) -> dict[str, Any]:
    criteria = {"comparisonOperator": operator, "value": value} | more
    return {"name": "b", "metric": metric, "criteria": criteria}


def evaluator(metric: str, operator: str, value: dict[str, Any], **more: object) -> Evaluator:
    profile = loaded({"behaviors": [behavior(metric, operator, value, **more)]})
    assert len(profile.behaviors) == 1
    return Evaluator(profile)


def kinds(verdicts: list[Verdict]) -> list[str]:
    return [verdict.kind for verdict in verdicts]


def violates(judge: Evaluator, value: Value) -> bool:
    """Whether the first datapoint raises an alarm."""
    (name,) = judge.state
    return kinds(judge.observe({judge.state[name].behavior.metric: value}, 0.0)) == ["in-alarm"]


def test_an_expectation_written_for_aws_is_a_profile() -> None:
    (child_processes,) = expected("myapp", Expect(child_processes=0))
    profile = loaded({"securityProfileName": "p", "behaviors": [aws_form(child_processes)]})
    assert profile.behaviors[0].metric == "num_child_procs_myapp"
    assert violates(Evaluator(profile), 1.0)
    assert not violates(Evaluator(profile), 0.0)


@pytest.mark.parametrize(
    ("operator", "value", "normal", "violation"),
    [
        ("less-than", {"number": 2}, [1.9, -5, 1], [2, 3.0]),
        ("less-than-equals", {"number": 2}, [2, 1], [2.1, 3]),
        ("greater-than", {"number": 2}, [2.1, 3], [2, 1]),
        ("greater-than-equals", {"number": 2}, [2, 3], [1.9]),
        ("in-set", {"numbers": [1, 2]}, [(), (1,), (1.0, 2)], [(3,), (1, 3)]),
        ("not-in-set", {"numbers": [1, 2]}, [(), (3,)], [(1,), (3, 2)]),
        ("in-set", {"strings": ["a", "b"]}, [(), ("a",), ("b", "a")], [("c",), ("a", "c")]),
        ("not-in-set", {"strings": ["a", "b"]}, [(), ("c",)], [("a",), ("c", "b")]),
        ("in-set", {"strings": []}, [()], [("a",), (1,)]),
        (
            "in-cidr-set",
            {"cidrs": ["10.0.0.0/8", "192.168.1.1", "fd00::/8"]},
            [(), ("10.255.0.1",), ("192.168.1.1", "fdff::1"), ("::ffff:10.0.0.1",)],
            [("11.0.0.1",), ("10.0.0.1", "192.168.1.2"), ("fe80::1",), ("nonsense",)],
        ),
        ("not-in-cidr-set", {"cidrs": ["10.0.0.9/8"]}, [(), ("11.0.0.1", "::1")], [("10.0.0.1",), ("::1", "10.0.0.2")]),
        ("not-in-cidr-set", {"cidrs": ["0.0.0.0/0", "::/0"]}, [()], [("1.2.3.4",), ("::1",)]),
    ],
)
def test_an_operator_states_what_is_normal(
    operator: str, value: dict[str, Any], normal: list[Value], violation: list[Value]
) -> None:
    for conforming in normal:
        assert not violates(evaluator("m", operator, value), conforming), conforming
    for violating in violation:
        assert violates(evaluator("m", operator, value), violating), violating


@pytest.mark.parametrize("metric", ["aws:listening-tcp-ports", "aws:listening-udp-ports"])
def test_ports_are_within_or_without_their_set(metric: str) -> None:
    within = ("in-port-set", {"ports": [22, 443]})
    without = ("not-in-port-set", {"ports": [22, 443]})
    for ports, in_set, outside in (
        ((), True, True),
        ((22,), True, False),
        ((22, 23), False, False),
        ((23,), False, True),
    ):
        assert violates(evaluator(metric, *within), ports) is not in_set
        assert violates(evaluator(metric, *without), ports) is not outside


def test_every_operator_of_the_api_has_been_tried() -> None:
    assert set(get_args(Operator)) == {
        *("less-than", "less-than-equals", "greater-than", "greater-than-equals", "in-set", "not-in-set"),
        *("in-cidr-set", "not-in-cidr-set", "in-port-set", "not-in-port-set"),
    }


def test_a_metric_that_is_absent_is_no_datapoint() -> None:
    judge = evaluator("m", "less-than", {"number": 1}, consecutiveDatapointsToAlarm=2)
    assert judge.observe({"m": 5.0}, 0) == []
    assert judge.observe({"other": 5.0}, 1) == []
    assert kinds(judge.observe({"m": 5.0}, 2)) == ["in-alarm"]
    assert judge.observe({}, 3) == []
    assert [found.name for found in judge.alarms()] == ["b"]


@pytest.mark.parametrize(
    ("operator", "value", "carried", "why"),
    [
        ("less-than", {"number": 1}, (5.0,), "judges a number, the metric is a list"),
        ("in-set", {"numbers": [1]}, 5.0, "judges a list, the metric is a number"),
        ("in-set", {"numbers": [1]}, ("a",), "a list of numbers, the metric is one of text"),
        ("not-in-set", {"strings": ["a"]}, (1.0,), "a list of text, the metric is one of numbers"),
        ("in-cidr-set", {"cidrs": []}, (1.0,), "a list of text"),
    ],
)
def test_a_metric_of_another_type_is_no_datapoint_and_is_told(
    operator: str, value: dict[str, Any], carried: Value, why: str
) -> None:
    judge = evaluator("m", operator, value)
    assert judge.observe({"m": carried}, 0) == []
    assert why in judge.unfit["b"]
    judge.observe({"m": () if isinstance(carried, float) or operator == "in-cidr-set" else carried}, 1)
    fitting: Value = 0.0 if operator == "less-than" else ()
    judge.observe({"m": fitting}, 2)
    assert judge.unfit == {}


def test_an_alarm_needs_violations_in_a_row_and_its_end_conforming_datapoints_in_a_row() -> None:
    judge = evaluator(
        "m", "less-than-equals", {"number": 0}, consecutiveDatapointsToAlarm=3, consecutiveDatapointsToClear=2
    )
    said = []
    for at, value in enumerate([1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1]):
        said += [(at, verdict.kind, verdict.value, verdict.since_s) for verdict in judge.observe({"m": value}, at)]
    assert said == [(5, "in-alarm", 1, 3), (10, "alarm-cleared", 0, 3)]


def test_an_alarm_without_a_datapoint_for_more_than_two_days_is_invalidated_once() -> None:
    judge = evaluator("m", "less-than-equals", {"number": 0})
    judge.observe({"m": 7.0}, 1000)
    assert judge.expire(1000 + INVALID_AFTER_S) == []
    (verdict,) = judge.expire(1001 + INVALID_AFTER_S)
    assert (verdict.kind, verdict.value, verdict.since_s) == ("alarm-invalidated", 7.0, 1000)
    assert judge.expire(2000 + INVALID_AFTER_S) == []
    assert kinds(judge.observe({"m": 7.0}, 3000 + INVALID_AFTER_S)) == ["in-alarm"]


def test_a_datapoint_after_more_than_two_days_ends_the_old_alarm_before_it_begins_a_new_one() -> None:
    judge = evaluator("m", "less-than-equals", {"number": 0})
    judge.observe({"m": 7.0}, 0)
    assert kinds(judge.observe({"m": 7.0}, INVALID_AFTER_S + 1)) == ["alarm-invalidated", "in-alarm"]


def test_growth_is_added_up_over_the_duration_and_states_are_not() -> None:
    traffic = evaluator("aws:all-bytes-out", "less-than", {"count": 100}, durationSeconds=600)
    assert traffic.observe({"aws:all-bytes-out": 60}, 0) == []
    (verdict,) = traffic.observe({"aws:all-bytes-out": 60}, 300)
    assert (verdict.kind, verdict.value) == ("in-alarm", 120)
    assert kinds(traffic.observe({"aws:all-bytes-out": 30}, 600)) == ["alarm-cleared"], "0 is 600 s ago: outside"
    ports = evaluator("aws:num-listening-tcp-ports", "less-than", {"count": 100}, durationSeconds=600)
    assert ports.observe({"aws:num-listening-tcp-ports": 60}, 0) == []
    assert ports.observe({"aws:num-listening-tcp-ports": 60}, 1) == []


def test_too_little_is_no_violation_before_the_duration_has_passed() -> None:
    judge = evaluator("aws:all-packets-in", "greater-than", {"count": 100}, durationSeconds=600)
    for at, verdict in ((0, []), (300, []), (600, ["in-alarm"])):
        assert kinds(judge.observe({"aws:all-packets-in": 10}, at)) == verdict


def test_a_clock_set_back_leaves_no_traffic_of_the_future_in_the_window() -> None:
    judge = evaluator("aws:all-bytes-in", "less-than", {"count": 100}, durationSeconds=300)
    judge.observe({"aws:all-bytes-in": 90}, 5000)
    assert judge.observe({"aws:all-bytes-in": 90}, 1000) == []
    assert kinds(judge.observe({"aws:all-bytes-in": 90}, 1100)) == ["in-alarm"]


def test_a_storm_of_reports_does_not_make_a_window_grow() -> None:
    judge = evaluator("aws:all-bytes-in", "less-than", {"count": 10**9}, durationSeconds=300)
    for at in range(20_000):
        judge.observe({"aws:all-bytes-in": 1}, at / 50)
    assert len(judge.state["b"].points) <= SLOTS + 1
    assert sum(amount for _, amount in judge.state["b"].points) == pytest.approx(15_000, rel=0.02)


def test_an_alarm_survives_a_restart_and_a_change_of_its_behavior_does_not() -> None:
    before = evaluator(
        "aws:all-bytes-out", "less-than", {"count": 100}, durationSeconds=600, consecutiveDatapointsToClear=2
    )
    before.observe({"aws:all-bytes-out": 200}, 0)
    before.observe({"aws:all-bytes-out": 0}, 600)
    state = msgspec.json.decode(msgspec.json.encode(before.state), type=State)
    same = evaluator(
        "aws:all-bytes-out", "less-than", {"count": 100}, durationSeconds=600, consecutiveDatapointsToClear=2
    )
    assert same.restore(state) == []
    assert same.state == before.state
    (verdict,) = same.observe({"aws:all-bytes-out": 0}, 1200)
    assert (verdict.kind, verdict.since_s) == ("alarm-cleared", 0)
    other = evaluator(
        "aws:all-bytes-out", "less-than", {"count": 101}, durationSeconds=600, consecutiveDatapointsToClear=2
    )
    (gone,) = other.restore(state)
    assert (gone.kind, gone.behavior.number) == ("alarm-invalidated", 100)
    assert other.alarms() == []


class Naive:
    """The semantics written down again, with the whole history at hand."""

    def __init__(self, judged: Behavior) -> None:
        self.judged = judged
        self.history: list[tuple[float, Value, bool]] = []
        self.in_alarm = False
        self.run: list[bool] = []

    def conforms(self, value: Value, at_s: float) -> bool | None:
        """Whether a datapoint is normal; None: too early to say."""
        judged = self.judged
        if isinstance(value, tuple):
            texts = judged.texts
            if judged.operator.endswith("cidr-set"):
                inside = [
                    any(ipaddress.ip_address(str(member)) in ipaddress.ip_network(text) for text in texts)
                    for member in value
                ]
            else:
                inside = [member in (*texts, *judged.numbers) for member in value]
            return not any(inside) if "not-in" in judged.operator else False not in inside
        if judged.duration_s and judged.metric.startswith("aws:all-"):
            recent = [(at, old) for at, old, _ in self.history if at > at_s - judged.duration_s]
            value += sum(old for _, old in recent if not isinstance(old, tuple))
            first = min([at_s, *(at for at, _, _ in self.history)])
            if judged.operator.startswith("greater") and at_s - first < judged.duration_s:
                return None
        limit = judged.number or 0
        return {
            "less-than": value < limit,
            "less-than-equals": value <= limit,
            "greater-than": value > limit,
            "greater-than-equals": value >= limit,
        }[judged.operator]

    def observe(self, value: Value, at_s: float) -> list[str]:
        """The kinds of the verdicts."""
        said = []
        if self.in_alarm and at_s - self.history[-1][0] > 172_800:
            said.append("alarm-invalidated")
            self.in_alarm = False
            self.run = []
        conforms = self.conforms(value, at_s)
        self.history.append((at_s, value, bool(conforms)))
        if conforms is None:
            return said
        self.run.append(conforms)
        needed = self.judged.to_clear if self.in_alarm else self.judged.to_alarm
        last = self.run[-needed:]
        if len(last) == needed and set(last) == {self.in_alarm}:
            self.in_alarm = not self.in_alarm
            self.run = []
            said.append("in-alarm" if self.in_alarm else "alarm-cleared")
        return said


numbers = st.integers(0, 6)
addresses = st.sampled_from(["10.0.0.1", "10.1.0.1", "11.0.0.1", "::1", "fd00::1"])
scalar_operators = st.sampled_from(["less-than", "less-than-equals", "greater-than", "greater-than-equals"])
gaps_s = st.sampled_from([3, 60, 150, 299, 300, 301, 600, 3600, 172_800, 172_801])
setups = st.one_of(
    st.tuples(st.just("m"), scalar_operators, st.fixed_dictionaries({"number": numbers}), st.just(numbers)),
    st.tuples(
        st.just("aws:all-bytes-out"), scalar_operators, st.fixed_dictionaries({"count": numbers}), st.just(numbers)
    ),
    st.tuples(
        st.just("m"),
        st.sampled_from(["in-set", "not-in-set"]),
        st.fixed_dictionaries({"numbers": st.lists(numbers, max_size=3)}),
        st.just(st.lists(numbers, max_size=3).map(tuple)),
    ),
    st.tuples(
        st.just("m"),
        st.sampled_from(["in-cidr-set", "not-in-cidr-set"]),
        st.fixed_dictionaries({"cidrs": st.lists(st.sampled_from(["10.0.0.0/16", "10.0.0.0/8", "fd00::/8", "::1"]))}),
        st.just(st.lists(addresses, max_size=3).map(tuple)),
    ),
)


@settings(deadline=None, max_examples=400)
@given(st.data(), setups, st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 300, 600]))
def test_the_evaluator_agrees_with_a_naive_one_across_restarts(
    data: st.DataObject,
    setup: tuple[str, str, dict[str, Any], st.SearchStrategy[Value]],
    to_alarm: int,
    to_clear: int,
    duration_s: int | None,
) -> None:
    metric, operator, value, values = setup
    more: dict[str, object] = {"consecutiveDatapointsToAlarm": to_alarm, "consecutiveDatapointsToClear": to_clear}
    if duration_s and {"number", "count"} & value.keys():
        more["durationSeconds"] = duration_s
    judge = evaluator(metric, operator, value, **more)
    naive = Naive(judge.state["b"].behavior)
    at_s = 0
    for gap_s, datapoint, restart in data.draw(st.lists(st.tuples(gaps_s, values, st.booleans()), max_size=25)):
        at_s += gap_s
        assert kinds(judge.observe({metric: datapoint}, at_s)) == naive.observe(datapoint, at_s)
        if restart:
            state = msgspec.json.decode(msgspec.json.encode(judge.state), type=State)
            judge = evaluator(metric, operator, value, **more)
            assert judge.restore(state) == []
