"""A change set: what CloudFormation plans to do to a stack, shown before it is done.

Owns how a plan is asked for, read, executed and forgotten. Refuses to know what a template consists of, and to decide
whether a plan is a good one.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.cloud.parts import MAX_INLINE_BYTES
from monitor.cloud.stack import POLL_S, POLLS, SERVICE, TAG, Stack, follow, seen
from monitor.cloud.words import Change, Sign, moved, name_of
from monitor.errors import CloudRefused, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from monitor.cloud.aws import Aws
    from monitor.cloud.parts import Json
    from monitor.cloud.stack import Event

_PREFIX: Final = "kinwatch-"
_NO_CHANGES: Final = ("didn't contain changes", "no updates are to be performed")
_SHOWN: Final = 6


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A change set that can be executed."""

    id: str
    stack: str
    """The id of the stack."""
    changes: tuple[Change, ...]
    new: bool
    """The stack is there for this plan alone."""


def plan(  # noqa: PLR0913 - what a change set consists of
    aws: Aws,
    name: str,
    document: Json,
    *,
    present: Stack | None,
    profile: str,
    parameters: Mapping[str, str],
    bucket: str = "",
    revert_drift: bool = False,
) -> Plan | None:
    """Have CloudFormation plan what turns `present` into what the template says; None: it is so already.

    `parameters` are those to set; the others stay as they are, or as the template has them. `bucket` gets a template
    that is too long to be sent, for that long. Raises CloudRefused: there is no plan; ConfigInvalid: it is too long.
    """
    text = sendable(document, bucket)
    creating = present is None or present.empty
    kept: Mapping[str, str] = {} if present is None or creating else present.parameters
    asked: Json = {
        "StackName": name,
        "ChangeSetName": f"{_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        "ChangeSetType": "CREATE" if creating else "UPDATE",
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": TAG, "Value": profile}],
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": parameters[key]}
            if key in parameters
            else {"ParameterKey": key, "UsePreviousValue": True}
            for key in document.get("Parameters", {})
            if key in parameters or key in kept
        ],
    }
    if creating:
        asked["OnStackFailure"] = "DELETE"  # so that the next attempt begins anew
    elif revert_drift:
        asked["DeploymentMode"] = "REVERT_DRIFT"
    with _Delivered(aws, text, bucket) as where:
        made = _created(aws, asked | where)
        found = _planned(aws, name, made) if made else {}
    if not found:
        return None
    if found["Status"] == "FAILED":
        why = found.get("StatusReason", "")
        discard(aws, Plan(id=found["ChangeSetId"], stack=found["StackId"], changes=(), new=present is None))
        if _says_no_changes(why):
            return None
        raise CloudRefused(f"stack {name}: CloudFormation can make no plan: {why}; nothing was changed")
    known = document["Resources"]
    return Plan(
        id=found["ChangeSetId"],
        stack=found["StackId"],
        changes=tuple(_change(one["ResourceChange"], known) for one in found["Changes"]),
        new=present is None,
    )


def text_of(document: Json) -> str:
    """Write a template as short as it goes."""
    return json.dumps(document, separators=(",", ":"))


def sendable(document: Json, bucket: str) -> str:
    """Write a template so that it can be sent, in a call or by the bucket. Raises ConfigInvalid: it is too long."""
    text = text_of(document)
    size = len(text.encode())
    if size > MAX_INLINE_BYTES and not bucket:
        what = f"the template has {size} bytes, and CloudFormation takes {MAX_INLINE_BYTES} in a call"
        raise ConfigInvalid(f"command line: {what}; give --bucket with one of yours in the same region")
    return text


class _Delivered:
    """A template where CloudFormation can read it, as arguments of a call."""

    def __init__(self, aws: Aws, text: str, bucket: str) -> None:
        self._aws, self._body, self._bucket = aws, text.encode(), bucket
        self._key = ""

    def __enter__(self) -> Json:
        if len(self._body) <= MAX_INLINE_BYTES:
            return {"TemplateBody": self._body.decode()}
        self._key = f"kinwatch/{hashlib.sha256(self._body).hexdigest()}.json"
        self._aws.call("s3", "PutObject", Bucket=self._bucket, Key=self._key, Body=self._body)
        return {"TemplateURL": f"{self._aws.client('s3').meta.endpoint_url}/{self._bucket}/{self._key}"}

    def __exit__(self, *_: object) -> None:
        if self._key:  # the plan has it now
            self._aws.call("s3", "DeleteObject", Bucket=self._bucket, Key=self._key)


