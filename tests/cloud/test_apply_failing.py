"""An apply that fails, is broken off, or meets an account without Detect: what is told, and how the next one goes on.

Owns the conversations that do not go well. Refuses to know how the calls are made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from botocore.stub import ANY

from monitor import cli
from tests.cloud.applying import (
    APPLY,
    TOPIC,
    created,
    executed,
    nothing_differs,
    planned,
    present,
    present_after_waiting,
    wanted_is_taken,
)
from tests.cloud.configurations import TEXTS, made
from tests.cloud.conversation import STACK, Conversation

if TYPE_CHECKING:
    import pytest


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
