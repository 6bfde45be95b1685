"""A security profile is read as the API writes it; what is wrong in it is refused by its place."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.detect.evaluator import Evaluator
from monitor.detect.profile import CLOUD_SIDE, DEVICE_SIDE, Profile, load
from monitor.errors import ConfigInvalid

MISSING = object()
DESCRIBED: dict[str, Any] = {
    "securityProfileName": "kinwatch",
    "securityProfileArn": "arn:aws:iot:eu-west-1:123456789012:securityprofile/kinwatch",
    "behaviors": [
        {
            "name": "no-descendants",
            "metric": "num_child_procs_myapp",
            "criteria": {
                "comparisonOperator": "less-than-equals",
                "value": {"number": 0.0},
                "consecutiveDatapointsToAlarm": 1,
                "consecutiveDatapointsToClear": 2,
            },
            "suppressAlerts": True,
        },
        {
            "name": "traffic",
            "metric": "aws:all-bytes-out",
            "criteria": {"comparisonOperator": "less-than", "value": {"count": 4096}, "durationSeconds": 600},
            "exportMetric": False,
        },
        {
            "name": "ports",
            "metric": "aws:listening-tcp-ports",
            "criteria": {"comparisonOperator": "in-port-set", "value": {"ports": [22, 443]}},
        },
        {
            "name": "peers",
            "metric": "aws:destination-ip-addresses",
            "criteria": {"comparisonOperator": "in-cidr-set", "value": {"cidrs": ["10.0.0.0/8", "fd00::/8"]}},
        },
        {
            "name": "programs",
            "metric": "child_exes_myapp",
            "criteria": {"comparisonOperator": "in-set", "value": {"strings": ["/bin/cat"]}},
        },
        {
            "name": "messages",
            "metric": "aws:num-messages-sent",
            "metricDimension": {"dimensionName": "topics", "operator": "NOT_IN"},
            "criteria": {"comparisonOperator": "less-than", "value": {"count": 10}, "durationSeconds": 300},
        },
    ],
    "alertTargets": {"SNS": {"alertTargetArn": "arn:aws:sns:x", "roleArn": "arn:aws:iam::x"}},
    "additionalMetricsToRetainV2": [{"metric": "aws:num-disconnects"}],
    "version": 3,
    "creationDate": 1700000000.123,
    "lastModifiedDate": "2026-01-01T00:00:00.000Z",
}


def loaded(document: object) -> Profile:
    return load(json.dumps(document).encode())


def changed(path: str, value: object) -> dict[str, Any]:
    """DESCRIBED with the value at a dotted path replaced (MISSING: taken away)."""
    made = copy.deepcopy(DESCRIBED)
    *way, last = path.split(".")
    node: Any = made
    for part in way:
        node = node[int(part) if isinstance(node, list) else part]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return made


def behavior(metric: str, operator: str, value: dict[str, Any], **more: object) -> dict[str, Any]:
    criteria = {"comparisonOperator": operator, "value": value} | more
    return {"name": "b", "metric": metric, "criteria": criteria}


def test_what_describe_security_profile_prints_is_understood() -> None:
    profile = loaded(DESCRIBED)
    assert profile.name == "kinwatch"
    assert [found.name for found in profile.behaviors] == ["no-descendants", "traffic", "ports", "peers", "programs"]
    first, traffic, *_ = profile.behaviors
    assert (first.number, first.to_alarm, first.to_clear, first.suppressed) == (0, 1, 2, True)
    assert (traffic.number, traffic.duration_s, traffic.to_alarm, traffic.to_clear) == (4096, 600, 1, 1)
    assert profile.elsewhere == (("messages", "aws:num-messages-sent is measured in the cloud"),)


def test_what_is_normal_is_said_in_words_and_in_the_form_of_the_api() -> None:
    profile = loaded(DESCRIBED)
    words = ["<= 0", "< 4096", "in 22, 443", "in 10.0.0.0/8, fd00::/8", "in /bin/cat"]
    assert [found.normal() for found in profile.behaviors] == words
    for found, entry in zip(profile.behaviors, DESCRIBED["behaviors"], strict=False):
        written = json.loads(msgspec.json.encode(found.criteria()))
        assert written["value"] == entry["criteria"]["value"]
        assert written["comparisonOperator"] == entry["criteria"]["comparisonOperator"]
    (outside,) = loaded({"behaviors": [behavior("ports_x", "not-in-set", {"numbers": [22.0, 1.5]})]}).behaviors
    assert outside.normal() == "not in 22, 1.5"


def test_what_one_device_cannot_judge_is_named_with_its_reason() -> None:
    ranked = {"comparisonOperator": "less-than", "statisticalThreshold": {"statistic": "p99"}, "durationSeconds": 900}
    learnt = {"consecutiveDatapointsToAlarm": 3, "mlDetectionConfig": {"confidenceLevel": "HIGH"}}
    narrowed = {"metricDimension": {"dimensionName": "d"}}
    entries = [
        {"name": "ranked", "metric": "aws:all-bytes-out", "criteria": ranked},
        {"name": "learnt", "metric": "cpu", "criteria": learnt},
        behavior("aws:num-listening-tcp-ports", "less-than", {"count": 1}) | narrowed | {"name": "narrowed"},
        behavior("aws:tomorrow", "less-than", {"count": 1}) | {"name": "newer"},
        {"name": "kept", "metric": "cpu"},
        {"name": "empty"},
    ]
    profile = loaded({"behaviors": entries})
    assert profile.behaviors == ()
    reasons = dict(profile.elsewhere)
    assert list(reasons) == ["ranked", "learnt", "narrowed", "newer", "kept", "empty"]
    for name, word in zip(reasons, ("percentile", "ML", "dimension", "tomorrow", "criteria", "metric"), strict=True):
        assert word in reasons[name]


@pytest.mark.parametrize("metric", sorted(CLOUD_SIDE))
def test_a_metric_of_the_cloud_is_judged_in_the_cloud(metric: str) -> None:
    list_like = metric == "aws:source-ip-address"
    value: dict[str, Any] = {"cidrs": ["10.0.0.0/8"]} if list_like else {"count": 1}
    profile = loaded({"behaviors": [behavior(metric, "in-cidr-set" if list_like else "less-than", value)]})
    assert [name for name, _ in profile.elsewhere] == ["b"]


FIRST = "behaviors.0"
CRITERIA = f"{FIRST}.criteria"


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("behaviors", MISSING, "'behaviors'"),
        ("behaviors", {}, "a list, found an object"),
        ("behaviors", [1], r"behaviors\[0\]: expected an object"),
        ("securityProfileName", "", "securityProfileName"),
        ("securityProfileName", "a b", "securityProfileName"),
        (f"{FIRST}.name", MISSING, r"behaviors\[0\]: expected the key 'name'"),
        (f"{FIRST}.name", " a", r"behaviors\[0\].name"),
        (f"{FIRST}.name", "a ", r"behaviors\[0\].name"),
        (f"{FIRST}.name", "a\tb", r"behaviors\[0\].name"),
        (f"{FIRST}.name", "", r"behaviors\[0\].name"),
        (f"{FIRST}.name", "a" * 129, r"behaviors\[0\].name"),
        (f"{FIRST}.name", "ports", r"behaviors\[2\].name: 'ports'"),
        (f"{FIRST}.metric", None, r"behaviors\[0\].metric: .*nothing"),
        (f"{FIRST}.metric", "a b", r"behaviors\[0\].metric"),
        (f"{FIRST}.metricDimension", {"dimensionName": "d"}, "custom metric has no dimensions"),
        ("behaviors.5.metricDimension.operator", "OUT", r"behaviors\[5\].metricDimension.operator: .*IN or NOT_IN"),
        (f"{FIRST}.suppressAlerts", "yes", r"behaviors\[0\].suppressAlerts: expected true or false"),
        (f"{FIRST}.exportMetric", 1, r"behaviors\[0\].exportMetric"),
        (f"{FIRST}.criterion", {}, r"behaviors\[0\]: unknown key 'criterion'"),
        (CRITERIA, [], r"behaviors\[0\].criteria: expected an object"),
        (CRITERIA, {}, r"behaviors\[0\].criteria: expected one of .* none"),
        (f"{CRITERIA}.durationSecond", 300, "unknown key 'durationSecond'"),
        (f"{CRITERIA}.comparisonOperator", MISSING, "comparisonOperator: .*found nothing"),
        (f"{CRITERIA}.comparisonOperator", "at-most", "comparisonOperator: .*'at-most'"),
        (f"{CRITERIA}.comparisonOperator", "in-set", "exactly one of numbers or strings, found number"),
        (f"{CRITERIA}.comparisonOperator", "in-port-set", "comparisonOperator: 'num_child_procs_myapp' goes with"),
        (f"{CRITERIA}.value", {}, "found none"),
        (f"{CRITERIA}.value", {"count": 1}, "exactly one of number, found count"),
        (f"{CRITERIA}.value", {"number": 1, "numbers": []}, "found number, numbers"),
        (f"{CRITERIA}.value.number", "1", "value.number: expected a number, found '1'"),
        (f"{CRITERIA}.value.number", True, "value.number"),
        (f"{CRITERIA}.value.number", 10**400, "value.number: expected a finite"),
        (f"{CRITERIA}.durationSeconds", 7, "durationSeconds: .*300, 600, 900, 1800 or 3600, found 7"),
        (f"{CRITERIA}.consecutiveDatapointsToAlarm", 0, "consecutiveDatapointsToAlarm: .*1 to 10"),
        (f"{CRITERIA}.consecutiveDatapointsToAlarm", 11, "consecutiveDatapointsToAlarm"),
        (f"{CRITERIA}.consecutiveDatapointsToClear", 1.0, "consecutiveDatapointsToClear"),
        (f"{CRITERIA}.statisticalThreshold", {"statistic": "p50"}, "found value and statisticalThreshold"),
        (f"{CRITERIA}.mlDetectionConfig", {"confidenceLevel": "LOW"}, "found value and mlDetectionConfig"),
        ("behaviors.1.criteria.value", {"number": 4096}, r"behaviors\[1\].criteria.value: .*exactly one of count"),
        ("behaviors.1.criteria.value.count", -1, "value.count"),
        ("behaviors.1.criteria.value.count", 1.5, "value.count"),
        ("behaviors.1.criteria.value.count", 2**63, "value.count"),
        ("behaviors.2.criteria.comparisonOperator", "in-set", "'aws:listening-tcp-ports' goes with in-port-set or"),
        ("behaviors.2.criteria.value.ports", 22, "value.ports: expected a list"),
        ("behaviors.2.criteria.value.ports", [22, 65536], r"value.ports\[1\]: .*0 to 65535"),
        ("behaviors.2.criteria.durationSeconds", 300, "durationSeconds goes with numbers only"),
        ("behaviors.3.criteria.comparisonOperator", "less-than", "in-cidr-set or not-in-cidr-set"),
        ("behaviors.3.criteria.value.cidrs", ["10.0.0.0/33"], r"value.cidrs\[0\]"),
        ("behaviors.3.criteria.value.cidrs", ["10.0.0.0/255.0.0.0"], r"value.cidrs\[0\]"),
        ("behaviors.3.criteria.value.cidrs", ["fe80::1%lo"], r"value.cidrs\[0\]"),
        ("behaviors.4.criteria.value.strings", [1], r"value.strings\[0\]"),
        ("behaviors.2.criteria.value.ports", list(range(1000)), "at most 1000 values .* 1006"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_place(path: str, value: object, where: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^security profile: .*{where}|^security profile: {where}"):
        loaded(changed(path, value))


def test_a_profile_has_at_most_a_hundred_behaviors() -> None:
    entries = [behavior("n", "less-than", {"number": 1}) | {"name": f"b{index}"} for index in range(101)]
    assert len(loaded({"behaviors": entries[:100]}).behaviors) == 100
    with pytest.raises(ConfigInvalid, match="at most 100, found 101"):
        loaded({"behaviors": entries})


def test_the_spelling_of_cloudformation_is_told_from_that_of_the_api() -> None:
    with pytest.raises(ConfigInvalid, match="CloudFormation"):
        loaded({"Behaviors": []})


@pytest.mark.parametrize("data", [b"", b"{", b"behaviors:", b"\xff\xfe{\x00", b'"\xff"', b"[" * 100_000])
def test_what_is_no_json_is_refused_with_the_name_of_the_file(data: bytes) -> None:
    with pytest.raises(ConfigInvalid, match=r"^p\.json: this is not JSON"):
        load(data, "p.json")


json_tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "value", "x"]), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            *("behaviors", f"{FIRST}.metric", CRITERIA, f"{CRITERIA}.value", "behaviors.3.criteria.value.cidrs"),
            *(f"{CRITERIA}.value.number", "behaviors.2.criteria.value.ports", "behaviors.1.criteria.durationSeconds"),
        ]
    ),
    json_tree,
)
def test_a_wrong_part_raises_nothing_but_a_refusal(path: str, value: object) -> None:
    try:
        Evaluator(loaded(changed(path, value)))
    except ConfigInvalid:
        return


def test_the_metrics_of_the_guide_are_all_known() -> None:
    assert len(DEVICE_SIDE) == 10
    assert len(CLOUD_SIDE) == 8
