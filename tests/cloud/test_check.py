"""`kinwatch cloud check`: what the account has, lacks and would refuse; it asks and changes nothing.

Owns one conversation for each thing that can be wrong. Refuses to know how the questions are asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from monitor import cli
from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.configurations import DEFENDER, MYAPP, PROFILE, TEXTS, made
from tests.cloud.conversation import ME

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.cloud.conversation import Conversation

CHECK = ("cloud", "check", "--watch", "myapp")
ENDPOINT = "example-ats.iot.eu-west-1.amazonaws.com"
WANTED = made(MYAPP).document


def begun(talk: Conversation, stack: str | None = None, **more: Any) -> None:  # noqa: ANN401 - as of stack
    """Credentials, endpoint, stack and template are right."""
    talk.me()
    talk.answer("iot", "describe_endpoint", {"endpointAddress": ENDPOINT}, {"endpointType": "iot:Data-ATS"})
    talk.stack(stack, **more)
    talk.answer("cloudformation", "validate_template", {})


def found(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    """Findings: word, name, and the rest."""
    out = capsys.readouterr().out.splitlines()
    rows = [line for line in out[1:] if not line.startswith(" " * 8)]
    return [(row.split()[0], row.split()[1], row.split(None, 2)[2]) for row in rows]


def test_an_account_that_would_take_it_is_ok(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    begun(talk)
    talk.account()
    talk.free()
    assert cli.main(CHECK) == 0
    rows = found(capsys)
    assert {word for word, _, _ in rows} == {"ok"}
    assert [name for _, name, _ in rows] == [
        *("credentials", "endpoint", "stack", "template", "detect", "metrics", "names", "targets"),
    ]
    assert f"{ME}, account {ACCOUNT}, region {REGION}" in rows[0][2]
    assert json.loads(talk.arguments("ValidateTemplate")["TemplateBody"]) == WANTED
    assert not [one for one in talk.operations() if not one.startswith(("Describe", "List", "Get", "Validate"))]


def test_without_credentials_nothing_else_is_asked(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.refuse("sts", "get_caller_identity", "ExpiredToken", "The security token included in the request is expired")
    assert cli.main(CHECK) == 4
    out = capsys.readouterr().out
    assert "FAIL  credentials sts:GetCallerIdentity: ExpiredToken" in out
    assert "sign in again" in out
    assert talk.operations() == ["GetCallerIdentity"]


def test_devices_that_connect_elsewhere_are_told(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "k.toml"
    path.write_text(MYAPP + DEFENDER.replace("eu-west-1", "us-east-1"))
    begun(talk)
    talk.account()
    talk.free()
    assert cli.main(["cloud", "check", "-c", str(path)]) == 0
    rows = found(capsys)
    (row,) = [row for row in rows if row[1] == "endpoint"]
    assert row == ("-", "endpoint", f"{ENDPOINT}, and the devices connect to {ENDPOINT.replace('eu-west', 'us-east')}")


def test_each_metric_that_somebody_else_has_is_told_with_the_way_out(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(talk)
    talk.account(metrics=("events_lost", "roots_myapp", "unrelated"))
    talk.answer("iot", "describe_custom_metric", {"metricType": "number"}, {"metricName": "events_lost"})
    talk.answer("iot", "describe_custom_metric", {"metricType": "string-list"}, {"metricName": "roots_myapp"})
    talk.free()
    assert cli.main(CHECK) == 4
    out = capsys.readouterr().out
    assert (
        "events_lost is there already, not of this stack\n                    use it: --existing-metric events_lost"
        in out
    )
    assert "roots_myapp is there already as string-list, and devices report number" in out
    assert "unrelated" not in out


def test_a_metric_of_another_stack_is_used_and_not_defined(talk: Conversation) -> None:
    begun(talk)
    talk.account(metrics=("events_lost",))
    talk.free()
    assert cli.main([*CHECK, "--existing-metric", "events_lost"]) == 0
    document = json.loads(talk.arguments("ValidateTemplate")["TemplateBody"])
    names = [one["Properties"].get("MetricName") for one in document["Resources"].values()]
    assert "events_lost" not in names
    retained = document["Resources"]["SecurityProfile"]["Properties"]["AdditionalMetricsToRetainV2"]
    assert "events_lost" in [one["Metric"] for one in retained]


def test_behaviors_of_the_profile_are_validated_in_the_spelling_of_the_api(
    talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile, path = tmp_path / "p.json", tmp_path / "k.toml"
    profile.write_text(json.dumps(PROFILE | {"securityProfileName": "kinwatch"}))
    path.write_text(MYAPP + f'[detect]\nsecurity_profile = "{profile}"\n')
    begun(talk)
    talk.account()
    talk.answer("iot", "validate_security_profile_behaviors", {"valid": True})
    talk.free()
    assert cli.main(["cloud", "check", "-c", str(path), "--export-topic", ""]) == 0
    asked = {one["name"]: one for one in talk.arguments("ValidateSecurityProfileBehaviors")["behaviors"]}
    given = {one["name"]: one for one in PROFILE["behaviors"]}
    assert asked.keys() == given.keys()
    for name in ("learnt", "like-the-others", "small", "quiet"):
        assert asked[name] == given[name]
    assert asked["images"]["criteria"]["value"] == {"strings": ["/bin/g__", "/bin/sh"]}, "as reports write them"
    assert "6, and AWS finds them valid" in capsys.readouterr().out


def test_names_that_are_taken_are_told(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    begun(talk)
    talk.account()
    talk.answer("iot", "describe_security_profile", {}, {"securityProfileName": "kinwatch"})
    talk.refuse("iot", "describe_thing_group", "ResourceNotFoundException")
    talk.answer("iot", "describe_mitigation_action", {}, {"actionName": "kinwatch-quarantine"})
    talk.answer("iot", "get_policy", {}, {"policyName": "kinwatch-device"})
    talk.answer("iot", "list_security_profiles_for_target", {"securityProfileTargetMappings": []})
    assert cli.main(CHECK) == 4
    taken = [rest.partition(" is there")[0] for word, name, rest in found(capsys) if (word, name) == ("FAIL", "names")]
    assert taken == ["security profile kinwatch", "mitigation action kinwatch-quarantine", "policy kinwatch-device"]


def test_without_detect_the_names_of_rules_are_looked_at(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(talk)
    talk.refuse("iot", "get_policy", "ResourceNotFoundException")
    talk.answer("iot", "list_topic_rules", {"rules": [{"ruleName": "kinwatch_alarm"}, {"ruleName": "kinwatch_x"}]})
    assert cli.main([*CHECK, "--no-detect"]) == 4
    rows = found(capsys)
    assert [row for row in rows if row[0] == "FAIL"] == [
        ("FAIL", "names", "rule kinwatch_alarm is there already, not of stack kinwatch")
    ]


def test_targets_have_to_be_there_and_have_room(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [f"arn:aws:iot:{REGION}:{ACCOUNT}:thinggroup/{name}" for name in ("gone", "of:colons", "full")]
    elsewhere = f"arn:aws:iot:us-east-1:{ACCOUNT}:all/things"
    begun(talk)
    talk.account()
    for operation in ("describe_security_profile", "describe_thing_group", "describe_mitigation_action", "get_policy"):
        talk.refuse("iot", operation, "ResourceNotFoundException")
    for _ in ("gone", "of:colons"):
        talk.refuse("iot", "describe_thing_group", "ResourceNotFoundException")
    talk.answer("iot", "describe_thing_group", {}, {"thingGroupName": "full"})
    others = [{"securityProfileIdentifier": {"name": f"p{n}", "arn": "a"}, "target": {"arn": "a"}} for n in range(5)]
    talk.answer("iot", "list_security_profiles_for_target", {"securityProfileTargetMappings": others})
    targets = [flag for arn in (*groups, elsewhere) for flag in ("--target", arn)]
    assert cli.main([*CHECK, *targets]) == 4
    failed = [rest for word, name, rest in found(capsys) if (word, name) == ("FAIL", "targets")]
    assert failed == [
        "there is no thing group gone",
        "there is no thing group of:colons",
        "thinggroup/full, which has 5 other security profiles",
        f"{elsewhere} is not of region {REGION}, account {ACCOUNT}",
    ]


def test_what_may_not_be_asked_is_not_called_wrong(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever deploys by a role of CloudFormation may lack the permission to look."""
    begun(talk)
    denied = f"User: {ME} is not authorized to perform: iot:ListCustomMetrics on resource: *"
    talk.answer("iot", "list_security_profiles", {"securityProfileIdentifiers": []})
    for _ in range(2):
        talk.refuse("iot", "list_custom_metrics", "AccessDeniedException", denied)
    talk.free()
    assert cli.main(CHECK) == 0
    out = capsys.readouterr().out
    assert "  -     metrics     iot:ListCustomMetrics: AccessDeniedException" in out
    assert "allow your user or role iot:ListCustomMetrics" in out


