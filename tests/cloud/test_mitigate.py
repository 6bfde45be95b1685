"""`kinwatch cloud mitigate`: a thing that raised alarms joins the quarantine group, by the action that Detect knows.

Owns the conversations about one thing. Refuses to know what things in the group may do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from monitor import cli, verbs
from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.configurations import DEFENDER, MYAPP
from tests.cloud.conversation import WHEN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cloud.conversation import Conversation

GROUP = "kinwatch-quarantine"
GROUP_ARN = f"arn:aws:iot:{REGION}:{ACCOUNT}:thinggroup/{GROUP}"
MITIGATE = ("cloud", "mitigate", "--thing", "mything1")


def groups(talk: Conversation, *names: str) -> None:
    """The groups of the thing."""
    talk.answer(
        "iot",
        "list_thing_groups_for_thing",
        {"thingGroups": [{"groupName": name, "groupArn": f"arn:{name}"} for name in names]},
        {"thingName": "mything1"},
    )


def violation(number: int = 1, **criteria: Any) -> dict[str, Any]:  # noqa: ANN401 - as the API has them
    """A violation that AWS could tell of."""
    normal = criteria or {"comparisonOperator": "less-than-equals", "value": {"number": 0}}
    return {
        "violationId": f"v-{number}",
        "thingName": "mything1",
        "securityProfileName": "kinwatch",
        "behavior": {"name": "child_processes_myapp", "metric": "num_child_procs_myapp", "criteria": normal},
        "lastViolationValue": {"number": 3},
        "violationStartTime": WHEN,
    }


def violations(talk: Conversation, *found: dict[str, Any]) -> None:
    """What the thing violates."""
    asked = {"thingName": "mything1", "securityProfileName": "kinwatch"}
    talk.answer("iot", "list_active_violations", {"activeViolations": list(found)}, asked)


def policies(talk: Conversation, *names: str) -> None:
    """What is attached to the group."""
    talk.answer("iot", "describe_thing_group", {"thingGroupArn": GROUP_ARN}, {"thingGroupName": GROUP})
    attached = {"policies": [{"policyName": name} for name in names]}
    talk.answer("iot", "list_attached_policies", attached, {"target": GROUP_ARN})


def ended(talk: Conversation, status: str = "SUCCESSFUL", failed: int = 0) -> None:
    """A task runs, and ends."""
    talk.answer("iot", "describe_detect_mitigation_actions_task", {"taskSummary": {"taskStatus": "IN_PROGRESS"}})
    counts = {"actionsExecuted": 1 - failed, "actionsSkipped": 0, "actionsFailed": failed}
    summary = {"taskStatus": status, "taskStatistics": counts}
    talk.answer("iot", "describe_detect_mitigation_actions_task", {"taskSummary": summary})


def test_a_thing_in_violation_joins_the_group(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    groups(talk, "cameras")
    violations(talk, violation(2, mlDetectionConfig={"confidenceLevel": "HIGH"}), violation(1))
    policies(talk, "deny-all")
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk)
    groups(talk, "cameras", GROUP)
    terminal.append("y")
    assert cli.main(MITIGATE) == 0
    out = capsys.readouterr().out
    assert "mything1 violates 2 behaviors of kinwatch" in out
    assert "num_child_procs_myapp 3  normal: less-than-equals 0  since 2026-01-01 10:00:00 UTC" in out
    assert "normal: as learnt" in out
    assert "policies of things in it: deny-all" in out
    assert f"done: mything1 is in {GROUP}" in out
    asked = talk.arguments("StartDetectMitigationActionsTask")
    assert asked["actions"] == [GROUP]
    assert asked["target"] == {"violationIds": ["v-1", "v-2"]}


def test_a_group_that_forbids_nothing_is_called_so(
    talk: Conversation, capsys: pytest.CaptureFixture[str], terminal: list[str]
) -> None:
    groups(talk)
    violations(talk, violation())
    policies(talk)
    terminal.append("n")
    assert cli.main(MITIGATE) == 1
    assert "being in it forbids nothing yet" in capsys.readouterr().out
    assert "StartDetectMitigationActionsTask" not in talk.operations()


def test_a_thing_that_is_in_the_group_is_left_there(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    groups(talk, GROUP)
    assert cli.main([*MITIGATE, "--yes"]) == 0
    assert "already: nothing to do" in capsys.readouterr().out


def test_a_thing_that_violates_nothing_is_left_alone(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    groups(talk)
    violations(talk)
    assert cli.main([*MITIGATE, "--yes"]) == 0
    assert "violates no behavior of kinwatch now" in capsys.readouterr().out


def test_the_same_violations_have_the_same_task(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that was broken off is gone on with: no second task is started."""
    tasks = []
    for start in ("new", "there"):
        groups(talk)
        violations(talk, violation(2), violation(1))
        policies(talk)
        if start == "new":
            talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
        else:
            talk.refuse("iot", "start_detect_mitigation_actions_task", "TaskAlreadyExistsException")
        ended(talk)
        if start == "there":
            groups(talk, GROUP)
        groups(talk, GROUP)
        assert cli.main([*MITIGATE, "--yes"]) == 0
        tasks.append(talk.arguments("StartDetectMitigationActionsTask")["taskId"])
    assert tasks[0] == tasks[1]
    assert "was started before" in capsys.readouterr().out


