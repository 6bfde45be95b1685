"""`kinwatch cloud apply` against botocore's Stubber: the template is what is asked for, a second time nothing is.

Owns the conversations that an apply can be. Refuses to know how the calls are made.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from botocore.stub import ANY

from monitor import cli
from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.configurations import TEXTS, made
from tests.cloud.conversation import CHANGES, ME, STACK, Conversation

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TOPIC = "AWS::SNS::Topic"
APPLY = ("cloud", "apply", "--watch", "myapp", "--expect", "child_processes=0")
WANTED = made(TEXTS["no child"]).document


def wanted_is_taken(talk: Conversation, document: Any = None) -> None:  # noqa: ANN401 - what JSON has
    """AWS would take the template."""
    document = WANTED if document is None else document
    profile = any(one["Type"] == "AWS::IoT::SecurityProfile" for one in document["Resources"].values())
    if profile:
        talk.account()
        talk.answer("iot", "validate_security_profile_behaviors", {"valid": True, "validationErrors": []})
    talk.free(profile=profile)


def planned(talk: Conversation, document: Any = None, *, creating: bool = True, **more: Any) -> None:  # noqa: ANN401
    """CloudFormation makes a plan of everything in the template; `more`: arguments of the call."""
    document = WANTED if document is None else document
    asked = {
        "StackName": "kinwatch",
        "ChangeSetName": ANY,
        "ChangeSetType": "CREATE" if creating else "UPDATE",
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": "kinwatch:profile", "Value": "kinwatch"}],
        "Parameters": [],
        "TemplateBody": json.dumps(document, separators=(",", ":")),
        **({"OnStackFailure": "DELETE"} if creating else {}),
        **more,
    }
    talk.answer("cloudformation", "create_change_set", {"Id": CHANGES, "StackId": STACK}, asked)
    talk.answer("cloudformation", "describe_change_set", {"Status": "CREATE_IN_PROGRESS"})
    changes = [
        {
            "Type": "Resource",
            "ResourceChange": {"Action": "Add", "LogicalResourceId": logical, "ResourceType": one["Type"]},
        }
        for logical, one in document["Resources"].items()
    ]
    half = len(changes) // 2
    described = {"ChangeSetName": CHANGES, "StackName": STACK, "IncludePropertyValues": True}
    first = {"Status": "CREATE_COMPLETE", "Changes": changes[:half], "NextToken": "more"}
    talk.answer("cloudformation", "describe_change_set", first, described)
    rest = {"Status": "CREATE_COMPLETE", "Changes": changes[half:]}
    talk.answer("cloudformation", "describe_change_set", rest, described | {"NextToken": "more"})


def executed(talk: Conversation) -> None:
    """The plan is executed."""
    asked = {"ChangeSetName": CHANGES, "StackName": STACK, "ClientRequestToken": ANY, "RetainExceptOnCreate": True}
    talk.asked_of_stack("execute_change_set", asked)


def nothing_differs(talk: Conversation, why: str = "The submitted information didn't contain changes.") -> None:
    """CloudFormation finds nothing to plan."""
    talk.answer("cloudformation", "create_change_set", {"Id": CHANGES, "StackId": STACK})
    talk.answer("cloudformation", "describe_change_set", {"Status": "FAILED", "StatusReason": why})
    asked = {"ChangeSetName": CHANGES, "StackName": STACK}
    talk.answer("cloudformation", "delete_change_set", {}, asked)


def created(talk: Conversation) -> None:
    """Everything that the first apply asks, to its good end."""
    talk.stack(None, name="kinwatch")
    wanted_is_taken(talk)
    talk.stack(None)
    talk.me()
    planned(talk)
    talk.me()
    executed(talk)
    talk.happens("CREATE_COMPLETE", outputs={"AlarmTopicArn": "arn:aws:sns:t"})


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


def present(talk: Conversation, status: str = "CREATE_COMPLETE", **more: Any) -> None:  # noqa: ANN401 - as of stack
    """The stack is there, with all that it should have."""
    talk.stack(status, name="kinwatch", **more)
    talk.account(metrics=tuple(one["MetricName"] for one in _of("AWS::IoT::CustomMetric")))
    talk.answer("iot", "validate_security_profile_behaviors", {"valid": True, "validationErrors": []})
    talk.stack(status, name="kinwatch", **more)
    talk.resources(
        *(("x", "AWS::IoT::CustomMetric", one["MetricName"]) for one in _of("AWS::IoT::CustomMetric")),
        ("x", "AWS::IoT::SecurityProfile", "kinwatch"),
        ("x", "AWS::IoT::ThingGroup", "kinwatch-quarantine"),
        ("x", "AWS::IoT::MitigationAction", "kinwatch-quarantine"),
        ("x", "AWS::IoT::Policy", f"arn:aws:iot:{REGION}:{ACCOUNT}:policy/kinwatch-device"),
    )
    talk.me()
    profiles = [{"securityProfileIdentifier": {"name": "kinwatch", "arn": "a"}, "target": {"arn": "a"}}]
    talk.answer("iot", "list_security_profiles_for_target", {"securityProfileTargetMappings": profiles})


def _of(kind: str) -> list[dict[str, Any]]:
    return [one["Properties"] for one in WANTED["Resources"].values() if one["Type"] == kind]


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
    assert cli.main([*APPLY]) == cli.USAGE
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


def test_whoever_breaks_it_off_hears_that_aws_goes_on(
    talk: Conversation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    present(talk)
    planned(talk, creating=False)
    talk.me()
    executed(talk)
    talk.stack("UPDATE_IN_PROGRESS")
    talk.events()

    def broken_off(_seconds: float) -> None:
        if "ExecuteChangeSet" in talk.operations():
            raise KeyboardInterrupt

    monkeypatch.setattr(talk.aws, "sleep", broken_off)
    assert cli.main([*APPLY, "--yes"]) == cli.INTERRUPTED
    assert "CloudFormation goes on by itself, and the same command waits for it" in capsys.readouterr().out


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


def test_a_failed_creation_says_why_and_the_next_apply_begins_anew(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.stack(None)
    wanted_is_taken(talk)
    talk.stack(None)
    talk.me()
    planned(talk)
    talk.me()
    executed(talk)
    talk.happens(
        "DELETE_COMPLETE",
        ("AlarmRole", "AWS::IAM::Role", "User is not authorized to perform: iam:CreateRole"),
        ("QuarantineRole", "AWS::IAM::Role", "Resource creation cancelled"),
    )
    assert cli.main([*APPLY, "--yes"]) == 4
    out, err = capsys.readouterr()
    assert "FAIL     role physical-AlarmRole: User is not authorized" in out
    assert "iam:CreateRole; what it had made is removed again; apply again" in err
    assert "cancelled" not in err
    created(talk)
    assert cli.main([*APPLY, "--yes"]) == 0


def test_a_failed_change_leaves_the_stack_as_it_was(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    present(talk)
    planned(talk, creating=False)
    talk.me()
    executed(talk)
    talk.happens("UPDATE_ROLLBACK_COMPLETE", ("AlarmTopic", TOPIC, "quota"))
    assert cli.main([*APPLY, "--yes"]) == 4
    assert "the stack is as it was before" in capsys.readouterr().err
    present(talk, "UPDATE_ROLLBACK_COMPLETE")
    planned(talk, creating=False)
    talk.me()
    executed(talk)
    talk.happens("UPDATE_COMPLETE")
    assert cli.main([*APPLY, "--yes"]) == 0


def test_an_apply_that_was_broken_off_is_waited_for_and_gone_on_with(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.stack("UPDATE_IN_PROGRESS", name="kinwatch")
    talk.events()
    talk.stack("UPDATE_COMPLETE", name=STACK)
    talk.events(("AlarmTopic", TOPIC, "UPDATE_COMPLETE", ""))
    present_after_waiting(talk)
    nothing_differs(talk, "No updates are to be performed.")
    assert cli.main([*APPLY, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "UPDATE_IN_PROGRESS, begun before; waiting" in out
    assert "changed  SNS topic" in out


def present_after_waiting(talk: Conversation) -> None:
    """As `present`, without the first look at the stack."""
    talk.account()
    talk.answer("iot", "validate_security_profile_behaviors", {"valid": True, "validationErrors": []})
    talk.stack("UPDATE_COMPLETE")
    talk.resources()
    talk.free(profile=False)
    talk.me()
    talk.answer("iot", "list_security_profiles_for_target", {"securityProfileTargetMappings": []})


def test_what_is_left_of_a_failed_creation_goes_first_when_somebody_says_so(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    talk.stack("ROLLBACK_COMPLETE")
    wanted_is_taken(talk)
    talk.stack("ROLLBACK_COMPLETE")
    talk.resources()
    talk.me()
    talk.resources(("AlarmTopic", TOPIC, "arn:aws:sns:eu:1:left"))
    talk.asked_of_stack("delete_stack", {"StackName": STACK})
    talk.stack("DELETE_COMPLETE")
    talk.events(("kinwatch", "AWS::CloudFormation::Stack", "DELETE_COMPLETE", ""))
    planned(talk)
    talk.me()
    executed(talk)
    talk.happens("CREATE_COMPLETE")
    terminal += ["y", "yes"]
    assert cli.main([*APPLY]) == 0
    assert "SNS topic  left" in capsys.readouterr().out


def test_what_could_not_be_taken_back_is_not_made_worse(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack("UPDATE_ROLLBACK_FAILED", reason="The role is gone.")
    assert cli.main([*APPLY, "--yes"]) == 4
    assert "continue-update-rollback --stack-name kinwatch" in capsys.readouterr().err


NO_DETECT = "AWS IoT Device Defender Detect is no longer available to new customers."


def test_an_account_without_detect_gets_the_rules_and_the_reason(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = made(TEXTS["no child"], detect=False).document
    talk.stack(None)
    talk.refuse("iot", "list_security_profiles", "InvalidRequestException", NO_DETECT)
    # And again, of the other template.
    talk.refuse("iot", "get_policy", "ResourceNotFoundException")
    talk.stack(None)
    talk.answer("iot", "list_topic_rules", {"rules": [{"ruleName": "other"}]})
    talk.me()
    planned(talk, rules)
    talk.me()
    executed(talk)
    talk.happens("CREATE_COMPLETE")
    assert cli.main([*APPLY, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "has no Device Defender Detect, which is closed to new customers since 2026-08-31" in out
    assert json.loads(talk.arguments("CreateChangeSet")["TemplateBody"]) == rules


def test_without_detect_there_is_nothing_for_a_target(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack(None)
    talk.refuse("iot", "list_security_profiles", "InvalidRequestException", NO_DETECT)
    assert cli.main([*APPLY, "--yes", "--target", "all"]) == 4
    assert "--no-detect" in capsys.readouterr().err


def test_detect_that_only_refuses_the_first_profile_is_told_as_such(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.stack(None)
    talk.account(metrics=(), profiles=())
    talk.answer("iot", "validate_security_profile_behaviors", {"valid": True, "validationErrors": []})
    talk.free()
    talk.stack(None)
    talk.me()
    planned(talk)
    talk.me()
    executed(talk)
    talk.happens("DELETE_COMPLETE", ("SecurityProfile", "AWS::IoT::SecurityProfile", NO_DETECT))
    assert cli.main([*APPLY, "--yes"]) == 4
    out, err = capsys.readouterr()
    assert "the account has no security profile and no custom metric yet" in out
    assert "--no-detect makes IoT rules" in err


def test_what_aws_would_refuse_is_not_tried(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack(None)
    talk.account(metrics=("num_child_procs_myapp",))
    wrong = {"valid": False, "validationErrors": [{"errorMessage": "Behavior x: bad criteria"}]}
    talk.answer("iot", "validate_security_profile_behaviors", wrong)
    talk.stack(None)
    talk.answer("iot", "describe_custom_metric", {"metricName": "num_child_procs_myapp", "metricType": "string-list"})
    talk.free()
    talk.me()
    assert cli.main([*APPLY, "--yes"]) == 4
    out, err = capsys.readouterr()
    assert "FAIL  behaviors   Behavior x: bad criteria" in out
    assert "num_child_procs_myapp is there already as string-list, and devices report number" in out
    assert "nothing was changed" in err
    assert "CreateChangeSet" not in talk.operations()


def test_a_plan_that_cloudformation_cannot_make_is_told(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    present(talk)
    nothing_differs(talk, "Template error: something")
    assert cli.main([*APPLY, "--yes"]) == 4
    assert "can make no plan: Template error: something; nothing was changed" in capsys.readouterr().err


def test_a_plan_left_by_an_attempt_that_was_broken_off_is_made_anew(talk: Conversation) -> None:
    present(talk)
    talk.refuse("cloudformation", "create_change_set", "AlreadyExistsException", "ChangeSet cannot be created")
    talk.answer("cloudformation", "delete_change_set", {}, {"ChangeSetName": ANY, "StackName": "kinwatch"})
    nothing_differs(talk)
    assert cli.main([*APPLY, "--yes"]) == 0


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
    assert cli.main(many(tmp_path / "k.toml")) == cli.USAGE
    assert "--bucket" in capsys.readouterr().err
    assert "CreateChangeSet" not in talk.operations()


def test_the_judge_of_these_conversations_sees_what_the_stubber_does_not() -> None:
    talk = Conversation()
    talk.answer("iot", "describe_custom_metric", {})
    talk.aws.call("iot", "DescribeCustomMetric", metricName="bad name!")
    assert talk.faults == ["DescribeCustomMetric.metricName: 'bad name!' does not match [a-zA-Z0-9:_-]+"]
