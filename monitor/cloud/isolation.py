"""Without Detect: a rule and a function that put the thing of an alarm into the quarantine group.

Owns the rule, the function, its role and its log. Refuses to know how alarms are carried to people.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.cloud.ingest import source
from monitor.cloud.parts import MARK, Json, allow, arn_of, iot_arn, quarantine_group, ref, role, topic_of
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.schema import Defender

ALL: Final = "all"
MAX_CODE_BYTES: Final = 4096
"""Of a function whose code is inside a template (CloudFormation, ZipFile)."""
CODE: Final = Path(__file__).with_name("quarantine.py")
_RUNTIME: Final = "python3.13"
_PLAIN: Final = re.compile(r"[a-zA-Z0-9:_-]+\Z")
_LOG_DAYS: Final = 90
_MAX_BASE: Final = 64 - len("-quarantine")  # of a function's name


def parts(settings: Defender, alarming: Sequence[str], chosen: Sequence[str], *, base: str) -> Json:
    """Resources that react to `chosen` behaviors, or to ALL of them. `alarming`: those that alarms may name.

    Raises ConfigInvalid: no alarm will name one of them, or the topic does not say which thing sent an alarm.
    """
    for behavior in chosen:
        if behavior != ALL and (behavior not in alarming or not _PLAIN.match(behavior)):
            known = ", ".join((ALL, *filter(_PLAIN.match, alarming)))
            raise ConfigInvalid(f"command line: --quarantine: expected one of {known}, found {behavior!r}")
    name = f"{base[:_MAX_BASE]}-quarantine"
    rule = name.replace("-", "_")
    return {
        "QuarantineGroup": quarantine_group(base),
        "QuarantineLog": {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {"LogGroupName": f"/aws/lambda/{name}", "RetentionInDays": _LOG_DAYS},
        },
        "QuarantineRole": role(
            "lambda.amazonaws.com",
            [
                allow("iot:AddThingToThingGroup", [iot_arn("thing/*"), iot_arn(f"thinggroup/{base}-quarantine")]),
                allow(["logs:CreateLogStream", "logs:PutLogEvents"], arn_of("QuarantineLog")),
                allow("sqs:SendMessage", arn_of("DeadLetters")),
            ],
        ),
        "QuarantineFunction": {
            "Type": "AWS::Lambda::Function",
            "DependsOn": "QuarantineLog",  # or the service makes one of that name itself, kept for ever
            "Properties": {
                "FunctionName": name,
                "Description": "kinwatch: the thing of an alarm joins the quarantine group",
                "Runtime": _RUNTIME,
                "Handler": "index.handler",
                "Code": {"ZipFile": CODE.read_text()},
                "Role": arn_of("QuarantineRole"),
                "Timeout": 10,
                "MemorySize": 128,
                "Environment": {"Variables": {"GROUP": ref("QuarantineGroup")}},
                "DeadLetterConfig": {"TargetArn": arn_of("DeadLetters")},
            },
        },
        "QuarantinePermission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "Action": "lambda:InvokeFunction",
                "FunctionName": arn_of("QuarantineFunction"),
                "Principal": "iot.amazonaws.com",
                "SourceAccount": ref("AWS::AccountId"),
                "SourceArn": iot_arn(f"rule/{rule}"),
            },
        },
        "QuarantineRule": {
            "Type": "AWS::IoT::TopicRule",
            "DependsOn": "QuarantinePermission",
            "Properties": {
                "RuleName": rule,
                "TopicRulePayload": {
                    "Sql": _statement(settings, chosen),
                    "AwsIotSqlVersion": "2016-03-23",
                    "Actions": [{"Lambda": {"FunctionArn": arn_of("QuarantineFunction")}}],
                    "ErrorAction": {"Sqs": {"QueueUrl": ref("DeadLetters"), "RoleArn": arn_of("RuleRole")}},
                    "RuleDisabled": False,
                },
            },
        },
    }


def _statement(settings: Defender, chosen: Sequence[str]) -> str:
    """Select alarms; the thing is the one that the topic names, for a device may write any name into a message."""
    levels = topic_of(settings, "alarm_topic", MARK).split("/")
    if MARK not in levels or levels[0].startswith("$"):
        what = f"defender.alarm_topic {settings.alarm_topic!r} does not say by itself whose an alarm is"
        raise ConfigInvalid(
            f"command line: --quarantine: {what}; give the thing a level of its own, as kinwatch/{{thing}}/alarms, "
            "which is no topic of Basic Ingest"
        )
    place = levels.index(MARK) + 1
    _, listening = source(settings, "alarm_topic")
    wanted = "" if ALL in chosen else " AND (" + " OR ".join(f"behavior = '{one}'" for one in chosen) + ")"
    fields = f"topic({place}) AS thing, behavior"
    # Neither source() nor _PLAIN lets a quote pass.
    return f"SELECT {fields} FROM '{listening}' WHERE event = 'alarm'{wanted}"  # noqa: S608