def _planned(aws: Aws, name: str, made: Json) -> Json:
    """Wait for a change set: its description, with the changes of all pages."""
    asked: Json = {"ChangeSetName": made["Id"], "StackName": made["StackId"], "IncludePropertyValues": True}
    found: Json = {}
    for _ in range(POLLS):
        found = aws.call(SERVICE, "DescribeChangeSet", **asked)
        if found["Status"] in {"CREATE_COMPLETE", "FAILED"}:
            break
        aws.sleep(POLL_S)
    else:
        raise CloudRefused(f"stack {name}: CloudFormation is still planning; run the command again")
    changes = list(found.get("Changes", ()))
    page = found
    while "NextToken" in page:
        page = aws.call(SERVICE, "DescribeChangeSet", **asked, NextToken=page["NextToken"])
        changes += page.get("Changes", ())
    return {"ChangeSetId": made["Id"], "StackId": made["StackId"]} | found | {"Changes": changes}


def _created(aws: Aws, asked: Json) -> Json:
    """Have a change set made; {}: AWS says at once that there is nothing to change."""
    try:
        return aws.call(SERVICE, "CreateChangeSet", **asked)
    except CloudRefused as error:
        if _says_no_changes(str(error)):
            return {}
        if error.code != "AlreadyExistsException":
            raise
    # One of an earlier attempt, that was broken off before its answer.
    aws.call(SERVICE, "DeleteChangeSet", ChangeSetName=asked["ChangeSetName"], StackName=asked["StackName"])
    return aws.call(SERVICE, "CreateChangeSet", **asked)


def _says_no_changes(why: str) -> bool:
    return any(words in why.lower() for words in _NO_CHANGES)


def _change(one: Json, known: Mapping[str, Json]) -> Change:
    action, replaced = one["Action"], one.get("Replacement", "False") != "False"
    details: dict[str, None] = {}
    for detail in one.get("Details", ()):
        target = detail.get("Target", {})
        path = target.get("Path", "").removeprefix("/Properties/").replace("/", ".") or target.get("Name", "")
        label = path or target.get("Attribute", "")
        if "BeforeValue" in target or "AfterValue" in target:
            label = moved(label, target.get("BeforeValue"), target.get("AfterValue"))
        details[label] = None
    shown = [one for one in details if one]
    if len(shown) > _SHOWN:
        shown = [*shown[:_SHOWN], f"and {len(shown) - _SHOWN} more"]
    sign: Sign = "-/+" if replaced else "~"
    if action == "Add":
        sign, shown = "+", []
    elif action == "Remove":
        sign, shown = ("=" if one.get("PolicyAction") == "Retain" else "-"), []
    else:
        if one.get("Replacement") == "Conditional":
            shown.append("replaced, if what it depends on is")
        if action == "SyncWithActual":
            shown.append("somebody changed it by hand to what is wanted now")
    name = name_of(known, one["LogicalResourceId"], one.get("PhysicalResourceId", ""))
    return Change(sign=sign, type=one["ResourceType"], name=name, details=tuple(shown))


def only_ours(aws: Aws, stack: Stack) -> bool:
    """Whether a stack that was never made has plans of kinwatch and no other. Raises CloudRefused."""
    names = [one["ChangeSetName"] for one in aws.pages(SERVICE, "ListChangeSets", "Summaries", StackName=stack.id)]
    return bool(names) and all(name.startswith(_PREFIX) for name in names)


def discard(aws: Aws, made: Plan) -> None:
    """Forget a plan; a stack that is there for it alone goes as well. Raises CloudRefused."""
    if made.new:
        aws.call(SERVICE, "DeleteStack", StackName=made.stack)
    else:
        aws.call(SERVICE, "DeleteChangeSet", ChangeSetName=made.id, StackName=made.stack)


def execute(aws: Aws, made: Plan, tell: Callable[[Event], None]) -> Stack:
    """Do what was planned and wait for its end, telling what happens. Returns the stack. Raises CloudRefused."""
    before = seen(aws, made.stack)
    aws.call(
        SERVICE,
        "ExecuteChangeSet",
        ChangeSetName=made.id,
        StackName=made.stack,
        ClientRequestToken=hashlib.sha256(made.id.encode()).hexdigest(),  # botocore may ask twice
        RetainExceptOnCreate=True,  # a bucket that was made in vain is not kept
    )
    return follow(aws, made.stack, before, tell, begun=False)
