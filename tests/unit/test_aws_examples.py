"""Every behavior that AWS's developer guide gives as an example, judged by the datapoints of a device.

The guide's pages on device-side and on custom metrics (detect-device-side-metrics, dd-detect-custom-metrics), names as
they are printed there. Owns the table. Refuses to know how a behavior is judged.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from monitor.detect.evaluator import INVALID_AFTER_S, Evaluator
from monitor.detect.profile import DEVICE_SIDE, load

if TYPE_CHECKING:
    from monitor.detect.compare import Value

WINDOW_S: Final = 300
ONCE: Final = {"consecutiveDatapointsToAlarm": 1, "consecutiveDatapointsToClear": 1}
IN, OUT, GONE = "in-alarm", "alarm-cleared", "alarm-invalidated"


def behavior(name: str, metric: str, operator: str, value: dict[str, Any], **more: int) -> dict[str, Any]:
    """As the guide prints it."""
    criteria = {"comparisonOperator": operator, "value": value, **more}
    return {"name": name, "metric": metric, "criteria": criteria, "suppressAlerts": True}


def most(name: str, metric: str, count: int, duration_s: int | None = WINDOW_S) -> dict[str, Any]:
    """At most so many."""
    duration = {} if duration_s is None else {"durationSeconds": duration_s}
    return behavior(name, metric, "less-than-equals", {"count": count}, **ONCE, **duration)


# Behavior; the datapoints of windows of 300 s, None: no report; the verdict after each, "" for none.
JUDGED: Final[tuple[tuple[dict[str, Any], tuple[tuple[Value | None, str], ...]], ...]] = (
    (
        most("TCP outbound traffic", "aws:all-bytes-out", 4096),
        ((0, ""), (4096, ""), (4097, IN), (5000, ""), (None, ""), (4096, OUT), (9000, IN), (0, OUT)),
    ),
    (most("TCP inbound traffic", "aws:all-bytes-in", 4096), ((4097, IN), (4096, OUT), (4096, ""))),
    (most("TCP outbound traffic", "aws:all-packets-out", 100), ((100, ""), (101, IN), (101, ""), (0, OUT))),
    (most("TCP inbound traffic", "aws:all-packets-in", 100), ((101, IN), (1, OUT), (100, ""))),
    (most("Max TCP Ports", "aws:num-listening-tcp-ports", 5), ((5, ""), (6, IN), (7, ""), (5, OUT))),
    (most("Max UDP Ports", "aws:num-listening-udp-ports", 5), ((0, ""), (6, IN), (0, OUT))),
    (
        most("TCP Connection Count", "aws:num-established-tcp-connections", 3, None),
        ((3, ""), (4, IN), (None, ""), (3, OUT)),
    ),
    (
        behavior("Listening TCP Ports", "aws:listening-tcp-ports", "in-port-set", {"ports": [443, 80]}),
        (((443,), ""), ((80, 443), ""), ((22, 443), IN), ((22,), ""), ((), OUT), ((8080,), IN), ((80,), OUT)),
    ),
    (
        behavior("Listening UDP Ports", "aws:listening-udp-ports", "in-port-set", {"ports": [1025, 2000]}),
        (((), ""), ((1026,), IN), ((1025, 2000), OUT)),
    ),
    (  # printed for the destinations, with the metric of the cloud; this is what it says of a device
        behavior(
            "Denied source IPs",
            "aws:destination-ip-addresses",
            "not-in-cidr-set",
            {"cidrs": ["12.8.0.0/16", "15.102.16.0/24"]},
        ),
        (
            (("12.9.0.1", "2001:db8::1"), ""),
            (("12.9.0.1", "12.8.255.255"), IN),
            (("15.102.16.7",), ""),
            (("15.102.17.7",), OUT),
            (("::ffff:15.102.16.7",), IN),
            ((), OUT),
        ),
    ),
    (
        behavior(
            "great-than-75",
            "batteryPercentage",
            "greater-than",
            {"number": 75},
            consecutiveDatapointsToAlarm=5,
            consecutiveDatapointsToClear=1,
        ),
        (
            *((75, ""), (80, ""), (70, ""), (70, ""), (75.0, ""), (None, ""), (10, "")),
            *((74.9, IN), (75, ""), (75.1, OUT), (75, "")),
        ),
    ),
)

LEARNT: Final = {**ONCE, "mlDetectionConfig": {"confidenceLevel": "HIGH"}}


def ranked(statistic: str, duration_s: int) -> dict[str, Any]:
    """Criteria of a percentile."""
    threshold = {"statisticalThreshold": {"statistic": statistic}, "durationSeconds": duration_s}
    return {"comparisonOperator": "less-than-equals", **threshold, **ONCE}


ELSEWHERE: Final = (
    *(
        (name, metric, ranked(statistic, duration_s), "all devices")
        for name, metric, statistic, duration_s in (
            ("TCP outbound traffic", "aws:all-bytes-out", "p50", 900),
            ("TCP inbound traffic", "aws:all-bytes-in", "p90", 300),
            ("Max TCP Ports", "aws:num-listening-tcp-ports", "p50", 300),
            ("Max UDP Ports", "aws:num-listening-udp-ports", "p50", 300),
            ("TCP outbound traffic", "aws:all-packets-out", "p90", 300),
            ("TCP inbound traffic", "aws:all-packets-in", "p90", 300),
            ("TCP Connection Count", "aws:num-established-tcp-connections", "p90", 900),
        )
    ),
    *(
        (name, metric, LEARNT, "ML Detect")
        for name, metric in (
            ("Outbound traffic ML behavior", "aws:all-bytes-out"),
            ("Inbound traffic ML behavior", "aws:all-bytes-in"),
            ("Max TCP Port ML behavior", "aws:num-listening-tcp-ports"),
            ("Max UPD Port ML behavior", "aws:num-listening-tcp-ports"),
            ("Outbound sent ML behavior", "aws:all-packets-out"),
            ("Inbound sent ML behavior", "aws:all-packets-in"),
            ("Connection count ML behavior", "aws:num-established-tcp-connections"),
        )
    ),
    (
        "cellularBandwidth",
        "aws:message-byte-size",
        {"comparisonOperator": "less-than", "value": {"count": 128}} | ONCE,
        "measured in the cloud",
    ),
    (
        "Denied source IPs",
        "aws:source-ip-address",
        {"comparisonOperator": "not-in-cidr-set", "value": {"cidrs": ["12.8.0.0/16", "15.102.16.0/24"]}},
        "measured in the cloud",
    ),
)
"""Name, metric, criteria, why one device cannot judge it."""


@pytest.mark.parametrize(("printed", "course"), JUDGED, ids=[printed["metric"] for printed, _ in JUDGED])
def test_an_example_of_the_guide_alarms_and_clears(
    printed: dict[str, Any], course: tuple[tuple[Value | None, str], ...]
) -> None:
    profile = load(json.dumps({"behaviors": [printed]}).encode())
    (judged,) = profile.behaviors
    assert (judged.name, judged.suppressed) == (printed["name"], True)
    judge = Evaluator(profile)
    at_s = 0
    for number, (value, said) in enumerate(course):
        at_s += WINDOW_S
        verdicts = judge.observe({} if value is None else {judged.metric: value}, at_s)
        assert [verdict.kind for verdict in verdicts] == [said] * bool(said), f"datapoint {number}, {value}"
    in_alarm = bool(judge.alarms())
    verdicts = judge.observe({}, at_s + INVALID_AFTER_S + 1)
    assert [verdict.kind for verdict in verdicts] == [GONE] * in_alarm, "two days without a datapoint"


def test_every_device_side_metric_has_its_example() -> None:
    assert {printed["metric"] for printed, _ in JUDGED} >= DEVICE_SIDE


def test_examples_that_one_device_cannot_judge_are_named_with_the_reason() -> None:
    for name, metric, criteria, why in ELSEWHERE:
        profile = load(json.dumps({"behaviors": [{"name": name, "metric": metric, "criteria": criteria}]}).encode())
        assert profile.behaviors == ()
        assert [found for found, _ in profile.elsewhere] == [name]
        assert why in profile.elsewhere[0][1]


def test_a_window_that_was_cut_short_is_not_asked_for_more_than_there_was() -> None:
    entries = [
        behavior("least", "m", "greater-than-equals", {"number": 10}),
        behavior("most", "m", "less-than", {"number": 3}),
    ]
    judge = Evaluator(load(json.dumps({"behaviors": entries}).encode()))
    (verdict,) = judge.observe({"m": 5}, 0, whole=False)
    assert verdict.behavior.name == "most"
    assert [verdict.behavior.name for verdict in judge.observe({"m": 5}, 1)] == ["least"]