def test_after_a_task_that_failed_the_next_command_starts_another(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    groups(talk)
    violations(talk, violation())
    policies(talk)
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk, "FAILED", failed=1)
    execution = {"status": "FAILED", "errorCode": "AccessDenied", "message": "role may not iot:AddThingToThingGroup"}
    talk.answer("iot", "list_detect_mitigation_actions_executions", {"actionsExecutions": [execution]})
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert "AccessDenied: role may not iot:AddThingToThingGroup; see the role" in capsys.readouterr().err
    groups(talk)
    violations(talk, violation())
    policies(talk)
    talk.refuse("iot", "start_detect_mitigation_actions_task", "TaskAlreadyExistsException")
    ended(talk, "FAILED", failed=1)
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk)
    groups(talk, GROUP)
    assert cli.main([*MITIGATE, "--yes"]) == 0
    assert talk.arguments("StartDetectMitigationActionsTask")["taskId"].endswith("-2")


def test_a_thing_that_was_let_out_and_still_violates_is_put_in_again(talk: Conversation) -> None:
    """Its violation is the same one, and so is the task that was done with it."""
    groups(talk)
    violations(talk, violation())
    policies(talk)
    talk.refuse("iot", "start_detect_mitigation_actions_task", "TaskAlreadyExistsException")
    ended(talk)
    groups(talk)
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk)
    groups(talk, GROUP)
    assert cli.main([*MITIGATE, "--yes"]) == 0
    assert talk.arguments("StartDetectMitigationActionsTask")["taskId"].endswith("-2")


def test_a_task_takes_no_more_violations_than_the_api_does(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    groups(talk)
    violations(talk, *(violation(number) for number in range(30)))
    policies(talk)
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk)
    groups(talk, GROUP)
    assert cli.main([*MITIGATE, "--yes"]) == 0
    assert len(talk.arguments("StartDetectMitigationActionsTask")["target"]["violationIds"]) == 25
    assert "a task takes 25 violations" in capsys.readouterr().out


def test_success_without_effect_is_not_believed(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    groups(talk)
    violations(talk, violation())
    policies(talk)
    talk.answer("iot", "start_detect_mitigation_actions_task", {"taskId": "x"})
    ended(talk)
    groups(talk)
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert f"the thing is not in {GROUP}" in capsys.readouterr().err


def test_without_detect_the_thing_joins_by_itself(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    groups(talk)
    policies(talk, "deny-all")
    asked = {"thingGroupName": GROUP, "thingName": "mything1", "overrideDynamicGroups": True}
    talk.answer("iot", "add_thing_to_thing_group", {}, asked)
    groups(talk, GROUP)
    assert cli.main([*MITIGATE, "--yes", "--no-detect"]) == 0
    assert "remove-thing-from-thing-group" in capsys.readouterr().out


def test_what_is_not_there_is_told(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.refuse("iot", "list_thing_groups_for_thing", "ResourceNotFoundException")
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert f"there is no thing mything1 in {REGION}" in capsys.readouterr().err
    groups(talk)
    talk.refuse("iot", "list_active_violations", "ResourceNotFoundException")
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert "no security profile kinwatch" in capsys.readouterr().err
    groups(talk)
    violations(talk, violation())
    talk.refuse("iot", "describe_thing_group", "ResourceNotFoundException")
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert "'kinwatch cloud apply' makes it" in capsys.readouterr().err


def test_an_account_without_detect_is_told_the_other_way(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    groups(talk)
    gone = "Device Defender Detect is not available to new customers"
    talk.refuse("iot", "list_active_violations", "InvalidRequestException", gone)
    assert cli.main([*MITIGATE, "--yes"]) == 4
    assert "mitigate --no-detect" in capsys.readouterr().err


@pytest.mark.parametrize("configured", [True, False])
def test_the_thing_is_that_of_the_configuration(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path, *, configured: bool
) -> None:
    path = tmp_path / "k.toml"
    path.write_text(MYAPP + (DEFENDER if configured else ""))
    if configured:
        groups(talk, GROUP)
    assert cli.main(["cloud", "mitigate", "-c", str(path)]) == (0 if configured else verbs.USAGE)
    out, err = capsys.readouterr()
    assert "mything1" in out if configured else "--thing" in err
