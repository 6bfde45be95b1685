"""What both kinds of template are made of: names, ARNs, roles, the alert topic, the policy of the device.

Owns the spelling of CloudFormation and what a device may do at the broker. Refuses to know security profiles and rules.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.defender.answers import TOPIC
from monitor.provisioning.answers import CREATE, REGISTER
from monitor.publishing import client_id_of, topic
from monitor.schema import Defender
from monitor.shadow.document import topic as shadow_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.config import Config

Json = dict[str, Any]

MAX_INLINE_BYTES: Final = 51_200
"""Of a template that is not in a bucket (CloudFormation, TemplateBody)."""

THING: Final = "${iot:Connection.Thing.ThingName}"
"""A thing policy variable: whoever connects, for each thing its own name."""
DOCTOR: Final = "-doctor"
"""What `kinwatch doctor` puts behind the client id."""
MARK: Final = "\0"
"""In place of a thing's name in a topic, where nothing else has it."""

_MAX_BASE: Final = 64
EMAIL: Final = "AlarmEmail"
_HAS_EMAIL: Final = "HasAlarmEmail"


def base_of(profile: str) -> str:
    """What the names of all resources begin with: `profile`, with the characters that every service takes."""
    return re.sub(r"[^a-zA-Z0-9-]", "-", profile)[:_MAX_BASE]


def settings_of(config: Config) -> Defender:
    """Return [defender], or its defaults where nothing is published yet; a thing that is not provisioned has a name."""
    settings = config.defender or Defender(endpoint="localhost")
    return msgspec.structs.replace(settings, thing=settings.thing or "thing")


def topic_of(defender: Defender, key: str, thing: str) -> str:
    """Write the topic that defender.alarm_topic or .events_topic means for a thing of that name; "" is none."""
    return topic(msgspec.structs.replace(defender, thing=thing), key)


def sub(text: str) -> Json:
    """Have CloudFormation fill in ${AWS::...} and ${Bucket...}, and leave every other ${ as it is."""
    return {"Fn::Sub": re.sub(r"\$\{(?!AWS::|Bucket[.}])", "${!", text)}


def iot_arn(resource: str) -> Json:
    """The ARN of something in AWS IoT, in the account and region of the stack."""
    return sub(f"arn:${{AWS::Partition}}:iot:${{AWS::Region}}:${{AWS::AccountId}}:{resource}")


def ref(logical: str) -> Json:
    """Refer to a resource or parameter."""
    return {"Ref": logical}


def arn_of(logical: str) -> Json:
    """The ARN of a resource of the template."""
    return {"Fn::GetAtt": [logical, "Arn"]}


def logical(kind: str, name: str) -> str:
    """The logical id of one of many: readable, and another one for every name."""
    words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^a-zA-Z0-9]+", name))
    return f"{kind}{words}{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def role(service: str, statements: Sequence[Json], *, bound: bool = False) -> Json:
    """A role that a service takes. `bound`: for this account alone (for those that send aws:SourceAccount)."""
    trust: Json = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if bound:
        trust["Condition"] = {"StringEquals": {"aws:SourceAccount": ref("AWS::AccountId")}}
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
            "Policies": [
                {
                    "PolicyName": "kinwatch",
                    "PolicyDocument": {"Version": "2012-10-17", "Statement": list(statements)},
                }
            ],
        },
    }


def allow(actions: str | Sequence[str], resources: Any, **more: Any) -> Json:  # noqa: ANN401 - text or functions
    """Write a statement of a policy."""
    return {"Effect": "Allow", "Action": actions, "Resource": resources, **more}


def alert_topic() -> Json:
    """Sections of a template that has the SNS topic of alarms, with a subscription if an address is given."""
    parameters = {
        EMAIL: {
            "Type": "String",
            "Default": "",
            "Description": "Address that gets the alarms, once it has confirmed; empty: nobody is subscribed",
        }
    }
    resources = {
        "AlarmTopic": {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": "kinwatch alarms"}},
        "AlarmSubscription": {
            "Type": "AWS::SNS::Subscription",
            "Condition": _HAS_EMAIL,
            "Properties": {"TopicArn": ref("AlarmTopic"), "Protocol": "email", "Endpoint": ref(EMAIL)},
        },
    }
    return {
        "Parameters": parameters,
        "Conditions": {_HAS_EMAIL: {"Fn::Not": [{"Fn::Equals": [ref(EMAIL), ""]}]}},
        "Resources": resources,
        "Outputs": {"AlarmTopicArn": {"Value": ref("AlarmTopic")}},
    }


def quarantine_group(base: str) -> Json:
    """The group that things join which raised an alarm. What they may do there is said by policies of others."""
    return {"Type": "AWS::IoT::ThingGroup", "Properties": {"ThingGroupName": f"{base}-quarantine"}}


def device_policy(defender: Defender, base: str, config: Config) -> Json:
    """What a device may do at the broker, and no more: connect as kinwatch, report, hear the answers, tell alarms.

    Where they are configured also ask for the next certificate, and speak with the shadow.

    Names of the thing become a policy variable, so that one policy serves every device of this configuration.
    """
    client = client_id_of(defender)
    if client.startswith(defender.thing):
        client = THING + client.removeprefix(defender.thing)
    report = TOPIC.format(thing=THING, format=defender.format)
    # What looks like a variable in a topic is none; in a policy it would be. ? is any character.
    told = [
        topic_of(defender, key, MARK).replace("${", "?{").replace(MARK, THING)
        for key in ("alarm_topic", "events_topic")
    ]
    calls = []
    if config.provisioning is not None:
        calls += [name.format(template=config.provisioning.template) for name in (CREATE, REGISTER)]
    if config.remote is not None:
        calls += [shadow_topic(THING, what) for what in ("get", "update")]
    # * for accepted, rejected and delta: a policy has room for 2048 bytes.
    answers = [f"{report}/accepted", f"{report}/rejected", *(f"{name}/*" for name in calls)]
    statements = [
        allow("iot:Connect", [iot_arn(f"client/{name}") for name in (client, client + DOCTOR)]),
        allow("iot:Publish", [iot_arn(f"topic/{name}") for name in (report, *filter(None, told), *calls)]),
        allow("iot:Subscribe", [iot_arn(f"topicfilter/{name}") for name in answers]),
        allow("iot:Receive", [iot_arn(f"topic/{name}") for name in answers]),
    ]
    return {
        "Type": "AWS::IoT::Policy",
        "Properties": {
            "PolicyName": f"{base}-device",
            "PolicyDocument": {"Version": "2012-10-17", "Statement": statements},
        },
    }
