"""With Detect: the API would take every part of the template, and it names everything that a device may report.

Owns the comparison with the API's own model and with the reports' own code. Refuses to know how a template is written.
"""

from __future__ import annotations

from typing import Any

import pytest

from monitor.cloud.names import reported
from monitor.detect.metrics import FIELDS
from monitor.detect.profile import CLOUD_SIDE, DEVICE_SIDE
from monitor.errors import ConfigInvalid
from tests.cloud.account import ACCOUNT, REGION, Account, faults, operations
from tests.cloud.configurations import EXPECTING, MYAPP, PROFILE, TEXTS, configured, made

CALLS = {
    "AWS::IoT::CustomMetric": "CreateCustomMetric",
    "AWS::IoT::MitigationAction": "CreateMitigationAction",
    "AWS::IoT::ThingGroup": "CreateThingGroup",
}
VALUES = {
    "number": {"less-than", "less-than-equals", "greater-than", "greater-than-equals"},
    "numbers": {"in-set", "not-in-set"},
    "strings": {"in-set", "not-in-set"},
    "cidrs": {"in-cidr-set", "not-in-cidr-set"},
}
KINDS = {"number": "number", "number-list": "numbers", "string-list": "strings", "ip-address-list": "cidrs"}
IN_ROLES = {"sns", "iot", "firehose", "sqs", "cloudwatch", "logs"}
both = pytest.mark.parametrize("profile", [None, PROFILE], ids=["no file", "file"])
each = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def account(text: str, profile: dict[str, Any] | None = None, **flags: Any) -> Account:  # noqa: ANN401 - as Wanted has
    """The account that has the template."""
    return Account(made(text, profile, **flags).document)


@each
@both
def test_the_api_would_take_every_part(text: str, profile: dict[str, Any] | None) -> None:
    of = account(text, profile)
    for kind, call in CALLS.items():
        for properties in of.of_type(kind):
            token = {"clientRequestToken": "a"} if call == "CreateCustomMetric" else {}
            assert faults(call, properties, token) == []
    profile_properties = dict(of.one("AWS::IoT::SecurityProfile"))
    targets = profile_properties.pop("TargetArns")
    assert faults("CreateSecurityProfile", profile_properties) == []
    assert targets
    for target in targets:
        name = profile_properties["SecurityProfileName"]
        asked = {"securityProfileTargetArn": target, "securityProfileName": name}
        assert faults("AttachSecurityProfile", {}, asked) == []
    assert faults("ValidateSecurityProfileBehaviors", {"Behaviors": profile_properties["Behaviors"]}) == []


@each
@both
def test_every_metric_that_can_be_reported_is_defined_and_kept(text: str, profile: dict[str, Any] | None) -> None:
    of = account(text, profile)
    defined = {one["MetricName"]: one["MetricType"] for one in of.of_type("AWS::IoT::CustomMetric")}
    assert defined == reported(configured(text))
    properties = of.one("AWS::IoT::SecurityProfile")
    judged = {one["Metric"] for one in properties["Behaviors"] if "MetricDimension" not in one}
    retained = [one["Metric"] for one in properties["AdditionalMetricsToRetainV2"]]
    assert {*judged, *retained} >= {*defined, *DEVICE_SIDE}
    assert len(set(retained)) == len(retained)
    assert judged.isdisjoint(retained)
    strange = {*judged, *retained} - {*defined, *DEVICE_SIDE, *CLOUD_SIDE}
    assert all(any(metric in note for note in made(text, profile).notes) for metric in strange)
    assert profile or not strange


@each
def test_every_behavior_compares_its_metric_with_a_value_of_its_type(text: str) -> None:
    of = account(text, PROFILE)
    defined = {one["MetricName"]: one["MetricType"] for one in of.of_type("AWS::IoT::CustomMetric")}
    names = [one["Name"] for one in of.one("AWS::IoT::SecurityProfile")["Behaviors"]]
    assert len(set(names)) == len(names)
    for behavior in of.one("AWS::IoT::SecurityProfile")["Behaviors"]:
        value = behavior["Criteria"].get("Value")
        if value is None or behavior["Metric"] not in defined:
            continue
        ((key, _),) = value.items()
        assert key.lower() == KINDS[defined[behavior["Metric"]]]
        assert behavior["Criteria"]["ComparisonOperator"] in VALUES[key.lower()]


