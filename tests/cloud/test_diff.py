"""`kinwatch cloud diff`: what apply would change, and what somebody changed by hand; nothing is changed by looking.

Owns the comparison of templates and the conversations that read. Refuses to know how plans are made.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from monitor import cli
from monitor.cloud.compare import changes
from monitor.cloud.words import lines
from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.configurations import EXPECTING, PROFILE, TEXTS, made
from tests.cloud.conversation import STACK, WHEN

if TYPE_CHECKING:
    import pytest

    from tests.cloud.conversation import Conversation

DIFF = ("cloud", "diff", "--watch", "myapp", "--expect", "child_processes=0")
WANTED = made(TEXTS["no child"]).document
READING = {
    *("DescribeStacks", "GetTemplate", "DetectStackDrift", "DescribeStackDriftDetectionStatus"),
    "DescribeStackResourceDrifts",
}


def deployed(
    talk: Conversation,
    document: Any,  # noqa: ANN401 - what JSON has
    status: str = "CREATE_COMPLETE",
    **more: Any,  # noqa: ANN401 - as of stack
) -> None:
    """The stack has this template."""
    talk.stack(status, name="kinwatch", **more)
    body = {"TemplateBody": json.dumps(document)}
    talk.answer("cloudformation", "get_template", body, {"StackName": STACK, "TemplateStage": "Original"})


def drifted(talk: Conversation, *found: dict[str, Any], status: str = "DETECTION_COMPLETE") -> None:
    """Drift detection finds this."""
    asked = {"StackDriftDetectionId": "d1"}
    talk.answer("cloudformation", "detect_stack_drift", asked, {"StackName": STACK})
    state = {"StackId": STACK, "StackDriftDetectionId": "d1", "Timestamp": WHEN}
    running = state | {"DetectionStatus": "DETECTION_IN_PROGRESS"}
    talk.answer("cloudformation", "describe_stack_drift_detection_status", running, asked)
    ended = state | {"DetectionStatus": status, "DetectionStatusReason": "role not readable"}
    talk.answer("cloudformation", "describe_stack_drift_detection_status", ended, asked)
    filters = {"StackName": STACK, "StackResourceDriftStatusFilters": ["MODIFIED", "DELETED"]}
    every = [one | {"StackId": STACK, "Timestamp": WHEN} for one in found]
    half = len(every) // 2
    first = {"StackResourceDrifts": every[:half], "NextToken": "more"}
    talk.answer("cloudformation", "describe_stack_resource_drifts", first, filters)
    rest = {"StackResourceDrifts": every[half:]}
    talk.answer("cloudformation", "describe_stack_resource_drifts", rest, filters | {"NextToken": "more"})


def test_nothing_differs_after_an_apply(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    deployed(talk, WANTED)
    drifted(talk)
    assert cli.main(DIFF) == 0
    assert capsys.readouterr().out == f"stack kinwatch in {REGION}: nothing differs\n"
    assert set(talk.operations()) == READING


def test_a_new_expectation_is_a_difference_of_one_behavior(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(talk, made(TEXTS["no child"].replace("child_processes = 0", "child_processes = 7")).document)
    assert cli.main([*DIFF, "--no-drift"]) == 1
    out = capsys.readouterr().out
    assert "Behaviors.child_processes_myapp.Criteria.Value.Number: 7 -> 0" in out
    assert "Behaviors.child_processes_myapp.Metric: child_procs_peak_myapp -> num_child_procs_myapp" in out
    assert "1 to be changed" in out
    assert talk.operations() == ["DescribeStacks", "GetTemplate"]


def test_a_stack_that_is_not_there_is_all_to_be_made(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack(None)
    assert cli.main(DIFF) == 1
    out = capsys.readouterr().out
    assert "is not there: apply makes it" in out
    assert f"{len(WANTED['Resources'])} to be made" in out
    assert "subscription       AlarmSubscription\n        if HasAlarmEmail" in out


def test_what_somebody_changed_by_hand_is_told_with_the_way_back(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(talk, WANTED)
    behaviors = {
        "PropertyPath": "/Behaviors/0/Criteria/Value/Number",
        "ExpectedValue": "0",
        "ActualValue": "50",
        "DifferenceType": "NOT_EQUAL",
    }
    added = {"PropertyPath": "/Tags/0", "ExpectedValue": "null", "ActualValue": '{"Key":"a"}', "DifferenceType": "ADD"}
    drifted(
        talk,
        {
            "LogicalResourceId": "SecurityProfile",
            "ResourceType": "AWS::IoT::SecurityProfile",
            "StackResourceDriftStatus": "MODIFIED",
            "PropertyDifferences": [behaviors, added],
        },
        {
            "LogicalResourceId": "QuarantineGroup",
            "ResourceType": "AWS::IoT::ThingGroup",
            "StackResourceDriftStatus": "DELETED",
        },
    )
    assert cli.main(DIFF) == 1
    out = capsys.readouterr().out
    assert "--revert-drift" in out
    assert "security profile  kinwatch\n        Behaviors.0.Criteria.Value.Number: 50 -> 0" in out
    assert 'Tags.0: {"Key":"a"} -> nothing' in out
    assert "thing group       kinwatch-quarantine\n        somebody removed it" in out
    assert "2 changed by hand" in out
    assert set(talk.operations()) == READING


def test_drift_that_could_not_be_looked_for_everywhere_is_told(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(talk, WANTED)
    drifted(talk, status="DETECTION_FAILED")
    assert cli.main(DIFF) == 0
    out = capsys.readouterr().out
    assert "nothing differs; CloudFormation could not look for every change by hand: role not readable" in out


def test_a_stack_that_is_being_changed_is_not_looked_through_and_that_is_told(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(talk, WANTED, "UPDATE_IN_PROGRESS")
    assert cli.main(DIFF) == 0
    out = capsys.readouterr().out
    assert "nothing differs; nobody looked for changes by hand: the stack is UPDATE_IN_PROGRESS" in out
    assert talk.operations() == ["DescribeStacks", "GetTemplate"]


def test_another_address_and_a_missing_mark_are_differences(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(talk, WANTED, tags={}, parameters={"AlarmEmail": "old@example.com"})
    assert cli.main([*DIFF, "--no-drift", "--email", "me@example.com"]) == 1
    out = capsys.readouterr().out
    assert "AlarmEmail: old@example.com -> me@example.com" in out
    assert "kinwatch:profile: nothing -> kinwatch" in out


def test_differences_are_data_as_well(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    gone = copy.deepcopy(WANTED)
    del gone["Resources"]["DevicePolicy"], gone["Outputs"]["DevicePolicyName"]
    deployed(talk, gone)
    assert cli.main([*DIFF, "--no-drift", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["drift"] == []
    assert found["unseen"] == "nobody looked for changes by hand"
    policy = {"sign": "+", "type": "AWS::IoT::Policy", "name": "kinwatch-device", "details": []}
    assert policy in found["changes"]


def test_a_template_that_kinwatch_did_not_write_is_told(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack("CREATE_COMPLETE")
    talk.answer("cloudformation", "get_template", {"TemplateBody": "Resources:\n  A: {}\n"})
    assert cli.main([*DIFF, "--no-drift"]) == 4
    assert "its template is not JSON" in capsys.readouterr().err


def test_every_change_of_a_template_is_seen_and_only_that() -> None:
    """Each resource in turn is taken away, added and altered."""
    whole = made(EXPECTING, PROFILE).document
    assert changes(whole, copy.deepcopy(whole)) == []
    for logical, resource in whole["Resources"].items():
        without = copy.deepcopy(whole)
        del without["Resources"][logical]
        (added,) = changes(without, whole)
        (removed,) = changes(whole, without)
        assert (added.sign, removed.sign, added.type) == ("+", "-", resource["Type"])
        altered = copy.deepcopy(whole)
        altered["Resources"][logical]["Properties"]["Colour"] = "red"
        (changed,) = changes(whole, altered)
        assert (changed.sign, changed.details) == ("~", ("Colour: nothing -> red",))


def test_a_behavior_more_is_one_difference_and_not_one_for_each_that_follows() -> None:
    more = copy.deepcopy(PROFILE)
    more["behaviors"].insert(0, {"name": "first", "criteria": PROFILE["behaviors"][2]["criteria"]})
    (change,) = changes(made(EXPECTING, PROFILE).document, made(EXPECTING, more).document)
    assert [detail.partition(":")[0] for detail in change.details] == ["Behaviors.first"]


def test_a_bucket_that_is_kept_is_not_called_removed() -> None:
    without = made(EXPECTING, detect=False).document
    found = {one.type: one.sign for one in changes(without, made(EXPECTING).document)}
    assert found["AWS::S3::Bucket"] == "="
    assert found["AWS::SQS::Queue"] == "-"


def test_lines_of_a_plan_hold_nothing_that_acts_on_a_terminal() -> None:
    old, new = copy.deepcopy(WANTED), copy.deepcopy(WANTED)
    new["Resources"]["AlarmTopic"]["Properties"]["DisplayName"] = "\x1b[2J" + "long " * 50
    (title, _, detail, _) = lines(changes(old, new))
    assert title == "to be changed"
    assert "\x1b" not in detail
    assert detail.endswith("…")
    assert ACCOUNT not in detail
