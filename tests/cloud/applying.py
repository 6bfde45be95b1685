"""What an apply asks AWS, piece by piece, for the tests that put these pieces together.

Owns the pieces. Refuses to judge what the command makes of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from botocore.stub import ANY

from tests.cloud.account import ACCOUNT, REGION
from tests.cloud.configurations import TEXTS, made
from tests.cloud.conversation import CHANGES, STACK

if TYPE_CHECKING:
    from tests.cloud.conversation import Conversation

TOPIC: Final = "AWS::SNS::Topic"
APPLY: Final = ("cloud", "apply", "--watch", "myapp", "--expect", "child_processes=0")
WANTED: Final = made(TEXTS["no child"]).document


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


def present_after_waiting(talk: Conversation) -> None:
    """As `present`, without the first look at the stack."""
    talk.account()
    talk.answer("iot", "validate_security_profile_behaviors", {"valid": True, "validationErrors": []})
    talk.stack("UPDATE_COMPLETE")
    talk.resources()
    talk.free(profile=False)
    talk.me()
    talk.answer("iot", "list_security_profiles_for_target", {"securityProfileTargetMappings": []})