def test_a_fully_watched_application_has_every_metric_of_the_table() -> None:
    names = reported(configured(EXPECTING + "[capture]\npackets = true\n[report]\ncpu_usage = true\n"))
    assert set(names) == {f"{what}_myapp" for what in FIELDS} | {"events_lost", "cpu_usage"}
    assert names["destination_ips_myapp"] == "ip-address-list"
    assert names["child_exes_myapp"] == "string-list"


def test_what_is_switched_off_is_not_defined() -> None:
    names = reported(configured(MYAPP + "[capture]\nnetwork = false\n"))
    assert "child_procs_alive_myapp" in names
    assert not {"bytes_in_myapp", "destination_ips_myapp", "wire_bytes_in_myapp", "enforced_myapp", "cpu_usage"} & set(
        names
    )


def behaviors(text: str, profile: dict[str, Any] | None = None) -> dict[str, Any]:
    """Behaviors of the profile by name."""
    return {one["Name"]: one for one in account(text, profile).one("AWS::IoT::SecurityProfile")["Behaviors"]}


def test_no_child_at_all_is_judged_by_the_metric_that_cannot_blink() -> None:
    found = behaviors(TEXTS["no child"])["child_processes_myapp"]
    assert found["Metric"] == "num_child_procs_myapp"
    assert found["Criteria"]["Value"] == {"Number": 0}


def test_a_limit_on_those_alive_at_once_is_judged_by_their_peak() -> None:
    """Three children one after the other are three of a window, and never more than one at once."""
    found = behaviors(EXPECTING)["child_processes_myapp"]
    assert found["Metric"] == "child_procs_peak_myapp"
    assert found["Criteria"]["Value"] == {"Number": 2}


def test_texts_are_compared_as_reports_write_them() -> None:
    found = behaviors(EXPECTING, PROFILE)
    assert found["executables_myapp"]["Criteria"]["Value"] == {"Strings": ["/opt/a_b/__"]}
    assert found["images"]["Criteria"]["Value"] == {"Strings": ["/bin/g__", "/bin/sh"]}


def test_what_only_the_service_judges_stays_in_the_profile() -> None:
    assert {"learnt", "like-the-others", "small"} <= set(behaviors(MYAPP, PROFILE))


def test_an_expectation_without_a_metric_is_said() -> None:
    made_so = made(TEXTS["no network"])
    assert [note for note in made_so.notes if "destinations_myapp" in note]
    assert behaviors(TEXTS["no network"]) == {}


def test_a_metric_of_somebody_else_is_said() -> None:
    written = {"behaviors": [{"name": "b", "metric": "other", "criteria": PROFILE["behaviors"][0]["criteria"]}]}
    assert [note for note in made(MYAPP, written).notes if "other" in note]


def test_the_file_of_the_profile_is_right_where_both_name_a_behavior() -> None:
    written = {**PROFILE["behaviors"][5], "name": "child_processes_myapp"}
    made_so = made(EXPECTING, {"behaviors": [written]})
    assert behaviors(EXPECTING, {"behaviors": [written]})["child_processes_myapp"]["Metric"] == "bytes_out_myapp"
    assert [note for note in made_so.notes if "child_processes_myapp" in note]