def test_a_template_that_cloudformation_does_not_take_is_called_by_its_name(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.me()
    talk.answer("iot", "describe_endpoint", {"endpointAddress": ENDPOINT})
    talk.stack(None)
    talk.refuse("cloudformation", "validate_template", "ValidationError", "Template format error")
    talk.account()
    talk.free()
    assert cli.main(CHECK) == 4
    failed = [(name, rest) for word, name, rest in found(capsys) if word == "FAIL"]
    assert failed == [("template", "cloudformation:ValidateTemplate: ValidationError: Template format error")]


def test_an_account_without_detect_is_told_what_to_do(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    begun(talk)
    gone = "The IoT Device Defender detect feature is not available to new customers"
    talk.refuse("iot", "list_security_profiles", "InvalidRequestException", gone)
    assert cli.main(CHECK) == 4
    assert "--no-detect makes IoT rules for the alarms of devices instead" in capsys.readouterr().out


def test_a_stack_in_trouble_is_told_with_the_way_out(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    begun(talk, "UPDATE_ROLLBACK_FAILED")
    talk.account()
    talk.resources()
    talk.free()
    assert cli.main(CHECK) == 4
    out = capsys.readouterr().out
    assert "FAIL  stack       kinwatch, UPDATE_ROLLBACK_FAILED, of the profile kinwatch" in out
    assert "continue-update-rollback" in out


def test_a_long_template_needs_a_bucket(talk: Conversation, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text(TEXTS["many watches"])
    talk.me()
    talk.answer("iot", "describe_endpoint", {"endpointAddress": ENDPOINT})
    talk.stack(None)
    talk.account()
    talk.free()
    assert cli.main(["cloud", "check", "-c", str(path)]) == 0
    out = capsys.readouterr().out
    assert "apply needs --bucket: CloudFormation takes 51200 bytes in a call" in out
    assert "an account has 100 until that quota is raised" in out


def test_findings_are_data_as_well(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    begun(talk)
    talk.account()
    talk.free()
    assert cli.main([*CHECK, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"credentials", "detect", "targets"}
    assert all(row["ok"] for row in rows)
