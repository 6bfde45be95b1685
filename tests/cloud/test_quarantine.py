"""Without Detect: a rule and a function put the thing of an alarm into the quarantine group, and no other thing.

Owns the function run as Lambda runs it, and the comparison of the rule with what devices send. Refuses to know how the
template is written.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from monitor.cloud.isolation import CODE, MAX_CODE_BYTES
from monitor.errors import ConfigInvalid
from monitor.publishing import topic
from tests.cloud.account import ACCOUNT, REGION, Account, faults, request_faults, structure_faults
from tests.cloud.configurations import DEFENDER, EXPECTING, MYAPP, PROFILE, TEXTS, configured, made

if TYPE_CHECKING:
    from types import ModuleType

LISTENING = {name: text for name, text in TEXTS.items() if "$aws/rules" not in text and "${{b}}" not in text}
each = pytest.mark.parametrize("text", LISTENING.values(), ids=LISTENING)


def account(text: str, *behaviors: str, profile: Any = None) -> Account:  # noqa: ANN401 - what JSON has
    """The account that has the template."""
    return Account(made(text, profile, detect=False, quarantine=behaviors or ("all",)).document)


def rule(of: Account) -> dict[str, Any]:
    """The rule of the quarantine."""
    (found,) = [one for one in of.of_type("AWS::IoT::TopicRule") if one["RuleName"].endswith("_quarantine")]
    return found


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The function as Lambda has it: the text of the template, as a module called index, in its environment."""
    properties = account(MYAPP).one("AWS::Lambda::Function")
    for name, value in (("AWS_DEFAULT_REGION", REGION), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    for name, value in properties["Environment"]["Variables"].items():
        monkeypatch.setenv(name, value)
    assert properties["Handler"] == "index.handler"
    spec = importlib.util.spec_from_loader("index", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(properties["Code"]["ZipFile"], "index.py", "exec"), module.__dict__)  # noqa: S102 - as Lambda does
    return module


def test_the_template_carries_the_file_and_it_is_short_enough() -> None:
    code = account(MYAPP).one("AWS::Lambda::Function")["Code"]["ZipFile"]
    assert code == Path(CODE).read_text()
    assert len(code.encode()) <= MAX_CODE_BYTES == 4096


def test_the_function_adds_the_thing_to_the_group(function: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"thingGroupName": "kinwatch-quarantine", "thingName": "mything1", "overrideDynamicGroups": True}
    with Stubber(function.iot) as stubber:
        for _ in range(2):  # Lambda may call twice
            stubber.add_response("add_thing_to_thing_group", {}, asked)
            function.handler({"thing": "mything1", "behavior": "child_processes"}, None)
        stubber.assert_no_pending_responses()
    assert request_faults("iot", "AddThingToThingGroup", asked) == []
    assert "mything1 is in kinwatch-quarantine: child_processes" in capsys.readouterr().out


def test_what_goes_wrong_is_raised_so_that_lambda_tries_again(function: ModuleType) -> None:
    with Stubber(function.iot) as stubber:
        stubber.add_client_error("add_thing_to_thing_group", "ResourceNotFoundException")
        with pytest.raises(ClientError):
            function.handler({"thing": "nobody", "behavior": "x"}, None)


def test_what_lambda_gives_up_on_is_kept_and_told() -> None:
    of = account(MYAPP)
    properties = of.one("AWS::Lambda::Function")
    assert properties["DeadLetterConfig"]["TargetArn"] == of._attribute("DeadLetters", "Arn")
    assert rule(of)["TopicRulePayload"]["ErrorAction"]["Sqs"]["QueueUrl"] == of._name("DeadLetters")


def test_the_function_may_do_what_it_does_and_nothing_else() -> None:
    (policy,) = account(MYAPP).filled["QuarantineRole"]["Policies"]
    allowed: dict[str, Any] = {}
    for one in policy["PolicyDocument"]["Statement"]:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        allowed |= dict.fromkeys(actions, one["Resource"])
    assert set(allowed) == {
        *("iot:AddThingToThingGroup", "logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"),
    }
    iot = f"arn:aws:iot:{REGION}:{ACCOUNT}"
    assert allowed["iot:AddThingToThingGroup"] == [f"{iot}:thing/*", f"{iot}:thinggroup/kinwatch-quarantine"]
    assert "*" not in allowed.values()


@each
def test_aws_would_take_the_rule_and_the_function(text: str) -> None:
    of = account(text)
    assert structure_faults("TopicRulePayload", rule(of)["TopicRulePayload"]) == []
    assert structure_faults("RuleName", rule(of)["RuleName"]) == []
    properties = dict(of.one("AWS::Lambda::Function"))
    code = {"Code": {"ZipFile": properties.pop("Code")["ZipFile"].encode()}, "Role": f"arn:aws:iam::{ACCOUNT}:role/r"}
    assert faults("CreateFunction", properties, code, api="lambda") == []
    assert len(properties["FunctionName"]) <= 64
    given = {"StatementId": "a"}
    assert faults("AddPermission", of.one("AWS::Lambda::Permission"), given, api="lambda") == []
    assert faults("CreateThingGroup", of.one("AWS::IoT::ThingGroup")) == []


@each
def test_only_the_rule_may_call_the_function(text: str) -> None:
    of = account(text)
    permission = of.one("AWS::Lambda::Permission")
    assert permission["SourceArn"] == f"arn:aws:iot:{REGION}:{ACCOUNT}:rule/{rule(of)['RuleName']}"
    assert (permission["SourceAccount"], permission["Principal"]) == (ACCOUNT, "iot.amazonaws.com")
    (action,) = rule(of)["TopicRulePayload"]["Actions"]
    assert action["Lambda"]["FunctionArn"] == permission["FunctionName"]


@each
def test_the_thing_is_the_one_that_the_topic_names(text: str) -> None:
    """A device may write any name into a message; its policy lets it publish under its own name alone."""
    sql = rule(account(text))["TopicRulePayload"]["Sql"]
    found = re.fullmatch(r"SELECT topic\((\d+)\) AS thing, behavior FROM '([^']*)' WHERE event = 'alarm'", sql)
    assert found, sql
    defender = configured(text).defender or configured(MYAPP + DEFENDER).defender
    assert defender is not None
    levels = topic(msgspec.structs.replace(defender, thing="camera:7"), "alarm_topic").split("/")
    assert levels[int(found[1]) - 1] == "camera:7"
    heard = found[2].split("/")
    assert [one in {"+", level} for one, level in zip(heard, levels, strict=True)] == [True] * len(levels)


def test_the_rule_hears_no_topic_but_that_of_alarms() -> None:
    """Whoever may publish to another topic of that depth puts nobody into quarantine."""
    sql = rule(account(MYAPP + DEFENDER + 'alarm_topic = "my.fleet/{thing}/alarms=1"\n'))["TopicRulePayload"]["Sql"]
    assert " FROM 'my.fleet/+/alarms=1' " in sql


def test_chosen_behaviors_alone_lead_to_quarantine() -> None:
    sql = rule(account(EXPECTING, "child_processes", "memfd"))["TopicRulePayload"]["Sql"]
    assert sql.endswith(" WHERE event = 'alarm' AND (behavior = 'child_processes' OR behavior = 'memfd')")
    with_profile = rule(account(EXPECTING, "quiet", profile=PROFILE))["TopicRulePayload"]["Sql"]
    assert with_profile.endswith("(behavior = 'quiet')")


@pytest.mark.parametrize("behavior", ["nothing", "x' OR 'a' = 'a", ""])
def test_a_behavior_that_no_alarm_names_is_refused(behavior: str) -> None:
    with pytest.raises(ConfigInvalid, match="--quarantine: expected one of all, child_processes"):
        account(EXPECTING, behavior)


@pytest.mark.parametrize(
    "name", ["$aws/rules/all_alarms/kinwatch/{thing}", "kinwatch/alarms", "kinwatch/a-{thing}/alarms"]
)
def test_a_topic_that_does_not_say_whose_an_alarm_is_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="does not say by itself whose an alarm is"):
        account(MYAPP + DEFENDER + f'alarm_topic = "{name}"\n')


def test_without_the_flag_nothing_puts_things_into_quarantine() -> None:
    text = json.dumps(made(EXPECTING, detect=False).document)
    assert "uarantine" not in text
    assert "Lambda" not in text