@pytest.mark.parametrize(
    ("text", "profile", "said"),
    [
        (MYAPP, {"behaviors": [{"name": "two words"}]}, "spaces"),
        (
            "".join(f'[[watch]]\nname = "app{n}"\npid = 1\n' for n in range(24)) + "[capture]\npackets = true\n",
            None,
            "500",
        ),
        (MYAPP + EXPECTING.replace("myapp", "other"), {"behaviors": [{"name": f"b{n}"} for n in range(97)]}, "100"),
        (
            "".join(
                f'[[watch]]\nname = "app{n}"\npid = 1\nexpect = {{ listening_ports = {list(range(1, 257))} }}\n'
                for n in range(4)
            ),
            None,
            "1000",
        ),
    ],
    ids=["name", "resources", "behaviors", "values"],
)
def test_what_aws_would_refuse_is_refused(text: str, profile: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        made(text, profile)


def test_more_metrics_than_an_account_has_are_said() -> None:
    assert [note for note in made(TEXTS["many watches"]).notes if "100" in note]


def test_the_profile_is_attached_to_what_was_asked() -> None:
    group = f"arn:aws:iot:{REGION}:{ACCOUNT}:thinggroup/cameras"
    of = account(MYAPP, targets=("all", group))
    assert of.one("AWS::IoT::SecurityProfile")["TargetArns"] == [f"arn:aws:iot:{REGION}:{ACCOUNT}:all/things", group]


@pytest.mark.parametrize("target", ["", "mything1", "arn:aws:iot:eu-west-1:123456789012:thing/a", "arn:aws:sns:x:1:y"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(ConfigInvalid, match="--target"):
        made(MYAPP, targets=(target,))


def test_metrics_are_exported_all_or_none() -> None:
    exporting = account(EXPECTING, PROFILE).one("AWS::IoT::SecurityProfile")
    every = [*exporting["Behaviors"], *exporting["AdditionalMetricsToRetainV2"]]
    assert exporting["MetricsExportConfig"]["MqttTopic"] == "kinwatch/metrics"
    assert all(one["ExportMetric"] for one in every)
    of = account(EXPECTING, PROFILE, export_topic="")
    assert "MetricsExportConfig" not in of.one("AWS::IoT::SecurityProfile")
    assert "ExportMetric" not in str(of.template)
    assert "ExportRole" not in of.resources


@pytest.mark.parametrize("topic", ["$aws/things/a", "a/+/b", "a/#", "a b", "${x}"])
def test_what_is_no_topic_to_export_to_is_refused(topic: str) -> None:
    with pytest.raises(ConfigInvalid, match="--export-topic"):
        made(MYAPP, export_topic=topic)


def test_the_quarantine_is_the_one_action_that_alarms_of_detect_know() -> None:
    of = account(EXPECTING)
    action = of.one("AWS::IoT::MitigationAction")
    assert action["ActionParams"]["AddThingsToThingGroupParams"]["ThingGroupNames"] == ["kinwatch-quarantine"]
    assert of.one("AWS::IoT::ThingGroup")["ThingGroupName"] == "kinwatch-quarantine"
    allowed = _actions(of.filled["QuarantineRole"])
    assert allowed == {"iot:ListPrincipalThings", "iot:AddThingToThingGroup"}


def _actions(properties: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for policy in properties["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            found |= {actions} if isinstance(actions, str) else set(actions)
    return found


@pytest.mark.parametrize("flags", [{}, {"detect": False}, {"detect": False, "quarantine": ("all",)}])
def test_roles_name_actions_that_there_are(flags: dict[str, Any]) -> None:
    """Of S3 the names of actions are not those of the calls."""
    of = account(TEXTS["publishing"], **flags)
    for properties in of.of_type("AWS::IAM::Role"):
        for action in _actions(properties):
            space, name = action.split(":")
            assert space in IN_ROLES | {"s3"}
            calls = operations(space) | (operations("iot-data") if space == "iot" else set())
            assert space == "s3" or name in calls, action


def test_logical_ids_are_short_letters_and_digits() -> None:
    for text in TEXTS.values():
        assert all(name.isascii() and name.isalnum() and len(name) <= 255 for name in account(text).resources)


def test_a_configuration_has_one_text() -> None:
    assert made(EXPECTING, PROFILE) == made(EXPECTING, PROFILE)


def test_the_judge_of_these_tests_sees_what_is_wrong() -> None:
    good = account(MYAPP).of_type("AWS::IoT::CustomMetric")[0]
    token = {"clientRequestToken": "a"}
    assert faults("CreateCustomMetric", good, token) == []
    for change in ({"MetricName": "bad name!"}, {"MetricType": "text"}, {"MetricName": "a" * 129}, {"Colour": 1}):
        assert faults("CreateCustomMetric", good | change, token)
    assert faults("CreateCustomMetric", {"MetricName": "a"}, token)
    bad = {"Name": "b", "Criteria": {"ConsecutiveDatapointsToAlarm": 11}}
    assert faults("ValidateSecurityProfileBehaviors", {"Behaviors": [bad]})
    assert faults("CreateSecurityProfile", {"AlertTargets": {"EMAIL": {}}, "SecurityProfileName": "a"})
