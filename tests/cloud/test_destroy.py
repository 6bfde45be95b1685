"""`kinwatch cloud destroy`: only what bears the mark of apply goes, after somebody said so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from monitor import cli
from monitor.cloud import command
from tests.cloud.account import REGION
from tests.cloud.configurations import EXPECTING, MYAPP, made
from tests.cloud.conversation import STACK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cloud.conversation import Conversation

DESTROY = ("cloud", "destroy")


def full(talk: Conversation) -> None:
    """The stack is there, without Detect, so that it has something that is kept."""
    talk.stack("UPDATE_COMPLETE", name="kinwatch")
    document = made(EXPECTING, detect=False).document
    talk.answer("cloudformation", "get_template", {"TemplateBody": json.dumps(document)})
    talk.resources(
        ("AlarmTopic", "AWS::SNS::Topic", "arn:aws:sns:x:1:kinwatch-AlarmTopic"),
        ("Bucket", "AWS::S3::Bucket", "kinwatch-bucket-1"),
        ("AlarmsRule", "AWS::IoT::TopicRule", "kinwatch_alarm"),
    )


def test_what_apply_made_is_removed_after_it_was_shown(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    full(talk)
    talk.asked_of_stack("delete_stack", {"StackName": STACK})
    talk.happens("DELETE_COMPLETE")
    terminal.append("y")
    assert cli.main(DESTROY) == 0
    out = capsys.readouterr().out
    assert "  -   SNS topic  kinwatch-AlarmTopic  (its subscriptions go with it)" in out
    assert "  =   bucket     kinwatch-bucket-1" in out
    assert "2 to be removed, 1 kept" in out
    assert "done: stack kinwatch is gone" in out


def test_without_a_yes_nothing_goes(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    full(talk)
    terminal.append("")
    assert cli.main(DESTROY) == 1
    assert "nothing was changed" in capsys.readouterr().out
    assert "DeleteStack" not in talk.operations()


def test_nothing_without_the_mark_is_removed(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even what was deployed by hand from a template of ours."""
    for tags, said in (
        ({}, "was not made by 'kinwatch cloud apply'; it stays"),
        ({"kinwatch:profile": "other"}, "belongs to the security profile other"),
        ({"kinwatch": "kinwatch"}, "was not made"),
    ):
        talk.stack("CREATE_COMPLETE", tags=tags)
        assert cli.main([*DESTROY, "--yes"]) == 4
        assert said in capsys.readouterr().err
    assert set(talk.operations()) == {"DescribeStacks"}


@pytest.mark.parametrize(("names", "gone"), [(("kinwatch-0a",), True), (("kinwatch-0a", "shop"), False), ((), False)])
def test_a_stack_that_was_never_made_goes_if_all_its_plans_are_ours(
    talk: Conversation, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], *, gone: bool
) -> None:
    talk.stack("REVIEW_IN_PROGRESS", tags={}, description="Plans")
    plans = {"Summaries": [{"ChangeSetName": name} for name in names]}
    talk.answer("cloudformation", "list_change_sets", plans, {"StackName": STACK})
    if gone:
        talk.resources()
        talk.asked_of_stack("delete_stack", {"StackName": STACK})
        talk.happens("DELETE_COMPLETE")
    assert cli.main([*DESTROY, "--yes"]) == (0 if gone else 4)
    assert gone or "was not made by 'kinwatch cloud apply'; it stays" in capsys.readouterr().err


def test_a_second_destroy_finds_nothing(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack(None)
    assert cli.main([*DESTROY, "--yes"]) == 0
    assert capsys.readouterr().out == f"stack kinwatch in {REGION} is not there: nothing to remove\n"


def test_what_cannot_be_removed_is_told_and_tried_again(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    full(talk)
    talk.asked_of_stack("delete_stack", {"StackName": STACK})
    talk.happens("DELETE_FAILED", ("AlarmTopic", "AWS::SNS::Topic", "Access denied on sns:DeleteTopic"))
    assert cli.main([*DESTROY, "--yes"]) == 4
    assert "Access denied on sns:DeleteTopic; take away what still uses it" in capsys.readouterr().err
    talk.stack("DELETE_FAILED")
    talk.answer("cloudformation", "get_template", {"TemplateBody": json.dumps(made(MYAPP).document)})
    talk.resources(("AlarmTopic", "AWS::SNS::Topic", "arn:aws:sns:x:1:t"))
    talk.asked_of_stack("delete_stack", {"StackName": STACK})
    talk.happens("DELETE_COMPLETE")
    assert cli.main([*DESTROY, "--yes"]) == 0


def test_a_destroy_that_was_broken_off_is_waited_for(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.stack("DELETE_IN_PROGRESS")
    talk.events()
    talk.stack("DELETE_COMPLETE", name=STACK)
    talk.events(("AlarmTopic", "AWS::SNS::Topic", "DELETE_COMPLETE", ""))
    assert cli.main([*DESTROY, "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_the_stack_is_that_of_the_configured_profile(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile, path = tmp_path / "p.json", tmp_path / "k.toml"
    profile.write_text('{"securityProfileName": "fleet:1", "behaviors": []}')
    path.write_text(MYAPP + f'[detect]\nsecurity_profile = "{profile}"\n')
    talk.stack("CREATE_COMPLETE", name="kinwatch-fleet-1")
    assert cli.main([*DESTROY, "--yes", "-c", str(path)]) == 4
    assert "belongs to the security profile kinwatch" in capsys.readouterr().err
    talk.stack(None, name="mine")
    assert cli.main([*DESTROY, "--yes", "-c", str(path), "--stack", "mine"]) == 0
    assert talk.arguments("DescribeStacks") == {"StackName": "mine"}


def test_every_profile_has_a_stack_of_its_own_name() -> None:
    names = [command.stack_name(one) for one in ("kinwatch", "fleet:1", "9_a")]
    assert names == ["kinwatch", "kinwatch-fleet-1", "kinwatch-9-a"]
