"""`kinwatch cloud apply` against botocore's Stubber: the template is what is asked for, a second time nothing is.

Owns the conversations that go well. Refuses to know how the calls are made.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from botocore.stub import ANY

from monitor import cli, verbs
from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.applying import (
    APPLY,
    TOPIC,
    WANTED,
    created,
    executed,
    nothing_differs,
    planned,
    present,
    wanted_is_taken,
)
from tests.cloud.configurations import TEXTS, made
from tests.cloud.conversation import CHANGES, ME, STACK, Conversation

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_first_apply_makes_what_the_template_says(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    created(talk)
    assert cli.main([*APPLY, "--yes"]) == 0
    out = capsys.readouterr().out
    assert json.loads(talk.arguments("CreateChangeSet")["TemplateBody"]) == WANTED
    for one in WANTED["Resources"].values():
        assert one["Properties"].get("MetricName", "") in out
    assert f"stack kinwatch in {REGION}, account {ACCOUNT}, as {ME}" in out
    assert f"{len(WANTED['Resources'])} to be made" in out
    assert "made     SNS topic" in out
    assert out.index("to be made") < out.index("made     SNS topic"), "the plan comes first"
    assert "AlarmTopicArn  arn:aws:sns:t" in out


def test_behaviors_are_validated_by_aws_as_the_template_has_them(talk: Conversation) -> None:
    created(talk)
    assert cli.main([*APPLY, "--yes"]) == 0
    (asked,) = talk.arguments("ValidateSecurityProfileBehaviors")["behaviors"]
    (profile,) = [one for one in WANTED["Resources"].values() if one["Type"] == "AWS::IoT::SecurityProfile"]
    (behavior,) = profile["Properties"]["Behaviors"]
    assert asked["metric"] == "num_child_procs_myapp"
    assert asked["name"] == behavior["Name"]
    assert asked["criteria"]["value"] == {"number": behavior["Criteria"]["Value"]["Number"]}


def test_a_second_apply_changes_nothing(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    present(talk)
    nothing_differs(talk)
    assert cli.main([*APPLY, "--yes"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert talk.arguments("CreateChangeSet")["ChangeSetType"] == "UPDATE"
    assert {"ExecuteChangeSet", "DeleteStack"}.isdisjoint(talk.operations())


def test_a_second_apply_that_aws_answers_at_once_changes_nothing(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    present(talk)
    talk.refuse("cloudformation", "create_change_set", "ValidationError", "No updates are to be performed.")
    assert cli.main([*APPLY, "--yes"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_change_is_shown_with_what_it_was_and_what_it_costs(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    present(talk, parameters={"AlarmEmail": "me@example.com"})
    parameters = [{"ParameterKey": "AlarmEmail", "UsePreviousValue": True}]
    talk.answer("cloudformation", "create_change_set", {"Id": CHANGES, "StackId": STACK})
    metric = next(logical for logical, one in WANTED["Resources"].items() if one["Type"] == "AWS::IoT::CustomMetric")
    target = {
        "Attribute": "Properties",
        "Name": "Behaviors",
        "Path": "/Properties/Behaviors/0/Criteria/Value/Number",
        "BeforeValue": "0",
        "AfterValue": "2",
        "RequiresRecreation": "Never",
    }
    changes = [
        {
            "Action": "Modify",
            "LogicalResourceId": "SecurityProfile",
            "PhysicalResourceId": "kinwatch",
            "ResourceType": "AWS::IoT::SecurityProfile",
            "Replacement": "False",
            "Details": [{"Target": target}],
        },
        {
            "Action": "Modify",
            "LogicalResourceId": metric,
            "ResourceType": "AWS::IoT::CustomMetric",
            "Replacement": "True",
            "Details": [{"Target": {"Attribute": "Properties", "Name": "MetricType"}}],
        },
        {
            "Action": "Remove",
            "LogicalResourceId": "Gone",
            "PhysicalResourceId": "cpu_usage",
            "ResourceType": "AWS::IoT::CustomMetric",
            "PolicyAction": "Delete",
        },
        {
            "Action": "Remove",
            "LogicalResourceId": "Bucket",
            "PhysicalResourceId": "kinwatch-bucket-1",
            "ResourceType": "AWS::S3::Bucket",
            "PolicyAction": "Retain",
        },
    ]
    described = {
        "Status": "CREATE_COMPLETE",
        "Changes": [{"Type": "Resource", "ResourceChange": one} for one in changes],
    }
    talk.answer("cloudformation", "describe_change_set", described)
    talk.me()
    talk.answer("cloudformation", "delete_change_set", {})
    terminal.append("n")
    assert cli.main([*APPLY]) == 1
    out = capsys.readouterr().out
    assert "  ~   security profile  kinwatch\n        Behaviors.0.Criteria.Value.Number: 0 -> 2\n" in out
    assert "  -   custom metric     cpu_usage  (its data" in out
    assert "  =   bucket            kinwatch-bucket-1" in out
    assert "  -/+ custom metric     " in out
    assert "1 to be changed, 1 to be replaced, 1 to be removed, 1 kept" in out
    assert "nothing was changed" in out
    assert talk.arguments("CreateChangeSet")["Parameters"] == parameters


def test_a_plan_that_nobody_confirms_leaves_nothing_behind(
    talk: Conversation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    talk.stack(None)
    wanted_is_taken(talk)
    talk.stack(None)
    talk.me()
    planned(talk)
    talk.me()
    talk.answer("cloudformation", "delete_stack", {}, {"StackName": STACK})
    assert cli.main([*APPLY]) == verbs.USAGE
    out, err = capsys.readouterr()
    assert "to be made" in out
    assert "--yes" in err
    assert "ExecuteChangeSet" not in talk.operations()


def test_a_plan_beside_a_plan_of_somebody_else_leaves_that_alone(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    """A stack that exists for plans alone bears no mark, so it is not known whose it is."""
    talk.stack("REVIEW_IN_PROGRESS", tags={}, description="Plans")
    wanted_is_taken(talk)
    talk.stack("REVIEW_IN_PROGRESS", tags={}, description="Plans")
    talk.me()
    planned(talk)
    talk.me()
    talk.answer("cloudformation", "delete_change_set", {}, {"ChangeSetName": CHANGES, "StackName": STACK})
    terminal.append("no")
    assert cli.main([*APPLY]) == 1
    assert "nothing was changed" in capsys.readouterr().out
    assert "DeleteStack" not in talk.operations()


def test_a_stack_of_somebody_else_is_not_touched(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack("CREATE_COMPLETE", tags={}, description="A shop")
    assert cli.main([*APPLY, "--yes"]) == 4
    assert "was not made by 'kinwatch cloud apply'; give another --stack" in capsys.readouterr().err
    talk.stack("CREATE_COMPLETE", tags={"kinwatch:profile": "other"})
    assert cli.main([*APPLY, "--yes"]) == 4
    assert "belongs to the security profile other" in capsys.readouterr().err
    assert set(talk.operations()) == {"DescribeStacks"}


def test_a_stack_that_was_deployed_by_hand_from_the_template_is_taken_over(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    present(talk, tags={})
    planned(talk, creating=False)
    talk.me()
    executed(talk)
    talk.happens("UPDATE_COMPLETE")
    assert cli.main([*APPLY, "--yes"]) == 0
    assert "taken over" in capsys.readouterr().out


def test_drift_is_reverted_when_that_is_asked_for(talk: Conversation) -> None:
    present(talk)
    planned(talk, creating=False, DeploymentMode="REVERT_DRIFT")
    talk.me()
    executed(talk)
    talk.happens("UPDATE_COMPLETE")
    assert cli.main([*APPLY, "--yes", "--revert-drift"]) == 0


def test_parameters_are_set_and_the_others_stay(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    present(talk, parameters={"AlarmEmail": "old@example.com"})
    email = [{"ParameterKey": "AlarmEmail", "ParameterValue": "me@example.com"}]
    planned(talk, creating=False, Parameters=email)
    talk.me()
    executed(talk)
    talk.happens("UPDATE_COMPLETE", parameters={"AlarmEmail": "me@example.com"})
    assert cli.main([*APPLY, "--yes", "--email", "me@example.com"]) == 0
    assert "me@example.com gets alarms once the mail with the link is answered" in capsys.readouterr().out


def many(path: Path) -> list[str]:
    """A configuration whose template is too long for a call."""
    path.write_text(TEXTS["many watches"])
    return ["cloud", "apply", "--yes", "-c", str(path)]


def long_is_taken(talk: Conversation) -> None:
    """What is asked before a plan of many watches."""
    talk.stack(None)
    talk.account()
    talk.free()
    talk.stack(None)
    talk.me()


def test_a_long_template_goes_through_a_bucket_and_does_not_stay_there(talk: Conversation, tmp_path: Path) -> None:
    document = made(TEXTS["many watches"]).document
    long_is_taken(talk)
    talk.answer("s3", "put_object", {}, {"Bucket": "mine", "Key": ANY, "Body": ANY})
    talk.answer("cloudformation", "create_change_set", {"Id": CHANGES, "StackId": STACK})
    change = {"Action": "Add", "LogicalResourceId": "AlarmTopic", "ResourceType": TOPIC}
    described = {"Status": "CREATE_COMPLETE", "Changes": [{"Type": "Resource", "ResourceChange": change}]}
    talk.answer("cloudformation", "describe_change_set", described)
    talk.answer("s3", "delete_object", {}, {"Bucket": "mine", "Key": ANY})
    talk.me()
    executed(talk)
    talk.happens("CREATE_COMPLETE")
    assert cli.main([*many(tmp_path / "k.toml"), "--bucket", "mine"]) == 0
    put = talk.arguments("PutObject")
    assert json.load(put["Body"]) == document
    assert talk.arguments("DeleteObject")["Key"] == put["Key"]
    asked = talk.arguments("CreateChangeSet")
    assert "TemplateBody" not in asked
    assert asked["TemplateURL"] == f"https://s3.{REGION}.amazonaws.com/mine/{put['Key']}"


def test_a_long_template_without_a_bucket_is_refused_before_anything_is_made(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    long_is_taken(talk)
    assert cli.main(many(tmp_path / "k.toml")) == verbs.USAGE
    assert "--bucket" in capsys.readouterr().err
    assert "CreateChangeSet" not in talk.operations()


def test_what_is_left_of_a_failed_attempt_stays_where_the_next_one_cannot_be_made(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    talk.stack("ROLLBACK_COMPLETE")
    talk.account()
    talk.free()
    talk.stack("ROLLBACK_COMPLETE")
    talk.resources()
    talk.me()
    assert cli.main(many(tmp_path / "k.toml")) == verbs.USAGE
    assert "--bucket" in capsys.readouterr().err
    assert "DeleteStack" not in talk.operations()


def test_the_judge_of_these_conversations_sees_what_the_stubber_does_not() -> None:
    talk = Conversation()
    talk.answer("iot", "describe_custom_metric", {})
    talk.aws.call("iot", "DescribeCustomMetric", metricName="bad name!")
    assert talk.faults == ["DescribeCustomMetric.metricName: 'bad name!' does not match [a-zA-Z0-9:_-]+"]
